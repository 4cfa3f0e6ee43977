"""Work to workers and results back."""
