"""Workflows over runs: studies, the search for hyperparameters, on-policy pairs, and the checks of a loss."""
