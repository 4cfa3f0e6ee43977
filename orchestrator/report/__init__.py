"""What people read while a job runs and after it."""
