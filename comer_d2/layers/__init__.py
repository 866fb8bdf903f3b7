"""What network and heads both stand on: token levels, deformable attention, linear layers, positions."""
