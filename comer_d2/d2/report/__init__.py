"""One page on a trained model: curves, tables, and the images it does worst on."""
