"""Feature maps by module name: tokens as maps, and networks with other maps at some modules."""

import math
import threading

import pytest
import torch
from tiny_recipes import CLASSES, classes
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.distill.feature_maps import feature_maps
from kdcompile.distill.qad import make_quantisable
from kdcompile.distill.qad_modules import quantiser_of
from kdcompile.distill.tap_pairs import resolve_taps
from kdcompile.distill.taps import Rewired, Tapped
from kdcompile.distill.train import Trainer
from kdcompile.distill.views import PLAIN

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
    maps = PLAIN.maps(tokens)
    assert maps.shape == (2, 8, TOKENS, 1)
    assert torch.equal(maps[1, :, 3, 0], tokens[1, 3])
    assert torch.equal(PLAIN.output(maps, tokens), tokens)
    tapped = Tapped(Transformer(8, 0), ["first.act"])
    _, (map_,) = tapped(torch.zeros(1, 1, 16, 16))
    assert map_.shape == (1, 8, TOKENS, 1)


def test_taps_are_found_by_the_number_of_tokens():
    example, teacher = torch.zeros(1, 1, 16, 16), Transformer(12, 0)
    assert feature_maps(teacher, example)["first.act"].shape == (12, TOKENS, 1)
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


IMAGES = torch.linspace(-1, 1, 2 * 16).reshape(2, 1, 4, 4)


class Twice(nn.Module):
    """A residual block whose one ReLU runs twice, as those of torchvision do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return 2 * self.relu(self.second(self.relu(self.first(x))) + x)


def test_a_map_is_replaced_for_what_follows():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    rewired, heard = Rewired(net, ["1"], IMAGES), []
    assert torch.equal(rewired(IMAGES, {}), net(IMAGES))

    def swap(own):
        heard.append(own)
        return own + 1

    assert torch.equal(rewired(IMAGES, {"1": swap}), net[2](net[1](net[0](IMAGES)) + 1))
    assert torch.equal(heard[0], net[1](net[0](IMAGES)))
    assert torch.equal(rewired(IMAGES, {}), net(IMAGES))


def test_a_module_that_runs_twice_is_heard_the_last_time():
    net = Twice()
    given = torch.full((2, 1, 4, 4), 3.0)
    assert torch.equal(Rewired(net, ["relu"], IMAGES)(IMAGES, {"relu": lambda _: given}), 2 * given)
    heard = []
    Rewired(net, ["relu"], IMAGES)(IMAGES, {"relu": lambda own: heard.append(own) or own})
    assert len(heard) == 1
    assert torch.equal(2 * heard[0], net(IMAGES))


def test_parameters_are_shared_and_hooks_and_statistics_are_not():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    tapped = Tapped(net, ["2"])
    rewired = Rewired(net, ["2"], IMAGES, training=True)
    tapped(IMAGES)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    output = rewired(IMAGES, {"2": lambda own: own})
    assert not tapped._maps
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    output.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        net[3].weight.zero_()
    assert (rewired(IMAGES, {}) == net[3].bias).all()


def test_a_student_that_is_quantised_later_is_so_in_the_copy(spec):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
    make_quantisable(spec("quantize.qad=true"), net, 16)
    rewired = Rewired(net, ["1"], torch.zeros(1, 1, 16, 16))
    assert torch.equal(rewired(IMAGES, {}), net(IMAGES))
    quantiser = quantiser_of(net)
    quantiser.on = True
    assert torch.equal(rewired(IMAGES, {}), net(IMAGES))
    rewired(IMAGES, {}).sum().backward()
    assert quantiser.log_scale.grad is not None


def test_a_network_that_cannot_be_copied_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    net.lock = threading.Lock()
    with pytest.raises(KDError) as caught:
        Rewired(net, ["0"], IMAGES)
    assert caught.value.code == "network-copy"
    assert "lock" in caught.value.message
    del net.lock  # the fix
    Rewired(net, ["0"], IMAGES)
