"""Load, trace, resize and rebuild the networks of a build."""
