"""kdcompile: a compression compiler that turns a trained teacher into a proven edge bundle."""

__version__ = "0.1.0"
