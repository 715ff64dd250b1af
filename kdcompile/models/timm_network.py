"""Networks of the package timm, as `timm:NAME` in a spec."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from kdcompile.core.errors import KDError, ToolMissingError, nearest

TIMM = "timm:"


def timm_factory(name: str, arguments: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """What makes `timm:NAME` with random weights.

    Args:
        name: with its prefix.
        arguments: of `timm.create_model`, such as `num_classes`.

    Raises:
        ToolMissingError: timm is not installed.
        KDError: `timm-unknown`.
    """
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise ToolMissingError(
            "timm-missing",
            f"{name} is a network of the package timm, which does not import: {error}",
            where=f"{name} in the spec",
            fix="pip install --no-deps timm torchvision",
        ) from error
    known, own = timm.list_models(), name.removeprefix(TIMM)
    if own.partition(".")[0] not in known:
        raise KDError(
            "timm-unknown",
            f"timm has no network {own!r}{nearest(own, known)}",
            where=f"{name} in the spec",
            fix="name one that timm.list_models() lists",
        )
    return partial(timm.create_model, own, pretrained=False, **arguments)


def timm_arguments(name: str, outputs: int, shape: Sequence[int]) -> dict[str, Any]:
    """The arguments by which a network has so many outputs and takes such inputs.

    Args:
        name: with its prefix.
        outputs: of its last layer.
        shape: of its input, [N, C, H, W].

    Raises:
        KDError: those of `timm_factory`.
    """
    found: dict[str, Any] = {"num_classes": outputs, "in_chans": shape[1]}
    sized = found | {"img_size": list(shape[2:])}
    try:
        timm_factory(name, sized)()
    except TypeError:  # one that takes any size has no such argument
        return found
    return sized
