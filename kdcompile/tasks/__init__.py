"""Tasks: targets, losses, metrics and how their values are named."""
