"""Tracker `tensorboard`: a folder of event files."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from kdcompile.core.optional import need
from kdcompile.core.plugins import register
from kdcompile.core.readers import read_text

FOLDER = "runs"  # in the current folder: where TensorBoard's users look first
TEXT = ".md"  # shown by TensorBoard itself


@register("trackers", "tensorboard")
class TensorBoardTracker:
    """A folder `NAME-TIME` of curves, results and texts, with copies of the artifacts."""

    def __init__(self, where: str = "") -> None:
        """`where`: the log folder, which holds a folder a build; `runs` by default.

        Raises:
            ToolMissingError: TensorBoard is not installed.
        """
        need("tensorboard", "tensorboard", "the tracker tensorboard")
        self._root = Path(where or FOLDER)

    def start(self, name: str, settings: Mapping[str, str]) -> None:
        """Open an event file; the settings are its text `spec`."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = self._root / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._writer = SummaryWriter(str(self.folder))
        self._writer.add_text("spec", _table(settings))

    def metrics(self, values: Mapping[str, float], step: int | None) -> None:
        """A scalar each; results have step 0."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step or 0)
        self._writer.flush()

    def artifact(self, path: Path) -> None:
        """Copy the file next to the event file; a Markdown file is a text too."""
        shutil.copyfile(path, self.folder / path.name)
        if path.suffix == TEXT:
            self._writer.add_text(path.stem, read_text(path))

    def finish(self, succeeded: bool, facts: Mapping[str, str]) -> None:
        """Write the facts as the text `verdict`, and close the file."""
        state = {"state": "finished" if succeeded else "failed"}
        self._writer.add_text("verdict", _table({**state, **facts}))
        self._writer.close()


def _table(rows: Mapping[str, str]) -> str:
    """A Markdown table of names and values."""
    cells = (f"| {name} | {value.replace('|', '/')} |" for name, value in rows.items())
    return "\n".join(("| name | value |", "|---|---|", *cells))
