"""Control: environments, trajectories and the Decision Transformer."""
