"""Detection: boxes of a network's outputs, which of them are right, and average precision."""

import kdcompile.tasks.detection.task  # noqa: F401  registers the task
