"""The build at the end of a training, which the callbacks of all trainers share."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kdcompile import api
from kdcompile.config.spec import Task
from kdcompile.core.errors import KDError
from kdcompile.data.splits import SPLITS
from kdcompile.passes.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

Loss = Callable[..., Any]
DETECTION = "detection"  # the task whose training loss may be a function of the user's


class AtEnd:
    """A build to come: its options, its data sets, and afterwards its result.

    Args:
        data: splits and other fields of `[data]`, which go before the trainer's own loaders.
        loss: the loss of the user's training, a function of a module, of the detection task.
        options: other arguments of `kdcompile.build`.

    Attributes:
        built: the result of the build, None before it.
        form: what makes a data set of `kdcompile.build` of one of the trainer's.
    """

    def __init__(
        self, data: Mapping[str, Any] | None, loss: Loss | None, options: Mapping[str, Any]
    ) -> None:
        """Check what can be checked before the training.

        Raises:
            KDError: `inputs-unused`, `loss-unused` or `loss-unnamed`.
        """
        self.data = dict(data or {})
        self.options = dict(options)
        known = {*inspect.signature(api.build).parameters, *Inputs.__annotations__}
        unknown = {*options} - known | {*options} & {"spec", "teacher", "inputs"}
        if unknown:
            raise KDError(
                "inputs-unused",
                f"{', '.join(sorted(unknown))} is no argument of the build",
                where="CompressAtEnd",
                fix="pass target=, task=, gates= and other arguments of kdcompile.build",
            )
        if loss is not None:
            self.options["task"] = with_loss(self.options.get("task"), loss)
        self.built: api.Built | None = None
        self.form: Callable[[Any], Any] = lambda samples: samples

    @property
    def kind(self) -> str:
        """The kind of the task."""
        task = self.options.get("task", Task().kind)
        return str(task if isinstance(task, str) else task.get("kind", Task().kind))

    def refuse_early(self, processes: int, splits: Mapping[str, Any]) -> None:
        """Refuse what would fail after hours of training.

        Args:
            processes: how many train together.
            splits: the data sets that the trainer has, by the name of the split.

        Raises:
            KDError: `fit-distributed` or `data-split`.
        """
        if processes > 1:
            raise KDError(
                "fit-distributed",
                f"{processes} processes train together, and a build is one of its own",
                where="CompressAtEnd",
                fix="call kdcompile.build(teacher=...) after the training, in one process",
            )
        self._splits(splits)

    def compress(self, network: "nn.Module", splits: Mapping[str, Any]) -> api.Built:
        """Build from the trained network; `built` keeps the result.

        Raises:
            KDError: those of `kdcompile.build`; `data-split`.
        """
        data = self.data | {split: self.form(one) for split, one in self._splits(splits).items()}
        self.built = api.build(teacher=network, data=data, **self.options)
        return self.built

    def _splits(self, given: Mapping[str, Any]) -> dict[str, Any]:
        found = {split: self.data.get(split, given.get(split)) for split in SPLITS}
        missing = [split for split, one in found.items() if one is None]
        if missing:
            raise KDError(
                "data-split",
                f"the trainer has no data set for {missing[0]!r}",
                where="CompressAtEnd",
                fix=f"pass data={{{missing[0]!r}: ...}}, whose images no other split has",
            )
        return found


def with_loss(task: Any, loss: Loss) -> dict[str, Any]:
    """The task's section with the function as its loss.

    Raises:
        KDError: `loss-unused`, the task has a loss of its own; `loss-unnamed`, another process
            could not import the function.
    """
    section = {"kind": task} if isinstance(task, str) else dict(task or {})
    if section.get("kind") != DETECTION:
        raise KDError(
            "loss-unused",
            f"the task {section.get('kind')!r} trains with the losses of the task",
            where="CompressAtEnd, loss",
            fix="leave loss out, or pass a task of your own with this loss: "
            'task="file.py:Class", see docs/tasks.md',
        )
    module, name = loss.__module__, getattr(loss, "__qualname__", "")
    if module == "__main__" or not name.isidentifier():
        raise KDError(
            "loss-unnamed",
            f"{name or type(loss).__name__} is no function of a module",
            where="CompressAtEnd, loss",
            fix="define it with def in a module of its own, and import it from there",
        )
    return {**section, "loss": f"{module}:{name}"}
