"""Task sources, one file each."""
