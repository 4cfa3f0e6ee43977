"""Tasks and models: prompts in, scores out. Knows nothing of the search or of its records.

Start reading at `evaluator.py`, which a worker runs; `protocols.py` has the interfaces of everything exchangeable.
"""
