"""Find the channel groups whose width a network's own code asks for, by running narrower networks.

Only shapes are computed. `x.reshape(n, self.width, -1)` fails where the tensor got narrower, and
the group is frozen. Each group gets another share of its width, so that code in which two of them
must agree fails too.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from kdcompile.models.channel_groups import Channels, Layout, length
from kdcompile.models.examples import Example, output_sizes
from kdcompile.models.resize import architecture_of, copied, narrow, plain_kind

MOST_RUNS = 64  # then groups are no longer told apart
GOLDEN = (5**0.5 - 1) / 2  # its multiples are spread evenly between whole numbers


def fitted(
    model: nn.Module,
    example: Example,
    channels: Channels,
    heads: Sequence[tuple[Layout, Layout]],
) -> Channels:
    """The channels with which narrower networks run: groups that fail alone are frozen.

    Much code of attention takes the size of a head from what it reads (`C // heads`): where
    nothing fails once both are tied, they stay tied. Other code has widths in attributes: they
    follow the width that they equal, where that is what makes the network run.

    Args:
        model: in inference mode; not changed.
        example: its input tensors, or the shape of its one image.
        channels: of `model`; its frozen groups are added to.
        heads: of each split layer what it reads, and one head.
    """
    sizes = output_sizes(copied(model), example)

    def problem(made: Channels, widths: Mapping[int, int]) -> str | None:
        return _fails(model, example, made, widths, sizes)

    for made in _candidates(model, channels, heads):
        if problem(made, _narrower(made, _free(made))) is None:
            return _without_needless(made, problem)
    made = linked(model, channels)
    widths = _narrower(made, _free(made))
    search = _Search(made, lambda some: problem(made, {root: widths[root] for root in some}))
    search.run([*widths], made.split_roots())
    return _without_needless(made, problem)


def _candidates(
    model: nn.Module, channels: Channels, heads: Sequence[tuple[Layout, Layout]]
) -> Iterator[Channels]:
    """The channels, with heads tied, and both with numbers that follow widths."""
    yield channels
    tied = _tied(channels, heads)
    if tied.frozen == channels.frozen:
        yield tied
        yield linked(model, channels)
    else:  # heads that the widths of what they read would hold may have numbers of their own
        yield linked(model, channels)
        yield tied
    yield linked(model, tied)


def linked(model: nn.Module, channels: Channels) -> Channels:
    """A copy in which whole numbers of the network's own modules follow the widths they equal.

    `self.head_dim = 64` is one, or the first of `self.shape = (64, 1, 1)`, where something in that
    module or beside it is 64 channels wide; heads come before what they are in.
    """
    made = _copied(channels)
    wide, split = _by_length(made), made.split_roots()
    for path, module in model.named_modules():
        found = {}
        for name, value in _numbers(module) if plain_kind(module) is None else ():
            for around in (path, path.rpartition(".")[0]):
                inside = f"{around}." if around else ""
                alike = [v for layer, v in wide.get(value, ()) if layer.startswith(inside)]
                if alike:
                    found[name] = min(alike, key=lambda layout: layout[0][0] not in split)
                    break
        if found:
            made.attributes[path] = found
    return made


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Whole numbers over 1 among a module's attributes; `shape.0` is the first of several."""
    for name, value in vars(module).items():
        several = value if isinstance(value, list | tuple) else ()
        for found, number in [(name, value), *((f"{name}.{n}", v) for n, v in enumerate(several))]:
            if type(number) is int and number > 1:
                yield found, number


def _by_length(channels: Channels) -> dict[int, list[tuple[str, Layout]]]:
    """Layouts of layers that are not frozen, and each of their runs, with the layer's name."""
    found: dict[int, list[tuple[str, Layout]]] = {}
    for name, layer in channels.layers.items():
        for layout in (layer.inputs, layer.outputs):
            runs = tuple((channels.root(group), n, each) for group, n, each in layout)
            for one in dict.fromkeys((runs, *((run,) for run in runs))):
                if any(group not in channels.frozen for group, _, _ in one):
                    found.setdefault(length(one), []).append((name, one))
    return found


def _without_needless(
    channels: Channels, problem: Callable[[Channels, Mapping[int, int]], str | None]
) -> Channels:
    """Forget numbers that only happen to equal a width, by their names: it runs without."""
    widths = _narrower(channels, _free(channels))
    for name in sorted({name for named in channels.attributes.values() for name in named}):
        before = channels.attributes
        channels.attributes = {
            path: left
            for path, named in before.items()
            if (left := {n: layout for n, layout in named.items() if n != name})
        }
        if problem(channels, widths) is not None:
            channels.attributes = before
    return channels


def _free(channels: Channels) -> list[int]:
    """Groups that are not frozen, of all that layers and parameters have."""
    layouts = channels.layouts() + [layout for _, layout in channels.parameters.values()]
    roots = {channels.root(group) for layout in layouts for group, _, _ in layout}
    return sorted(roots - channels.frozen)


def _tied(channels: Channels, heads: Sequence[tuple[Layout, Layout]]) -> Channels:
    """A copy in which what a split layer reads is as many heads as fit into it."""
    made = _copied(channels)
    for read, head in heads:
        held = [made.root(group) for group, _, _ in made.expand(read)]
        if made.frozen.issuperset(held):
            why = (
                f"its heads are together as wide as what it reads, which stays: {made.why[held[0]]}"
            )
            made.freeze(head, why)
        else:
            made.unite(read, head * (length(read) // length(head)))
    made.settle()
    return made


def _copied(channels: Channels) -> Channels:
    """A copy that shares the graph's nodes."""
    nodes = {id(node): node for group in channels.nodes.values() for node in group}
    return copy.deepcopy(channels, nodes)


class _Search:
    """Which groups may be narrow together: `good`; the others are frozen."""

    def __init__(self, channels: Channels, fails: Callable[[set[int]], str | None]) -> None:
        self._channels, self._fails = channels, fails
        self._good: set[int] = set()
        self._runs = 0

    def run(self, groups: Sequence[int], split: set[int]) -> None:
        """First those that no operator splits, then the split ones by their size."""
        self._halve([root for root in groups if root not in split])
        by_size: dict[int, list[int]] = {}
        for root in groups:
            if root in split:
                by_size.setdefault(self._channels.size[root], []).append(root)
        for alike in by_size.values():
            # one stands for all: the same code splits every block
            problem = self._runs_with(alike[:1]) or self._runs_with(alike)
            if problem is not None:
                self._freeze(alike, problem)

    def _runs_with(self, groups: Sequence[int]) -> str | None:
        """Add groups to the good ones, or say why the network does not run with them."""
        self._runs += 1
        problem = self._fails(self._good | set(groups)) if groups else None
        if problem is None:
            self._good |= set(groups)
        return problem

    def _halve(self, groups: Sequence[int]) -> None:
        problem = self._runs_with(groups)
        if problem is None:
            return
        if len(groups) == 1 or self._runs > MOST_RUNS:
            self._freeze(groups, problem)
            return
        middle = len(groups) // 2
        self._halve(groups[:middle])
        self._halve(groups[middle:])

    def _freeze(self, groups: Sequence[int], problem: str) -> None:
        why = f"the network's own code asks for this width ({problem})"
        self._channels.freeze(tuple((root, 0, 0) for root in groups), why)


def _narrower(channels: Channels, roots: Sequence[int]) -> dict[int, int]:
    """A width for each group that has a smaller one: 0.3 to 0.8 of it, another for each."""
    found = {}
    for number, root in enumerate(roots):
        size, multiple = channels.size[root], channels.multiple[root]
        share = 0.3 + 0.5 * (GOLDEN * number % 1)
        width = max(round(size * share / multiple), 1) * multiple
        if width < size:
            found[root] = width
    return found


def _fails(
    model: nn.Module,
    example: Example,
    channels: Channels,
    widths: Mapping[int, int],
    sizes: Sequence[torch.Size],
) -> str | None:
    """Why a network does not run with some groups at other widths; None where it does."""

    def width(layout: Layout) -> int:
        return sum(widths.get(channels.root(group), size) * each for group, size, each in layout)

    made = copied(model)
    narrow(made, architecture_of(channels, width))
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)  # a failure is an answer here
    try:
        found = output_sizes(made, example)
    except Exception as error:  # whatever the network's own code raises
        return str(error).strip().partition("\n")[0] or type(error).__name__
    finally:
        log.setLevel(level)
    return None if found == sizes else "its output has another size"
