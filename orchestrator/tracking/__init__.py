"""What MLflow is told about a run."""
