"""The maps of a network by module name, in the forms in which its modules give them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.distill.views import Size, View

MOST_LEAD = 8  # class tokens and registers before the tokens of patches
USUAL_LEADS = (0, 1, 2, 5)  # none, a class token, with a distillation token, with four registers
FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)  # work on the last axis


@dataclass(frozen=True)
class FeatureMap:
    """What a module gives for one image.

    Args:
        name: of the module.
        channels: of the map.
        view: how the output becomes the map, tokens in their grid.
        size: of that map; None for tokens that lie in no grid.
        tokens: how many, class tokens included; None for maps.
        depth: how many leaf modules had run by then.
        is_leaf: whether it has no modules inside.
        is_output: whether it is of the shape of the network's output.
    """

    name: str
    channels: int
    view: View
    size: Size | None
    tokens: int | None
    depth: int
    is_leaf: bool
    is_output: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width; tokens one by one are a map of T x 1."""
        height, width = (self.tokens, 1) if self.tokens is not None else self.size or (1, 1)
        return self.channels, height, width


def feature_maps(model: nn.Module, example: Tensor) -> dict[str, FeatureMap]:
    """The maps and tokens of every module, in the order in which they are finished.

    What has another number of rows than the batch, such as the windows of Swin, is left out.

    Args:
        model: in inference mode.
        example: images [1, C, H, W].
    """
    reader = _Reader(len(example))
    handles = [
        module.register_forward_hook(partial(reader.hear, name))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            output = model(example)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor):
        return reader.found
    return {
        name: replace(found, is_output=reader.shapes[name] == output.shape)
        for name, found in reader.found.items()
    }


class _Reader:
    """Collects the maps of one forward pass."""

    def __init__(self, batch: int) -> None:
        self.found: dict[str, FeatureMap] = {}
        self.shapes: dict[str, torch.Size] = {}
        self._batch, self._depth = batch, 0
        self._last: dict[torch.Size, bool] = {}  # by shape: whether channels are the last axis
        self._grids: dict[Size, None] = {}

    def hear(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        is_leaf = next(module.children(), None) is None
        self._depth += is_leaf
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return
        if len(output) != self._batch:
            return
        if output.ndim == 3:
            lead, grid = self._grid(output.shape[1])
            view, channels, tokens = View(lead=lead, grid=grid), output.shape[2], output.shape[1]
        else:
            is_last = self._is_last(module, inputs, output, is_leaf)
            view, tokens = View(is_last=is_last), None
            channels, *size = view.maps(output).shape[1:]
            grid = (size[0], size[1])
            self._grids[grid] = None
        self.shapes[name] = output.shape
        self.found.pop(name, None)  # of a module that runs twice the last one counts
        self.found[name] = FeatureMap(name, channels, view, grid, tokens, self._depth, is_leaf)

    def _is_last(self, module: nn.Module, inputs: Any, output: Tensor, is_leaf: bool) -> bool:
        """Whether channels are the last axis: by the layer, else as what it reads has them."""
        shape = output.shape
        known = _of_layer(module, shape) if is_leaf else None
        if known is None:
            read = [x.shape for x in inputs if isinstance(x, Tensor) and x.ndim == 4]
            candidates = [shape, *read] if not is_leaf else [*read, shape]
            known = next((self._last[s] for s in candidates if s in self._last), False)
        self._last[shape] = known
        return known

    def _grid(self, tokens: int) -> tuple[int, Size | None]:
        """The leading tokens and the grid of the others: that of a map before, or a square."""
        grids = sorted((tokens - h * w, (h, w)) for h, w in self._grids if h * w > 1)
        fitting = [(lead, grid) for lead, grid in grids if 0 <= lead <= MOST_LEAD]
        if fitting:
            return fitting[0]
        for lead in USUAL_LEADS:
            side = round(max(tokens - lead, 0) ** 0.5)
            if side > 1 and side * side == tokens - lead:
                return lead, (side, side)
        return 0, None


def _of_layer(module: nn.Module, shape: torch.Size) -> bool | None:
    """Whether a layer's channels are the last axis; None of what works on any."""
    if isinstance(module, FIRST):
        return False
    if not isinstance(module, LAST):
        return None
    if isinstance(module, nn.Linear):
        return True
    width = module.normalized_shape[-1]
    if shape[1] == width == shape[-1]:  # a norm of channels first may derive from that of the last
        return "2d" not in type(module).__name__.lower()
    return shape[-1] == width
