"""Comparisons on held-out samples."""
