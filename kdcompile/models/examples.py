"""Example inputs of a network: its tensors in the order of its arguments, or one image's shape."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

Inputs = Tensor | tuple[Tensor, ...]
Example = Sequence[int] | Inputs


def inputs_of(given: Example) -> tuple[Tensor, ...]:
    """The tensors to call a network with.

    Args:
        given: the shape of one image [N, C, H, W], the one tensor, or all of them in the order of
            the network's arguments.
    """
    if isinstance(given, Tensor):
        return (given,)
    if all(isinstance(value, Tensor) for value in given):
        return tuple(value for value in given if isinstance(value, Tensor))
    return (torch.zeros(*(int(size) for size in given if not isinstance(size, Tensor))),)


def moved_to(network: nn.Module, given: Example) -> tuple[Tensor, ...]:
    """The tensors on the device of the network's parameters."""
    device = next((p.device for p in network.parameters()), None)
    return tuple(value.to(device) for value in inputs_of(given))


def output_sizes(network: nn.Module, given: Example) -> list[torch.Size]:
    """The sizes of everything that a network gives, from a run on tensors without values."""
    inputs = moved_to(network, given)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made = network.eval()(*(mode.from_tensor(value) for value in inputs))
    return [value.shape for value in tree_leaves(made) if isinstance(value, Tensor)]
