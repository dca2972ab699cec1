"""Modifiers of losses, one file each: `label_smoothing(dpo)`."""
