"""The generation loop and what a generation is made of."""
