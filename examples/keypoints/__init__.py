"""Example: a task of its own in one file, key points of made-up kites."""
