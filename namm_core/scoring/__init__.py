"""From attention to scores."""
