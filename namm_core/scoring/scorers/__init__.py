"""Networks that score a token, one file each."""
