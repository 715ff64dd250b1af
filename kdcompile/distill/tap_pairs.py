"""Pairs of modules whose maps are compared: named by the spec, or found by size and depth.

Networks of one family have maps of the same sizes: of each run of one size the last maps are
paired. Networks that share none, or of which one has tokens and the other maps, are paired by
stages: each stage of the one that has more of them with the stage of the other whose size is the
nearest, and where several fall to one stage, as for a ViT that has only one, at places of equal
depth in it. There the blocks of the networks are compared, not the layers inside them.
"""

from collections.abc import Iterator, Mapping
from math import log2
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError, nearest
from kdcompile.distill.evaluate import in_inference
from kdcompile.distill.feature_maps import FeatureMap, feature_maps
from kdcompile.distill.taps import Tap
from kdcompile.distill.views import PLAIN, Size

if TYPE_CHECKING:
    from kdcompile.distill.training_context import TrainingContext

Maps = Mapping[str, FeatureMap]
Pair = tuple[str, str]


def find_taps(setting: "TrainingContext", options: Distill) -> list[Tap]:
    """`resolve_taps` for the networks and crops of a training.

    Raises:
        KDError: `tap-missing` or `tap-stride`.
    """
    with in_inference(setting.student), setting.autocast():
        example = setting.example(options.crop)
        return resolve_taps(setting.teacher, setting.student, example, options.taps)


def resolve_taps(
    teacher: nn.Module, student: nn.Module, example: Tensor, asked: str | list[Pair]
) -> list[Tap]:
    """The tap pairs, named by the spec or found by size and depth.

    Raises:
        KDError: `tap-missing` or `tap-stride`.
    """
    maps_t, maps_s = feature_maps(teacher, example), feature_maps(student, example)
    if isinstance(asked, str):
        asked = _auto(maps_t, maps_s) or list(_by_stages(teacher, maps_t, student, maps_s))
        if not asked:
            raise KDError(
                "tap-stride",
                "teacher and student have no feature maps that could be compared",
                where='[distill] taps = "auto"',
                fix="name the pairs, or use a recipe that needs no taps, such as kd",
            )
    taps = []
    for name_t, name_s in asked:
        for owner, name, known in (("teacher", name_t, maps_t), ("student", name_s, maps_s)):
            if name not in known:
                raise KDError(
                    "tap-missing",
                    f"the {owner} has no feature map {name!r}{nearest(name, known)}",
                    where="[distill] taps",
                    fix=f"one of {', '.join(known)}",
                )
        taps.append(_tap(maps_t[name_t], maps_s[name_s]))
    return taps


def _tap(teacher: FeatureMap, student: FeatureMap) -> Tap:
    """The pair, compared at the coarser of both grids.

    Raises:
        KDError: `tap-stride`, tokens that lie in no grid beside other tokens or maps.
    """
    channels = teacher.channels, student.channels
    if teacher.tokens is not None and teacher.tokens == student.tokens:
        return Tap(teacher.name, student.name, *channels, PLAIN, PLAIN)
    if teacher.size is None or student.size is None:
        raise KDError(
            "tap-stride",
            f"{_said(teacher)} where {_said(student)}, and tokens without a grid are compared with "
            "as many tokens alone",
            where="[distill] taps",
            fix="pair other modules: maps, or tokens of the patches of an image",
        )
    views = teacher.view, student.view
    if teacher.size != student.size:
        size = _coarser(teacher.size, student.size)
        views = teacher.view.at(size), student.view.at(size)
    return Tap(teacher.name, student.name, *channels, *views)


def _said(found: FeatureMap) -> str:
    _, height, width = found.shape
    return f"{found.name} is {height}x{width}"


def _coarser(one: Size, other: Size) -> Size:
    return min(one[0], other[0]), min(one[1], other[1])


def _auto(teacher: Maps, student: Maps) -> list[Pair]:
    """For each run of equal size the last map and, in long runs, the middle one, in order.

    None where one network has tokens and the other maps.
    """
    if _has_tokens(teacher) != _has_tokens(student):
        return []
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
    return pairs


def _has_tokens(maps: Maps) -> bool:
    """Whether most layers give tokens."""
    leaves = [found for found in maps.values() if found.is_leaf]
    return 2 * sum(found.tokens is not None for found in leaves) > len(leaves)


def _runs(maps: Maps) -> list[tuple[Size, list[str]]]:
    """Consecutive maps of one size, without the network's output itself."""
    found: list[tuple[Size, list[str]]] = []
    for each in [each for each in maps.values() if each.is_leaf][:-1]:
        _, *size = each.shape
        if not found or found[-1][0] != tuple(size):
            found.append(((size[0], size[1]), []))
        found[-1][1].append(each.name)
    return found


def _by_stages(
    teacher: nn.Module, maps_t: Maps, student: nn.Module, maps_s: Maps
) -> Iterator[Pair]:
    """Pairs of the blocks of two networks, by stages of nearest size at equal depth."""
    stages_t, stages_s = _stages(teacher, maps_t), _stages(student, maps_s)
    swapped = len(stages_s) > len(stages_t)
    more, fewer = (stages_s, stages_t) if swapped else (stages_t, stages_s)
    groups: dict[Size, list[str]] = {}
    for size, blocks in more.items():
        if fewer:
            closest = min(fewer, key=lambda other: _apart(size, other))
            groups.setdefault(closest, []).append(blocks[-1])
    for size, own in groups.items():
        other = fewer[size]
        number = min(len(own), len(other))  # no block twice
        for place, one in enumerate(own[-number:], 1):
            pair = one, other[-(-place * len(other) // number) - 1]
            yield pair[::-1] if swapped else pair


def _apart(one: Size, other: Size) -> float:
    return abs(log2(one[0] * one[1]) - log2(other[0] * other[1]))


def _stages(network: nn.Module, maps: Maps) -> dict[Size, list[str]]:
    """The blocks of each size, in order; of those that end together the outermost.

    Blocks are what lies in a list or sequence of modules and in no other block; a network without
    such has all its modules as blocks.
    """
    parts = dict(network.named_modules())
    sized = [m for m in maps.values() if m.size not in (None, (1, 1)) and not m.is_output]
    blocks = [each for each in sized if _is_block(each.name, parts)] or sized
    stages: dict[Size, dict[int, str]] = {}
    for each in blocks:
        assert each.size is not None, "the others are left out"
        stages.setdefault(each.size, {})[each.depth] = each.name
    return {size: list(found.values()) for size, found in stages.items()}


def _is_block(name: str, parts: Mapping[str, nn.Module]) -> bool:
    """Whether a module lies in lists of modules alone, from the first list on."""
    lists = (nn.Sequential, nn.ModuleList)
    names = name.split(".")
    above = [parts[".".join(names[:n])] for n in range(len(names))]
    places = [n for n, module in enumerate(above) if isinstance(module, lists)]
    return bool(places) and all(isinstance(module, lists) for module in above[places[0] :])
