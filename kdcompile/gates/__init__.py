"""Gates: one file each, what they measure, and the verdict of those that a spec names."""
