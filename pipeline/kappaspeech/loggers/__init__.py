"""A run's curves for people: the same numbers by the same names in TensorBoard, W&B, trackio and MLflow."""
