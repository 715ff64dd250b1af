"""Spaces of student architectures."""
