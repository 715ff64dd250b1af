"""Ablation: the change of a network's output when a part of it is replaced."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.distill.inherit.rows import sample
from kdcompile.models.dropped import members

POSITIONS = 1024  # an image
RIDGE = 1e-4  # relative to the mean square of an input
Hook = Callable[[nn.Module, Any, Tensor], Tensor | None]


class ReferenceOutputs:
    """A network in inference mode, and its outputs for some batches [B, C, h, w]."""

    def __init__(self, network: nn.Module, crops: Sequence[Tensor]) -> None:
        """Runs it once."""
        self.network, self.crops = network, crops
        whole = self.outputs()
        self._whole = whole
        spread = (whole - whole.mean()).square().sum()
        self._spread = spread.clamp(min=torch.finfo(torch.float32).tiny)

    def outputs(self) -> Tensor:
        """For all batches, float64 [images, values]."""
        with torch.no_grad():
            return torch.cat([self.network(batch).flatten(1) for batch in self.crops]).double()

    def change(self, hooks: Sequence[tuple[nn.Module, Hook]]) -> float:
        """Root of the squared change of the outputs over their variance.

        Args:
            hooks: modules, and what makes another output of theirs.
        """
        with ExitStack() as stack:
            for module, hook in hooks:
                stack.callback(module.register_forward_hook(hook).remove)
            moved = self.outputs()
        return float(((moved - self._whole).square().sum() / self._spread).sqrt())


def change_without(reference: ReferenceOutputs, name: str) -> float:
    """The change of the output where a part (`models.dropped`) is left out.

    It is replaced by the linear map of channels that is nearest to it on the batches, not by the
    identity: the layers behind are rebuilt too, and what they read can be any such map.

    Args:
        watched: the whole network.
        name: of the part.
    """
    network = reference.network
    gone = members(network, name)
    first, last = (network.get_submodule(path) for path in (gone[0], gone[-1]))
    given: list[Tensor] = []
    made: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        given.append(inputs[0])

    def keep_made(_: nn.Module, __: Any, output: Tensor) -> None:
        made.append(output.clone())

    with ExitStack() as stack:
        stack.callback(first.register_forward_hook(keep).remove)
        stack.callback(last.register_forward_hook(keep_made).remove)
        reference.outputs()
    weight, bias = _affine(given, made)
    given.clear()

    def replaced(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        x = given.pop().movedim(1, -1)
        return (x.double() @ weight + bias).to(output.dtype).movedim(-1, 1)

    return reference.change([(first, keep), (last, replaced)])


def _affine(given: Sequence[Tensor], made: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The least squares map between channels, in float64: weight [A, B] and bias [B]."""
    rows = []
    for values in (given, made):
        parts = [v.movedim(1, -1).flatten(0, -2) for v in values]
        picked = [
            part[sample(len(part), POSITIONS * len(v), n).to(part.device)]
            for n, (part, v) in enumerate(zip(parts, values, strict=True))
        ]
        rows.append(torch.cat(picked).double())
    means = [r.mean(0) for r in rows]
    x, y = (r - mean for r, mean in zip(rows, means, strict=True))
    gram = x.mT @ x
    load = (RIDGE * gram.diagonal().mean()).clamp(min=torch.finfo(torch.float32).tiny)
    gram.diagonal().add_(load)
    weight = torch.linalg.solve(gram, x.mT @ y)
    return weight, means[1] - means[0] @ weight
