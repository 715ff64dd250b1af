"""The space of a teacher's own layers: canonical, reproducible, and every student runs."""

import json
from random import Random

import pytest
import torch
from droppable_networks import Digits

from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import LayerSpace, architectures

SHAPE = [1, 1, 16, 16]


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Digits().eval()


@pytest.fixture(scope="module")
def space(teacher):
    return LayerSpace(teacher, SHAPE, 4, 7)


def _many(space, number=30):
    draw = Random(0)
    found = [space.random(draw) for _ in range(number)]
    found += [space.mutate(one, draw) for one in found[:number]]
    return found + [space.cross(*draw.sample(found, 2), draw) for _ in range(number)]


def test_every_student_runs_and_gives_an_output_of_the_teachers_size(space, teacher, tmp_path):
    for architecture in [*_many(space, 8), *space.corners()]:
        student = student_from_architecture(teacher, architecture, tmp_path).eval()
        assert student(torch.zeros(SHAPE)).shape == teacher(torch.zeros(SHAPE)).shape


def test_widths_are_tiles_or_the_teachers(space):
    for root, options in space.options.items():
        assert options == sorted(set(options))
        assert all(width % 4 == 0 or width == options[-1] for width in options), root
    assert {tuple(o) for o in space.options.values()} == {
        tuple(range(4, 17, 4)),
        tuple(range(4, 33, 4)),
    }


def test_uniform_is_the_family_shrink(space, teacher):
    for ratio in (1.0, 0.5, 0.25):
        (expected,) = architectures(teacher, SHAPE, 4, 7, [ratio])
        assert space.uniform(ratio) == expected | {"dropped": []}


def test_forms_are_canonical(space):
    for architecture in _many(space):
        again = space.architecture(space.widths(architecture), reversed(architecture["dropped"]))
        assert again == architecture
        assert json.loads(json.dumps(architecture)) == architecture


def test_a_dropped_convolution_ties_the_groups_on_both_sides(space):
    widths = {root: options[0] for root, options in space.options.items()}
    first = next(iter(widths))
    made = space.architecture(widths | {first: 12}, ["2"])
    other = space.architecture(widths | {first: 12} | {first + 1: 16}, ["2"])
    assert made["modules"]["6"]["in_channels"] == made["modules"]["0"]["out_channels"]
    assert not {"2", "3"} & set(made["modules"])
    assert made["modules"]["0"]["out_channels"] == 12
    assert made == other


def test_the_same_seed_gives_the_same_students_and_they_differ(space):
    assert _many(space) == _many(space)
    distinct = {json.dumps(a, sort_keys=True) for a in _many(space)}
    assert len(distinct) > 40
    assert {len(a["dropped"]) for a in _many(space)} == {0, 1, 2}


def test_a_mutation_changes_something_small(space):
    draw = Random(1)
    start = space.uniform(0.5)
    changed = [space.mutate(start, draw) for _ in range(40)]
    assert sum(one != start for one in changed) > 30
    for one in changed:
        moved = sum(one["modules"].get(n) != v for n, v in start["modules"].items())
        assert moved < len(start["modules"])


def test_a_cross_takes_from_both(space):
    wide, narrow = space.uniform(1.0), space.uniform(0.0, space.droppable)
    found = [space.cross(wide, narrow, Random(seed)) for seed in range(20)]
    assert all(set(one["dropped"]) <= set(space.droppable) for one in found)
    for one in found:
        for root, width in space.widths(one).items():
            assert width in (space.options[root][0], space.options[root][-1])


def test_corners_span_the_space(space):
    macs = [sum(k.macs for k in space.kernels(a, "fp16")) for a in space.corners()]
    others = [sum(k.macs for k in space.kernels(a, "fp16")) for a in _many(space)]
    assert macs[0] >= max(others)
    assert macs[-1] <= min(others)
