"""Searches, found by name, and the rules around them: racing within a generation, stages, stops and restarts."""
