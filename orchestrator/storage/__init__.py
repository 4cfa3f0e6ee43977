"""What a run keeps on disk and at a URL: its folder, journal, mirror and lease."""
