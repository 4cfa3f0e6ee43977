"""Servers that a run leans on."""
