"""Preference rows become token pairs, in one order, with an audit of what was left out."""
