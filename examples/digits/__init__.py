"""Counting scanned digits."""
