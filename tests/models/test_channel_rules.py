"""Ways of using channels that real backbones have: half of the channels are really left out."""

import pytest
import torch
from resized_networks import (
    Attention,
    Computed,
    Interleaved,
    Multiplied,
    Radix,
    Shaped,
    Shuffled,
    Unfolded,
    Wrapped,
)
from torch import nn

from kdcompile.distill.inherit import inherit
from kdcompile.distill.inherit.plan import kept_parameters, layer_plans
from kdcompile.distill.inherit.rows import grouped_weight, set_weight
from kdcompile.distill.inherit.slicing import slice_weights
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.models.channel_groups import ENDS
from kdcompile.models.channels import trace
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.search.spaces.pruned import students

SHAPE = (1, 3, 16, 16)


def _halved(teacher, folder):
    channels = trace(teacher, SHAPE)
    (made,) = students(channels, 1, 0, [0.5])
    return channels, student_from_architecture(teacher, made, folder).eval()


@pytest.mark.parametrize(
    "kind", [Multiplied, Unfolded, Radix, Shaped, Computed, Wrapped, Shuffled, Interleaved]
)
def test_a_student_of_the_channels_that_are_read_is_the_teacher(kind, tmp_path):
    """Every second channel of each group is read by nothing: leaving it out changes nothing."""
    torch.manual_seed(0)
    teacher = kind().eval()
    channels, student = _halved(teacher, tmp_path)
    free = {*range(len(channels.size))} - channels.frozen
    kept = {root: torch.arange(0, channels.size[root], 2) for root in free}
    plans = layer_plans(channels, kept, student)
    with torch.no_grad():
        for plan in plans:
            module, layer = teacher.get_submodule(plan.name), channels.layers[plan.name]
            if not layer.is_depthwise and type(module).__name__ != "Gained":
                weight = grouped_weight(module).clone()
                read = torch.zeros(weight.shape[0] * weight.shape[2])
                read[plan.inputs] = 1
                set_weight(module, weight * read.reshape(len(weight), 1, -1, 1))
            elif not layer.is_depthwise and module.in_channels > 3:
                # a standardised weight has no zeros: what it reads has
                stem = teacher.stem
                dead = torch.ones(stem.out_channels, dtype=torch.bool)
                dead[plan.inputs] = False
                stem.gain[dead] = stem.bias[dead] = 0
                module.weight[:, dead] = module.weight[:, ~dead]
            if plan.name == "query":  # which is multiplied with all of the keys' channels
                left = torch.ones(module.out_channels, dtype=torch.bool)
                left[plan.outputs] = False
                module.weight[left] = module.bias[left] = 0
        assert slice_weights(teacher, student, plans, kept_parameters(channels, kept)) == []
        x = torch.randn(2, *SHAPE[1:])
        found, wanted = student(x), teacher(x)
    assert {*channels.why.values()} <= {ENDS, "it is padding"}
    assert sum(p.numel() for p in student.parameters()) < 0.6 * sum(
        p.numel() for p in teacher.parameters()
    )
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("width", "blocks", "half"), [(12, 4, 8), (58, 3, 28)])
def test_channels_that_are_shuffled_again_and_again_get_fewer(width, blocks, half, tmp_path):
    """The second shuffle of 58 is cut inside a channel of the first: only the numbers are tied."""
    torch.manual_seed(0)
    teacher = Interleaved(width, blocks).eval()
    channels, student = _halved(teacher, tmp_path)
    assert {*channels.why.values()} == {ENDS}
    assert [of.weight.shape[:2] for of in student.blocks[:-1]] == [(half, half)] * (blocks - 1)
    assert student.head.in_channels < 1.2 * width
    (made,) = students(channels, 1, 0, [0.5])
    with torch.no_grad():
        report = inherit(teacher, student, made, [torch.randn(8, *SHAPE[1:]) for _ in range(2)])
        assert {layer["relative_error"] < 0.5 for layer in report["layers"]} == {True}
        x = torch.randn(2, *SHAPE[1:])
        found, wanted = student(x), teacher(x)
        onnx_from_module(student, tmp_path / "student.onnx", (SHAPE,) * 3)
    assert (found - wanted).std() < 0.5 * wanted.std()
    (ran,) = cpu_session(tmp_path / "student.onnx").run(None, {"image": x[:1].numpy()})
    assert torch.allclose(torch.from_numpy(ran), found[:1], atol=1e-5)


@pytest.mark.parametrize("kind", ["channels", "talking", "reduced"])
def test_heads_get_narrower_in_every_kind_of_attention(kind, tmp_path):
    teacher = Attention(kind).eval()
    channels, student = _halved(teacher, tmp_path)
    assert student.qkv.weight.shape == (48, 16)
    assert student.project.weight.shape == (16, 16)
    # heads stay as many, but for those between the two that mix them
    assert student.after.weight.shape == (4, 2 if kind == "talking" else 4)
    assert student(torch.randn(2, *SHAPE[1:])).shape == (2, 4)
    frozen = " ".join(channels.why.values())
    assert ("computes one matrix for each" in frozen) == (kind == "talking")


@pytest.mark.parametrize(("tile", "width"), [(8, 96), (16, 96), (32, 96), (64, 128)])
def test_heads_fill_tiles_together(tile, width):
    """Half of 48 channels are 24: four of them are 96, six tiles of 16."""
    channels = trace(Attention("channels", 192).eval(), SHAPE)
    made = students(channels, tile, 0, [0.5])[0]["modules"]
    assert made["project"] == {"in_features": width, "out_features": width}


def test_a_weight_that_is_used_from_outside_keeps_its_width(tmp_path):
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.head = nn.Linear(3, 32, bias=False), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = self.wide(x.movedim(1, -1)).relu()
            return self.head(nn.functional.linear(y, self.wide.weight.t()).movedim(-1, 1))

    channels, student = _halved(Transposed().eval(), tmp_path)
    assert student.wide.weight.shape == (32, 3)
    assert "linear" in channels.why[channels.root(channels.layers["wide"].outputs[0][0])]
