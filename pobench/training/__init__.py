"""Training: one loop for every objective, what it minimises, its memory and its checkpoints."""
