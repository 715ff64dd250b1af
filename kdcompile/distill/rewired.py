"""Copies of a network that share its parameters, with other maps at some of its modules."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.distill.qad_modules import quantiser_of
from kdcompile.distill.taps import as_maps, as_output

Swap = Mapping[str, Callable[[Tensor], Tensor]]


class Rewired:
    """Runs a network with the outputs of some modules put through a function.

    It is a copy of the modules that shares the parameters (and the quantiser of a student that
    learns in int8) with the original and has buffers of its own. So the hooks of a `Tapped` hear
    nothing of it, and the running statistics of the original's batch norms are those of what runs
    through the original alone.

    Args:
        network: stays as it is.
        names: of the modules.
        example: images [1, C, H, W].
        training: whether the copy normalises by batch, as the student does while it is trained.

    Raises:
        KDError: `network-copy`.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], example: Tensor, *, training: bool = False
    ) -> None:
        self._network = _copied(network).eval()
        self._calls = dict.fromkeys(names, 0)
        self._swap: Swap = {}
        for name in self._calls:
            module = self._network.get_submodule(name)
            module._forward_hooks.clear()  # those of a `Tapped`, which came along
            module.register_forward_hook(self._hook(name))
        self._last: Mapping[str, int] = {}
        with torch.no_grad():
            self(example, {})
        # a module that is called more than once, such as a shared ReLU, is heard the last time
        self._last = dict(self._calls)
        self._network.train(training)

    def _hook(self, name: str) -> Callable[[nn.Module, object, Tensor], Tensor | None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
            self._calls[name] += 1
            if name not in self._swap or self._calls[name] != self._last[name]:
                return None
            swapped = self._swap[name](as_maps(output))
            return as_output(swapped, output).to(output.dtype)

        return hook

    def __call__(self, images: Tensor, swap: Swap) -> Tensor:
        """The output for images of any floating type.

        Args:
            images: [N, C, H, W].
            swap: by name, what becomes of a module's maps (`as_maps`) before the rest of the
                network sees them; modules that are not named go on as they are.
        """
        for name in self._calls:
            self._calls[name] = 0
        self._swap = swap
        output: Tensor = self._network(images.to(next(self._network.parameters()).dtype))
        self._swap = {}
        return output


def _copied(network: nn.Module) -> nn.Module:
    kept = [*network.parameters(), quantiser_of(network)]
    try:
        return copy.deepcopy(network, {id(part): part for part in kept if part is not None})
    except (TypeError, RuntimeError) as error:  # a lock, an open file, a tensor with a history
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KDError(
            "network-copy",
            f"a {type(network).__name__} cannot be copied: {reason}",
            where="[distill] recipe",
            fix="keep what copy.deepcopy refuses out of the module's attributes, "
            "or use recipe kd, which needs no copy",
        ) from error
