"""Kernels derived from the teacher equal those of the exported student."""

import dataclasses
import random

import pytest
import torch
from droppable_networks import Block, Mobile, ResNet, quarter_csrnet, trained
from torch import nn
from unshrunk_networks import ConvNeXt, Heads, Subclassed, ViT

from kdcompile.core.errors import KDError
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.network_cost import Network
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import LayerSpace
from kdcompile.search.spaces.pruned_kernels import Template

NETWORKS = {
    "csrnet": (quarter_csrnet, [1, 3, 32, 32], 3),
    "resnet": (ResNet, [1, 3, 16, 16], 2),
    "mobile": (Mobile, [1, 3, 16, 16], 2),
    "subclasses": (Subclassed, [1, 3, 16, 16], 0),
}


def _numbers(kernel):
    fields = dataclasses.asdict(kernel)
    for name in ("name", "nodes"):
        del fields[name]
    return fields | {name: list(fields[name].values()) for name in ("reads", "writes")}


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_students_own_kernels(name, tmp_path):
    network, shape, number = NETWORKS[name]
    torch.manual_seed(0)
    teacher = trained(network())
    space = LayerSpace(teacher, shape, 4, 0)
    widths = {root: random.Random(root).choice(free) for root, free in space.options.items()}
    architecture = space.architecture(widths, space.droppable[-number:])
    student = trained(student_from_architecture(teacher, architecture, tmp_path))
    model = onnx_from_module(student, tmp_path / "s.onnx", (shape, shape, shape))
    for kind in ("fp32", "fp16", "int8"):
        expected = [_numbers(k) for k in kernels_of(model, shape, kind)]
        assert [_numbers(k) for k in space.template.at(architecture, kind)] == expected
    assert len(architecture["dropped"]) == number


class Chain(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
            *(Block(8), nn.Conv2d(8, 1, 1)),
        )


@pytest.fixture(scope="module")
def template():
    torch.manual_seed(0)
    return Template.of(trained(Chain()), [1, 1, 8, 8])


def _modules(first, second):
    sides = {"0": (1, first), "2": (first, second), "4.c1": (second, 4), "4.c2": (4, second)}
    sides["5"] = (second, 1)
    return {
        name: {"in_channels": i, "out_channels": o, "groups": 1} for name, (i, o) in sides.items()
    }


def _architecture(modules, *dropped):
    return {"family": "shrink", "seed": 0, "modules": modules, "dropped": list(dropped)}


def test_by_hand(template):
    first, second, *_, last = template.at(_architecture(_modules(4, 6)))
    assert (first.macs, second.macs) == (64 * 9 * 4, 64 * 9 * 4 * 6)
    assert (first.read_bytes, first.written_bytes, second.read_bytes) == (256, 1024, 1024)
    assert second.weight_bytes == 4 * (6 * 4 * 9 + 6)
    assert (last.in_channels, last.out_channels, last.shape) == (6, 1, (1, 1, 8, 8))


def test_what_is_dropped_is_gone_and_its_readers_read_what_is_before(template):
    whole = template.at(_architecture(_modules(4, 4)))
    left = template.at(_architecture(_modules(4, 4), "2", "4"))
    assert [k.macs for k in left] == [whole[0].macs, whole[-1].macs]
    assert left[1].reads.keys() == left[0].writes.keys()


def test_a_narrower_layer_never_computes_or_moves_more(template):
    def total(width):
        kernels = template.at(_architecture(_modules(width, 8)))
        return sum(k.macs + k.read_bytes + k.written_bytes + k.weight_bytes for k in kernels)

    totals = [total(width) for width in range(1, 9)]
    assert totals == sorted(set(totals))


@pytest.mark.parametrize(
    ("architecture", "code"),
    [
        (_architecture(_modules(4, 6), "2"), "template-widths"),
        (
            _architecture(_modules(4, 6) | {"5": {"in_channels": 4, "out_channels": 1}}),
            "template-widths",
        ),
        ({"family": "staged"}, "template-family"),
        (_architecture(_modules(4, 4) | {"9": {"num_features": 4}}), "template-widths"),
        (_architecture(_modules(4, 4), "4.act"), "template-dropped"),
        (_architecture(_modules(4, 4), "9"), "template-dropped"),
    ],
    ids=["behind dropped", "contradiction", "family", "no layer", "not a part", "no module"],
)
def test_refusals(template, architecture, code):
    with pytest.raises(KDError) as refused:
        template.at(architecture)
    assert refused.value.code == code
    assert refused.value.fix
    if code == "template-dropped":  # which a search may end with
        assert "kdcompile search" not in refused.value.fix
        assert "staged" in refused.value.fix


def test_a_block_whose_nodes_the_simplifier_replaced_is_dropped_whole(tmp_path):
    """Those of a linear layer on channels-last maps are of no module in the file any more."""
    teacher, shape = ConvNeXt().eval(), [1, 3, 16, 16]
    space = LayerSpace(teacher, shape, 8, 0)
    assert space.droppable == ["blocks.0", "blocks.1"]
    for dropped in (["blocks.0"], ["blocks.0", "blocks.1"]):
        made = space.uniform(1.0, dropped)
        student = student_from_architecture(teacher, made, tmp_path).eval()
        own = kernels_of(Network(student, shape).model, shape, "fp32")
        assert [(k.kind, k.macs, k.shape) for k in space.kernels(made, "fp32")] == [
            (k.kind, k.macs, k.shape) for k in own
        ]


@pytest.mark.parametrize("kind", [ConvNeXt, ViT, Heads])
def test_tokens_are_priced_as_the_students_own_file_is(kind, tmp_path):
    """Where the file's nodes are not known to be a layer, its channels keep their width."""
    teacher, shape = kind().eval(), [1, 3, 16, 16]
    space = LayerSpace(teacher, shape, 8, 0)
    for made in [*space.corners(), space.random(random.Random(1))]:
        student = student_from_architecture(teacher, made, tmp_path).eval()
        own = kernels_of(Network(student, shape).model, shape, "fp32")
        found = space.kernels(made, "fp32")
        assert sum(k.macs for k in found) == sum(k.macs for k in own)


class Halves(nn.Module):
    """A block that puts two results side by side, as GhostNet's do."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        first = self.a(x)
        return x + torch.cat([first, self.b(first)], 1)


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_channels_of_two_groups_of_a_dropped_block_are_still_known(ratio, tmp_path):
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Halves(), nn.Conv2d(16, 4, 1))
    teacher, shape = trained(nn.Sequential(*body)), [1, 3, 16, 16]
    space = LayerSpace(teacher, shape, 2, 0)
    made = space.uniform(ratio, ["2"])
    assert made["modules"]["0"]["out_channels"] == 16 * ratio
    student = trained(student_from_architecture(teacher, made, tmp_path))
    own = kernels_of(Network(student, shape).model, shape, "fp32")
    assert [_numbers(k) for k in space.kernels(made, "fp32")] == [_numbers(k) for k in own]


def test_a_part_that_cannot_be_cut_out_is_never_dropped(monkeypatch):
    template = Template.of(ConvNeXt().eval(), [1, 3, 16, 16])
    monkeypatch.setattr("kdcompile.search.spaces.tensor_channels.scopes", lambda node: [])
    assert LayerSpace(ConvNeXt().eval(), [1, 3, 16, 16], 8, 0, template).droppable == []


def test_an_operator_that_no_rule_covers(template, monkeypatch):
    monkeypatch.setattr("kdcompile.search.spaces.tensor_channels.PASSING", set())
    with pytest.raises(KDError, match="Relu") as refused:
        Template(template._model, Chain().eval(), [1, 1, 8, 8])
    assert refused.value.code == "template-unknown"
    assert "staged" in refused.value.fix
