"""Results: run folders, the frames read from them, estimates and what may be compared."""
