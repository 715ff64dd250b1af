"""Detection: boxes of a network's outputs, which of them are right, and average precision."""
