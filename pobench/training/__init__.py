"""Training: one loop, the objectives that it minimises, reference sums, checkpoints, memory, and the SFT stage."""
