"""What train_net.py does: configs, processes, the training loop, checkpoints, evaluation."""
