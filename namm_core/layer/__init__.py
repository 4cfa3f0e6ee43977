"""What one attention layer holds, and in which layout."""
