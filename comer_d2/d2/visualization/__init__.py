"""Pictures of ground truth and predictions."""
