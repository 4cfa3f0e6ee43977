"""Units of work to the workers, and their results back."""
