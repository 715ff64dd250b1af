"""`CompressAtEnd`, a callback of Lightning's Trainer that builds from what `fit` has trained."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdcompile.core.errors import KDError
from kdcompile.core.optional import need
from kdcompile.integrations.at_end import AtEnd, Loss

if TYPE_CHECKING:
    from torch import nn

    from kdcompile.api import Built

Callback: Any = need("lightning.pytorch", "lightning", "CompressAtEnd").Callback


class CompressAtEnd(Callback):  # type: ignore[misc]  # Lightning is optional
    """Compress the trained network at the end of `fit`; `built` is the result.

        trainer = Trainer(callbacks=[CompressAtEnd("net", task="classification", target="jetson")])

    The data are those of the loaders of `fit` and of `test_dataloader()`, as `kdcompile.build`
    takes data sets: images before normalisation, without random transforms. `data` replaces any.
    """

    def __init__(
        self,
        network: str | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        loss: Loss | None = None,
        **options: Any,
    ) -> None:
        """Check the options before the training.

        Args:
            network: attribute of the LightningModule, with dots: the network whose output the task
                describes; by default its only child with parameters.
            data: splits, and other fields such as `mean` and `std`, as of `kdcompile.build`.
            loss: the function that the detector was trained with, `loss(output, boxes)`.
            **options: other arguments of `kdcompile.build`: target, task, gates, out, track, ...

        Raises:
            KDError: those of `AtEnd`.
        """
        super().__init__()
        self._network, self._at_end = network, AtEnd(data, loss, options)

    @property
    def built(self) -> "Built | None":
        """The result of the build, once `fit` is over."""
        return self._at_end.built

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse early what would fail after the training.

        Raises:
            KDError: `network-unnamed`, those of `AtEnd.refuse_early`.
        """
        network_of(pl_module, self._network)
        self._at_end.refuse_early(trainer.world_size, _splits(trainer, pl_module, loads=False))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Build, unless the training was interrupted.

        Raises:
            KDError: those of `kdcompile.build`.
        """
        if not trainer.interrupted:
            network = network_of(pl_module, self._network)
            self._at_end.compress(network, _splits(trainer, pl_module))


def network_of(module: Any, name: str | None) -> "nn.Module":
    """The network in a LightningModule.

    Raises:
        KDError: `network-unnamed`, there is none of that name, or not only one.
    """
    children = {
        own: child
        for own, child in module.named_children()
        if any(True for _ in child.parameters())
    }
    if name is None and len(children) == 1:
        return next(iter(children.values()))  # type: ignore[no-any-return]
    named = dict(module.named_modules())
    if name is None or name not in named:
        what = "has several networks" if name is None else f"has no network {name!r}"
        raise KDError(
            "network-unnamed",
            f"{type(module).__name__} {what}: {', '.join(children) or 'none'}",
            where="CompressAtEnd, network",
            fix='name the attribute whose output the task describes: CompressAtEnd("NAME", ...)',
        )
    return named[name]  # type: ignore[no-any-return]


def _splits(trainer: Any, module: Any, loads: bool = True) -> dict[str, Any]:
    """The loaders of the trainer by split; what it has not, or has several of, is absent.

    `loads`: else the test loader is not made, and its source stands for it.
    """
    found = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders}
    test = _test_source(trainer, module)
    if test is not None and loads:
        if test is trainer.datamodule:
            test.setup("test")
        test = test.test_dataloader()
    several = {**found, "test": test}
    return {
        split: loader[0] if isinstance(loader, list) else loader
        for split, loader in several.items()
        if loader is not None and not (isinstance(loader, list) and len(loader) != 1)
    }


def _test_source(trainer: Any, module: Any) -> Any:
    """The data module or the module, whichever has a `test_dataloader()`, or None."""
    from lightning.pytorch.utilities.model_helpers import is_overridden

    for source in (trainer.datamodule, module):
        if source is not None and is_overridden("test_dataloader", source):
            return source
    return None
