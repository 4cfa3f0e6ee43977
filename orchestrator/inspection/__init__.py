"""What a memory holds of some prompts, for people."""
