"""Settings of the task that a bundle carries, where the kind alone does not tell."""

from typing import Any

from kdcompile.bundle.manifest import Bundle
from kdcompile.core.readers import parse_json
from kdcompile.remote.frame import TASK
from kdcompile.tasks.task import Task


def with_settings_of(bundle: Bundle, task: Task) -> Task:
    """The task as the bundle's build had it.

    Raises:
        KDError: `bundle-corrupt`, its settings are none of the task.
    """
    if TASK not in bundle.manifest["files"]:
        return task
    with bundle.reading(TASK) as content:
        return task.with_settings(dict(parse_json(content)))


def settings_of(bundle: Bundle) -> dict[str, Any]:
    """The content of `task.json`, which may be nothing.

    Raises:
        KDError: `bundle-corrupt`.
    """
    if TASK not in bundle.manifest["files"]:
        return {}
    with bundle.reading(TASK) as content:
        return dict(parse_json(content))
