"""Training scripts of the small models that the repository ships."""
