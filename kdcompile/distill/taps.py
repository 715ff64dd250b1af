"""Feature maps of networks by module name: read during a forward pass, and replaced."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.core.escape import first_line
from kdcompile.distill.qad_modules import quantiser_of
from kdcompile.distill.views import PLAIN, View
from kdcompile.models.rows import runs_alone

Swap = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Tap:
    """A pair of modules whose outputs are compared, and the channels and forms of both."""

    teacher: str
    student: str
    teacher_channels: int
    student_channels: int
    teacher_view: View = PLAIN
    student_view: View = PLAIN


class Tapped(nn.Module):
    """A network that gives its output and the maps of some of its modules.

    Hooks stay on the network until `release`, so that a compiled or captured forward pass holds
    them. The network's parameters keep their own names: read its `state_dict`, not this one's.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        views: Sequence[View] | None = None,
        *,
        blocks: bool = False,
    ) -> None:
        """Hook the named modules; with `blocks` no gradient flows from a tap to what follows.

        Args:
            network: stays as it is.
            names: of the modules.
            views: how the output of each becomes a map; plain ones by default.
            blocks: whether gradients stop at the taps.
        """
        super().__init__()
        self.network, self._blocks = network, blocks
        self._maps: dict[int, Tensor] = {}
        self._views = tuple(views or [PLAIN] * len(names))
        self._handles = [
            network.get_submodule(name).register_forward_hook(self._hook(place))
            for place, name in enumerate(names)
        ]

    def _hook(self, place: int) -> Callable[[nn.Module, object, Tensor], Tensor | None]:
        view = self._views[place]

        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
            self._maps[place] = view.maps(output)
            return output.detach() if self._blocks else None

        return keep

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output, and the maps in the order of the names.

        Of a network that runs each sample by itself a module is heard once a sample.
        """
        if len(images) > 1 and runs_alone(self.network):
            each = [self(image) for image in torch.split(images, 1)]
            together = zip(*(maps for _, maps in each), strict=True)
            return torch.cat([output for output, _ in each]), [torch.cat(m) for m in together]
        output: Tensor = self.network(images)
        maps = [self._maps[place] for place in range(len(self._views))]
        self._maps.clear()
        return output, maps

    def release(self) -> nn.Module:
        """The network without the hooks."""
        for handle in self._handles:
            handle.remove()
        return self.network


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
        views: how the output of each becomes a map; plain ones by default.
        training: whether the copy normalises by batch, as the student does while it is trained.

    Raises:
        KDError: `network-copy`, or `network-alone`.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        example: Tensor,
        views: Sequence[View] | None = None,
        *,
        training: bool = False,
    ) -> None:
        if runs_alone(network):
            raise KDError(
                "network-alone",
                f"a {type(network).__name__} runs each sample by itself: its maps cannot be put in "
                "place of another network's",
                where="[distill] recipe",
                fix="use a recipe that compares maps, such as fitnet, or none",
            )
        self._network = _copied(network).eval()
        self._calls = dict.fromkeys(names, 0)
        self._views = dict(zip(names, views or [PLAIN] * len(names), strict=True))
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
            view = self._views[name]
            maps = view.maps(output)
            swapped = self._swap[name](maps)
            if swapped is maps:  # also where it was averaged, which is not undone
                return None
            return view.output(swapped, output).to(output.dtype)

        return hook

    def __call__(self, images: Tensor, swap: Swap) -> Tensor:
        """The output for images of any floating type.

        Args:
            images: [N, C, H, W].
            swap: by name, what becomes of a module's maps before the rest of the
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
        reason = first_line(error)
        raise KDError(
            "network-copy",
            f"a {type(network).__name__} cannot be copied: {reason}",
            where="[distill] recipe",
            fix="keep what copy.deepcopy refuses out of the module's attributes, "
            "or use recipe kd, which needs no copy",
        ) from error
