"""Changes of the COCO files of a test's data."""

import json
from collections.abc import Callable
from typing import Any

from kdcompile.config.spec import Data


def rewritten(data: Data, change: Callable[[Any], Any], split: str = "val") -> None:
    """Change the content of a split's file in place."""
    path = data.root / f"{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
