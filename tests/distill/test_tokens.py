"""Transformers: tokens [N, T, C] are feature maps of T x 1 cells for every recipe."""

import math

import pytest
import torch
from tiny_recipes import CLASSES, classes
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.distill.taps import Tapped, as_maps, as_output, feature_shapes, resolve_taps
from kdcompile.distill.train import Trainer

TOKENS = 16


class Mixer(nn.Module):
    """Tokens see each other, then each one itself."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)
        self.across, self.act = nn.Linear(TOKENS, TOKENS), nn.GELU()

    def forward(self, x):
        x = x + self.across(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.act(self.out(x))


class Transformer(nn.Module):
    """Patches of 4x4 pixels of a 16x16 image, two mixers, the mean token, classes."""

    def __init__(self, width, seed):
        torch.manual_seed(seed)
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.first, self.second = Mixer(width), Mixer(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.second(self.first(x)).mean(1))


def test_tokens_are_maps_and_back():
    tokens = torch.randn(2, TOKENS, 8)
    maps = as_maps(tokens)
    assert maps.shape == (2, 8, TOKENS, 1)
    assert torch.equal(maps[1, :, 3, 0], tokens[1, 3])
    assert torch.equal(as_output(maps, tokens), tokens)
    tapped = Tapped(Transformer(8, 0), ["first.act"])
    _, (map_,) = tapped(torch.zeros(1, 1, 16, 16))
    assert map_.shape == (1, 8, TOKENS, 1)


def test_taps_are_found_by_the_number_of_tokens():
    example, teacher = torch.zeros(1, 1, 16, 16), Transformer(12, 0)
    assert feature_shapes(teacher, example)["first.act"] == (12, TOKENS, 1)
    (tap,) = resolve_taps(teacher, Transformer(8, 1), example, [("second.act", "second.act")])
    assert (tap.teacher_channels, tap.student_channels) == (12, 8)
    assert resolve_taps(teacher, Transformer(8, 1), example, "auto")[-1].teacher == "second.out"
    with pytest.raises(KDError) as caught:
        resolve_taps(teacher, Transformer(8, 1), example, [("first.across", "first.act")])
    assert caught.value.code == "tap-stride"


@pytest.mark.parametrize("recipe", ["trg", "at", "spkd", "fitnet", "m2mkd", "kr", "nd"])
def test_recipes_take_transformers(recipe, spec, tmp_path):
    taps = '[["first.act", "first.act"], ["second.act", "second.act"]]'
    asked = spec("task.kind=classification", f"distill.recipe={recipe}", "distill.steps=3",
                 f"distill.taps={taps}")  # fmt: skip
    networks = (Transformer(12, 0), Transformer(8, 1))
    (tmp_path / "work").mkdir()
    state = Trainer(asked, *networks, classes(12), classes(6), tmp_path / "work").run()
    terms = state.metrics[-1]["terms"]
    assert len(terms) > 2
    assert all(math.isfinite(term) for term in terms.values())
