"""The file of the engine benchmark: one record for each task, device and backend."""

import json
from pathlib import Path
from typing import Any

from kdcompile.core.files import write_json


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Every record by its name, such as `shanghaitech on NVIDIA H100 80GB HBM3, tensorrt 8.6.1`."""
    found: dict[str, dict[str, Any]] = {}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    return found


class Results:
    """One record of the file, which is whole at any time."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def get(self, section: str, entry: str | None = None) -> dict[str, Any]:
        """A section of the record, or an entry of it; empty where it is not there yet."""
        found: dict[str, Any] = read(self.path).get(self.name, {}).get(section, {})
        return found if entry is None else found.get(entry, {})

    def put(self, section: str, value: Any, entry: str | None = None) -> None:
        """Replace a section, or an entry of it, and keep the file."""
        every = read(self.path)
        record = every.setdefault(self.name, {})
        if entry is None:
            record[section] = value
        else:
            record.setdefault(section, {})[entry] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, every)
