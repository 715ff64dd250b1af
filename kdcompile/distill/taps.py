"""Feature maps of networks by module name: read, paired by stride, and replaced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError, nearest

if TYPE_CHECKING:
    from kdcompile.distill.training_context import TrainingContext
import copy
from collections.abc import Mapping

from kdcompile.distill.evaluate import in_inference
from kdcompile.distill.qad_modules import quantiser_of

Swap = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Tap:
    """A pair of modules whose outputs are compared, and the channels of both."""

    teacher: str
    student: str
    teacher_channels: int
    student_channels: int


def as_maps(output: Tensor) -> Tensor:
    """Feature maps as they are; a transformer's tokens [N, T, C] as maps [N, C, T, 1]."""
    return output.transpose(1, 2).unsqueeze(3) if output.ndim == 3 else output


def as_output(maps: Tensor, output: Tensor) -> Tensor:
    """Maps in the form of the module's output that `as_maps` made them of."""
    return maps.squeeze(3).transpose(1, 2) if output.ndim == 3 else maps


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of the named modules during a forward pass; the hooks leave no trace."""
    features: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        features[name] = output

    with ExitStack() as hooks:
        for name in names:
            module = model.get_submodule(name)
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        yield features


class Tapped(nn.Module):
    """A network that gives its output and the maps of some of its modules, by `as_maps`.

    Hooks stay on the network until `release`, so that a compiled or captured forward pass holds
    them. The network's parameters keep their own names: read its `state_dict`, not this one's.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], *, blocks: bool = False) -> None:
        """Hook the named modules; with `blocks` no gradient flows from a tap to what follows."""
        super().__init__()
        self.network, self._names, self._blocks = network, tuple(names), blocks
        self._maps: dict[str, Tensor] = {}
        self._handles = [
            network.get_submodule(name).register_forward_hook(self._hook(name))
            for name in self._names
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, object, Tensor], Tensor | None]:
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
            self._maps[name] = as_maps(output)
            return output.detach() if self._blocks else None

        return keep

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output, and the maps in the order of the names."""
        output: Tensor = self.network(images)
        maps = [self._maps[name] for name in self._names]
        self._maps.clear()
        return output, maps

    def release(self) -> nn.Module:
        """The network without the hooks."""
        for handle in self._handles:
            handle.remove()
        return self.network


def feature_shapes(model: nn.Module, example: Tensor) -> dict[str, tuple[int, int, int]]:
    """Channels, height and width of every leaf module's maps, in order of execution.

    Tokens [N, T, C] are maps of T x 1.
    """
    leaves = [
        name for name, module in model.named_modules() if name and not list(module.children())
    ]
    with torch.no_grad(), captured(model, leaves) as features:
        model(example)
    maps = {
        name: as_maps(value)
        for name, value in features.items()
        if isinstance(value, Tensor) and value.ndim in (3, 4)
    }
    return {name: (value.shape[1], value.shape[2], value.shape[3]) for name, value in maps.items()}


def find_taps(setting: "TrainingContext", options: Distill) -> list[Tap]:
    """`resolve_taps` for the networks and crops of a training.

    Raises:
        KDError: `tap-missing` or `tap-stride`.
    """
    with in_inference(setting.student), setting.autocast():
        example = setting.example(options.crop)
        return resolve_taps(setting.teacher, setting.student, example, options.taps)


def resolve_taps(
    teacher: nn.Module, student: nn.Module, example: Tensor, asked: str | list[tuple[str, str]]
) -> list[Tap]:
    """The tap pairs, named by the spec or found by stride.

    Raises:
        KDError: `tap-missing` or `tap-stride`.
    """
    shapes_t, shapes_s = feature_shapes(teacher, example), feature_shapes(student, example)
    names = _auto(shapes_t, shapes_s) if isinstance(asked, str) else asked
    taps = []
    for name_t, name_s in names:
        for owner, name, known in (("teacher", name_t, shapes_t), ("student", name_s, shapes_s)):
            if name not in known:
                raise KDError(
                    "tap-missing",
                    f"the {owner} has no feature map {name!r}{nearest(name, known)}",
                    where="[distill] taps",
                    fix=f"one of {', '.join(known)}",
                )
        at, also = shapes_t[name_t], shapes_s[name_s]
        if at[1:] != also[1:]:
            raise KDError(
                "tap-stride",
                f"{name_t} is {at[1]}x{at[2]} where {name_s} is {also[1]}x{also[2]}",
                where="[distill] taps",
                fix="pair modules of equal stride",
            )
        taps.append(Tap(name_t, name_s, at[0], also[0]))
    return taps


def _auto(
    teacher: dict[str, tuple[int, int, int]], student: dict[str, tuple[int, int, int]]
) -> list[tuple[str, str]]:
    """For each run of equal size the last map and, in long runs, the middle one, in order."""
    runs_t, runs_s = _runs(teacher), _runs(student)
    pairs = []
    for size, of_teacher in runs_t:
        match = next((names for s, names in runs_s if s == size), None)
        if match is None:
            continue
        runs_s = [run for run in runs_s if run[1] is not match]
        if min(len(of_teacher), len(match)) >= 8:
            pairs.append((of_teacher[len(of_teacher) // 2], match[len(match) // 2]))
        pairs.append((of_teacher[-1], match[-1]))
    if not pairs:
        raise KDError(
            "tap-stride",
            "teacher and student share no feature map size",
            where='[distill] taps = "auto"',
            fix="name the pairs, or give the student the teacher's strides",
        )
    return pairs


def _runs(shapes: dict[str, tuple[int, int, int]]) -> list[tuple[tuple[int, int], list[str]]]:
    """Consecutive maps of one size, without the network's output itself."""
    found: list[tuple[tuple[int, int], list[str]]] = []
    for name, (_, height, width) in list(shapes.items())[:-1]:
        if not found or found[-1][0] != (height, width):
            found.append(((height, width), []))
        found[-1][1].append(name)
    return found


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
