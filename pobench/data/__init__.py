"""Data: preference rows become token pairs in a fixed order, with an audit of the rows left out."""
