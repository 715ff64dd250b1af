"""Classifying small photos."""
