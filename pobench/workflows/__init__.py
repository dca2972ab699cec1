"""Workflows: what people ask for, over runs: studies, tuning, on-policy pairs, checks."""
