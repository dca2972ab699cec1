"""pobench: which preference-optimization objective is really better, on your model and your data?"""

__version__ = "0.1.0"
