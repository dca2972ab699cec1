"""Reporting: figures, tables, the summary and the page, from frames alone."""
