"""Parts of a network that a student can drop: each is replaced by the identity.

Two kinds: a residual block, and a convolution that keeps channels and size, with the normalisation
and the activation behind it. The first is near the identity already; of the second, the layer
behind must learn to read other channels, so the student's two groups have to be equally wide.
"""

import copy
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from kdcompile.models.examples import Example, inputs_of
from kdcompile.models.resize import BATCH_NORMS, replace_module

if TYPE_CHECKING:
    from kdcompile.models.channel_groups import Channels

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def droppable(teacher: nn.Module, example: Example) -> list[str]:
    """The parts, in order of execution: blocks by their module, pairs by their convolution.

    A block is the innermost module that gives back its input, where that is not negative, once
    all its parameters are zero. Convolutions inside a block are not listed. A part runs once,
    takes one tensor, and the network runs without it.

    Args:
        teacher: in inference mode; not changed.
        example: its input tensors, or the shape of its one image; only blocks are computed at it,
            the network's sizes are inferred.
    """
    network = copy.deepcopy(teacher).cpu().requires_grad_(False)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        inputs = [mode.from_tensor(value) for value in inputs_of(example)]
        seen, sizes = _observe(network, inputs)
    kept = {name: both for name, both in seen.items() if both[0] == both[1]}
    # the copy may have kept what it computed of no values
    blocks = [name for name in kept if _returns_input(teacher.get_submodule(name), kept[name][0])]
    blocks = [b for b in blocks if not any(other.startswith(f"{b}.") for other in blocks)]
    pairs = [
        name
        for name in kept
        if _is_pair(network, name) and not any(name.startswith(f"{b}.") for b in blocks)
    ]
    found = [name for name in seen if name in {*blocks, *pairs}]
    with mode:
        return [name for name in found if _runs_without(network, name, inputs, sizes)]


def members(network: nn.Module, name: str) -> list[str]:
    """The modules that go with a part: the block, or a convolution and what is right behind it."""
    owner, _, leaf = name.rpartition(".")
    if not isinstance(network.get_submodule(name), CONVOLUTIONS):
        return [name]
    names = list(dict(network.get_submodule(owner).named_children()))
    found = [name]
    for kinds in (BATCH_NORMS, ACTIVATIONS):
        behind = names[names.index(leaf) + len(found) :][:1]
        path = f"{owner}.{behind[0]}" if owner and behind else "".join(behind)
        if behind and isinstance(network.get_submodule(path), kinds):
            found.append(path)
    return found


def drop(network: nn.Module, names: Iterable[str]) -> None:
    """Replace parts by the identity, in place."""
    for path in [path for name in names for path in members(network, name)]:
        replace_module(network, path, nn.Identity())


def tied(channels: "Channels", names: Iterable[str]) -> dict[int, int]:
    """Groups that must be equally wide: each one's root, and the root that leads its set.

    Args:
        channels: of the whole network.
        names: dropped parts; a convolution's input is then what its readers read.
    """
    leaders: dict[int, int] = {}

    def leader(root: int) -> int:
        while leaders.setdefault(root, root) != root:
            root = leaders[root]
        return root

    for layer in [channels.layers[name] for name in names if name in channels.layers]:
        before, after = (channels.root(v[0][0]) for v in (layer.inputs, layer.outputs))
        leaders[leader(after)] = leader(before)
    return {root: leader(root) for root in leaders}


def is_gone(name: str, gone: Iterable[str]) -> bool:
    """Whether a module is one of the replaced ones or inside one."""
    return any(name == other or name.startswith(f"{other}.") for other in gone)


def _observe(
    network: nn.Module, inputs: Sequence[Tensor]
) -> tuple[dict[str, tuple[torch.Size, torch.Size]], list[torch.Size]]:
    """Input and output sizes of each module that runs once on one tensor; the outputs' sizes."""
    found: dict[str, list[tuple[torch.Size, torch.Size]]] = {}

    def hook(name: str, _: nn.Module, given: tuple[object, ...], made: object) -> None:
        tensors = [*given, made]
        sizes = [value.shape for value in tensors if isinstance(value, Tensor)]
        whole = len(given) == 1 and len(sizes) == 2
        found.setdefault(name, []).append((sizes[0], sizes[1]) if whole else _UNLIKE)

    with ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(partial(hook, name)))
        made = network(*inputs)
    return {name: calls[0] for name, calls in found.items() if len(calls) == 1}, _sizes(made)


_UNLIKE = (torch.Size([1]), torch.Size())


def _sizes(made: object) -> list[torch.Size]:
    return [value.shape for value in tree_leaves(made) if isinstance(value, Tensor)]


def _returns_input(module: nn.Module, size: torch.Size) -> bool:
    if not any(True for _ in module.parameters()):
        return False
    blank = copy.deepcopy(module).cpu()
    x = torch.rand(size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
        return torch.equal(blank(x.clone()), x)  # it may work in place


def _is_pair(network: nn.Module, name: str) -> bool:
    module = network.get_submodule(name)
    owner = name.rpartition(".")[0]
    if not isinstance(module, CONVOLUTIONS) or module.in_channels != module.out_channels:
        return False
    if module.groups > 1 or not isinstance(network.get_submodule(owner), nn.Sequential):
        return False
    return isinstance(network.get_submodule(members(network, name)[-1]), ACTIVATIONS)


def _runs_without(
    network: nn.Module, name: str, inputs: Sequence[Tensor], sizes: list[torch.Size]
) -> bool:
    """Whether the rest of the network gives outputs of the same sizes."""
    gone = members(network, name)
    before = [network.get_submodule(path) for path in gone]
    drop(network, [name])
    try:
        with torch.no_grad():
            return _sizes(network(*inputs)) == sizes
    except (AttributeError, RuntimeError, TypeError):  # its parts are used from outside
        return False
    finally:
        for path, module in zip(gone, before, strict=True):
            replace_module(network, path, module)
