"""Version numbers that can be compared, such as a TensorRT's or a compute capability."""

import re

from kdcompile.core.errors import KDError


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `10.3.0.post1` gives (10, 3, 0).

    Raises:
        KDError: `target-backend`, it begins with no number.
    """
    found = re.match(r"\d+(\.\d+)*", text)
    if found is None:
        raise KDError("target-backend", f"{text!r} is not a version number", fix="such as 10.3")
    return tuple(int(part) for part in found.group().split("."))
