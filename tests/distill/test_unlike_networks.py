"""Taps between networks of different families: which modules, in which form, at which size."""

import math

import pytest
import torch
from tiny_recipes import classes
from torch import nn
from unlike_networks import EXAMPLE, ChannelsLast, ViT, cnn

from kdcompile.core.errors import KDError
from kdcompile.distill.feature_maps import feature_maps
from kdcompile.distill.tap_pairs import resolve_taps
from kdcompile.distill.taps import Rewired, Tapped
from kdcompile.distill.train import Trainer
from kdcompile.distill.views import PLAIN, View


def _pairs(teacher, student, asked="auto"):
    return resolve_taps(teacher.eval(), student.eval(), EXAMPLE, asked)


def _sizes(taps, teacher, student):
    """Channels and size of both maps of each tap, as a recipe gets them."""
    views = ([t.teacher_view for t in taps], [t.student_view for t in taps])
    names = ([t.teacher for t in taps], [t.student for t in taps])
    seen = [
        Tapped(network, *each)(EXAMPLE)[1]
        for network, *each in zip((teacher, student), names, views, strict=True)
    ]
    return [tuple(tuple(m.shape[1:]) for m in pair) for pair in zip(*seen, strict=True)]


def test_a_vit_teaches_a_cnn_by_blocks_of_equal_depth():
    """Three stages of the CNN take three of the four blocks; the finer map is averaged."""
    teacher, student = ViT(16), cnn(4)
    taps = _pairs(teacher, student)
    assert [(t.teacher, t.student) for t in taps] == [
        ("blocks.1", "1"), ("blocks.2", "3"), ("blocks.3", "5"),
    ]  # fmt: skip
    assert [(t.teacher_channels, t.student_channels) for t in taps] == [(16, 4), (16, 8), (16, 16)]
    assert _sizes(taps, teacher, student) == [
        ((16, 8, 8), (4, 8, 8)), ((16, 8, 8), (8, 8, 8)), ((16, 4, 4), (16, 4, 4)),
    ]  # fmt: skip


def test_a_cnn_teaches_a_vit():
    taps = _pairs(cnn(8), ViT(16))
    assert [(t.teacher, t.student) for t in taps] == [
        ("1", "blocks.1"), ("3", "blocks.2"), ("5", "blocks.3"),
    ]  # fmt: skip
    assert [t.student_view.lead for t in taps] == [1, 1, 1]


def test_the_map_of_a_vit_is_its_patches_without_the_class_token():
    tokens = torch.randn(2, 65, 5)
    maps = View(lead=1, grid=(8, 8)).maps(tokens)
    assert maps.shape == (2, 5, 8, 8)
    assert torch.equal(maps[1, :, 2, 3], tokens[1, 1 + 2 * 8 + 3])
    halved = View(lead=1, grid=(8, 8), size=(4, 4)).maps(tokens)
    assert torch.allclose(halved[0, :, 0, 1], maps[0, :, :2, 2:4].mean((1, 2)))


@pytest.mark.parametrize(
    "view",
    [PLAIN, View(lead=1, grid=(8, 8)), View(lead=1, grid=(8, 8), size=(4, 4)), View(is_last=True)],
)
def test_a_map_becomes_the_output_again(view):
    output = torch.randn(2, 8, 8, 5) if view.is_last else torch.randn(2, 65, 5)
    back = view.output(view.maps(output), output)
    assert back.shape == output.shape
    if view.size is None:
        assert torch.equal(back, output)
    else:  # the class token stays, and so does the mean of the others
        assert torch.equal(back[:, 0], output[:, 0])
        assert torch.allclose(back[:, 1:].mean(1), output[:, 1:].mean(1), atol=1e-6)


def test_tokens_without_a_map_before_lie_in_a_square():
    class Unfolded(nn.Module):
        def __init__(self, more):
            super().__init__()
            self.unfold, self.embed = nn.Unfold(4, stride=4), nn.Linear(16, 6)
            self.more, self.act = more, nn.ReLU()

        def forward(self, x):
            x = self.embed(self.unfold(x).transpose(1, 2))
            return self.act(torch.cat([x[:, :1]] * self.more + [x], 1)).mean(1)

    found = feature_maps(Unfolded(1), EXAMPLE)["act"]
    assert (found.view.lead, found.size, found.channels) == (1, (4, 4), 6)
    found = feature_maps(Unfolded(3), EXAMPLE)["act"]  # 19 tokens
    assert found.size is None
    with pytest.raises(KDError, match="tokens without a grid") as caught:
        _pairs(Unfolded(3), cnn(4), [("act", "3")])
    assert caught.value.code == "tap-stride"
    _pairs(Unfolded(3), cnn(4), [("embed", "3")])  # the fix: tokens of the patches


def test_channels_last_are_maps():
    teacher, student = ChannelsLast(), cnn(4)
    maps = feature_maps(teacher, EXAMPLE)
    assert maps["blocks.1"].shape == maps["blocks.0.2"].shape == (6, 8, 8)
    assert maps["patches"].view == PLAIN
    (tap,) = _pairs(teacher, student)
    assert (tap.teacher, tap.student) == ("blocks.1.1", "3")
    assert _sizes([tap], teacher, student) == [((6, 8, 8), (8, 8, 8))]


def test_maps_of_other_sizes_are_paired_by_the_nearest():
    """No size in common: 16, 8, 4 here, and 5 there, with two modules."""
    odd = nn.Sequential(nn.Conv2d(1, 4, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 5), nn.Flatten())
    taps = _pairs(cnn(4), odd)
    assert [(t.teacher, t.student) for t in taps] == [("3", "0"), ("5", "1")]
    assert [t.student_view.size for t in taps] == [(5, 5), (4, 4)]


def test_named_modules_of_other_sizes_are_compared_at_the_coarser_one():
    (tap,) = _pairs(ViT(16), cnn(4), [("blocks.2.norm", "1")])
    assert (tap.teacher_view.size, tap.student_view.size) == ((8, 8), (8, 8))


def test_what_a_swap_leaves_as_it_is_is_not_averaged():
    network = cnn(4).eval()
    images = torch.randn(2, 1, 16, 16)
    rewired = Rewired(network, ["1"], EXAMPLE, [View(size=(4, 4))])
    assert torch.equal(rewired(images, {"1": lambda own: own}), network(images))
    changed = rewired(images, {"1": lambda own: own + 0})
    assert not torch.equal(changed, network(images))


@pytest.mark.parametrize("recipe", ["fitnet", "at", "cwd", "kr", "m2mkd", "spkd"])
@pytest.mark.parametrize("way", ["vit to cnn", "cnn to vit"])
def test_recipes_of_features_train_across_families(recipe, way, spec, tmp_path):
    networks = (ViT(16), cnn(4)) if way == "vit to cnn" else (cnn(8), ViT(16))
    sets = (f"distill.recipe={recipe}", "distill.steps=3", "distill.taps=auto")
    asked = spec("task.kind=classification", *sets)
    (tmp_path / "work").mkdir()
    state = Trainer(asked, *networks, classes(12), classes(6), tmp_path / "work").run()
    terms = state.metrics[-1]["terms"]
    assert len(terms) > 2
    assert all(math.isfinite(term) for term in terms.values())
