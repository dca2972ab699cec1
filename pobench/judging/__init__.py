"""Judges: one file each, found by name."""
