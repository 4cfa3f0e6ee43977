"""Searches, and the rules around them."""
