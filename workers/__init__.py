"""Tasks and models: prompts in, scores out. Knows nothing of the search nor of its records."""
