"""Every staged student that can be drawn can be built and fits the teacher's output."""

import math
from random import Random

import pytest
import torch

from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.network_cost import Network
from kdcompile.models.cuts import Cut
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.base import identity
from kdcompile.search.spaces.staged import COARSER, DEEPEST, StagedSpace

BLOCKS = ["conv", "separable", "repvgg", "bottleneck"]


def _cuts(*ends):
    return [Cut(f"c{i}", *end) for i, end in enumerate(ends)]


CUTS = {
    "two": _cuts((1, 8, 1, 1), (2, 12, 1, 1)),
    "dilated": _cuts((1, 16, 2, 1), (2, 24, 2, 1), (4, 32, 3, 1), (4, 32, 3, 2)),
    "decoder": _cuts((2, 16, 1, 1), (4, 24, 1, 1), (8, 32, 1, 1)),  # whose output is finer
    "steep": _cuts((1, 8, 1, 1), (8, 16, 2, 1)),  # more than a stage can take at once
    "late": _cuts((1, 8, 1, 1), (1, 16, 2, 1)),  # pooled behind its last stage
    "idle": _cuts((1, 8, 1, 1), (2, 8, 0, 1)),  # a stage that only pools
}
OUTPUT = {"two": 2, "dilated": 4, "decoder": 2, "steep": 8, "late": 4, "idle": 2}


def _space(name="two", scales=(1.0, 0.75, 0.5), tile=4, head="dense", size=(24, 40), blocks=BLOCKS):
    stride = OUTPUT[name] if head == "dense" else 1
    return StagedSpace(CUTS[name], (1, 3, *size), 2, head, stride, tile, blocks, scales, seed=5)


def _drawn(space, number, seed=0):
    draw = Random(seed)
    found = space.corners()
    for _ in range(number):
        found += [space.random(draw), space.mutate(draw.choice(found), draw)]
        found.append(space.cross(draw.choice(found), draw.choice(found), draw))
    return found


@pytest.mark.parametrize("name", CUTS)
def test_every_student_has_the_teachers_output(name, tmp_path):
    space = _space(name)
    assert space.reaches
    image = torch.zeros(space.shape)
    cells = [math.ceil(side / space.output_stride) for side in space.shape[2:]]
    for architecture in _drawn(space, 12):
        student = student_from_architecture(None, architecture, tmp_path).eval()
        with torch.no_grad():
            assert list(student(image).shape) == [1, 2, *cells]


def test_a_pooled_head_has_one_output_for_each_class(tmp_path):
    space = _space("dilated", head="pooled")
    for architecture in _drawn(space, 6):
        student = student_from_architecture(None, architecture, tmp_path).eval()
        assert student(torch.zeros(space.shape)).shape == (1, 2)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_kernels_are_those_of_the_file(precision, tmp_path):
    space = _space("dilated")
    for architecture in _drawn(space, 2, seed=1)[-4:]:
        student = student_from_architecture(None, architecture, tmp_path).eval()
        network = Network(student, space.shape)
        written = kernels_of(network.model, space.shape, precision)
        own = space.kernels(architecture, precision)
        assert [(k.kind, k.macs) for k in own] == [(k.kind, k.macs) for k in written]


@pytest.mark.parametrize("name", ["dilated", "decoder"])
def test_choices_keep_to_the_teacher(name):
    space = _space(name)
    for architecture in _drawn(space, 60):
        total = 1 / architecture["input_scale"]
        for cut, stage in zip(space.cuts, architecture["stages"], strict=True):
            total *= stage["stride"]
            assert cut.stride <= total <= COARSER * cut.stride
            assert stage["width"] % 4 == 0
            assert stage["width"] <= cut.channels
            assert 1 <= stage["depth"] <= min(cut.depth, DEEPEST)
            assert stage["dilation"] in ({1, cut.dilation} if total == cut.stride else {1})
            assert stage["stride"] > 1 or stage["down"] == "stride"


def test_one_scale_and_one_block_are_all_there_is():
    for architecture in _drawn(_space("dilated", scales=[0.5], blocks=["separable"]), 30):
        assert architecture["input_scale"] == 0.5
        assert {stage["block"] for stage in architecture["stages"]} == {"separable"}


def test_a_tile_wider_than_the_layers_leaves_their_widths():
    space = _space("two", tile=64)
    assert space.widths == [[8], [12]]
    assert _space("two", tile=8).widths == [[8], [8]]


def test_an_output_that_is_out_of_reach_is_told():
    far = StagedSpace(CUTS["two"], (1, 3, 64, 64), 2, "dense", 32, 4, BLOCKS, [1.0], 0)
    assert not far.reaches


def test_the_same_draw_gives_the_same_students():
    one, two, other = (_drawn(_space("dilated"), 20, seed) for seed in (0, 0, 1))
    assert one == two != other
    assert len(set(map(identity, one))) > 40


def test_the_smallest_and_the_widest_are_corners(tmp_path):
    space = _space("dilated")
    macs = [sum(k.macs for k in space.kernels(a, "fp16")) for a in space.corners()]
    drawn = [sum(k.macs for k in space.kernels(a, "fp16")) for a in _drawn(space, 60)]
    assert min(macs) == min(drawn)
    assert max(macs) > sorted(drawn)[len(drawn) * 9 // 10]
