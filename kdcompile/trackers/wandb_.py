"""Tracker `wandb`: a run of Weights & Biases, in a local folder unless the user goes online."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from kdcompile.core.optional import need
from kdcompile.core.plugins import register

PROJECT = "kdcompile"  # unless $WANDB_PROJECT names another
OFFLINE = "offline"  # unless $WANDB_MODE says online


@register("trackers", "wandb")
class WandbTracker:
    """A run: config, history, summary and files; `wandb sync` sends an offline one later."""

    def __init__(self, where: str = "") -> None:
        """`where`: the folder in which `wandb/` is made; by default $WANDB_DIR or the current one.

        Raises:
            ToolMissingError: wandb is not installed.
        """
        self._wandb = need("wandb", "wandb", "the tracker wandb")
        self._where = where or None

    def start(self, name: str, settings: Mapping[str, str]) -> None:
        """Open a run; nothing of this machine, its output or the user's code is recorded."""
        if self._where is not None:
            Path(self._where).mkdir(parents=True, exist_ok=True)
        quiet = self._wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="unnamed",
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=name,
            config=dict(settings),
            dir=self._where,
            mode=os.environ.get("WANDB_MODE") or OFFLINE,
            reinit="create_new",
            settings=quiet,
        )

    def metrics(self, values: Mapping[str, float], step: int | None) -> None:
        """A row of the history, or entries of the summary."""
        if step is None:
            self._run.summary.update(dict(values))
        else:
            self._run.log(dict(values), step=step)

    def artifact(self, path: Path) -> None:
        """Copy the file into the folder of the run, whose files are the run's."""
        shutil.copyfile(path, Path(self._run.dir) / path.name)

    def finish(self, succeeded: bool, facts: Mapping[str, str]) -> None:
        """Add the facts to the summary, and close the run."""
        self._run.summary.update(dict(facts))
        self._run.finish(exit_code=0 if succeeded else 1)
