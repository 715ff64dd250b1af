"""Recipe `skt` against the paper's formulas in float64: the loss and every gradient."""

from itertools import combinations

import pytest
import torch
from map_recipes import made

from kdcompile.distill.recipe import LossInputs

# CSRNet's taps, narrower: channels of student and teacher, and the stride of the map
TAPS = ((2, 3, 1), (2, 4, 2), (3, 4, 4), (3, 5, 8), (2, 6, 8), (2, 3, 8))
STRIDE = 8
# of both images ceil(side / 8) x 8 is more than the side, and smaller windows would fit as well
IMAGES = [(49, 33), (20, 57), (64, 48)]


def _size(image, stride):
    """Sides of a map after poolings that round up."""
    height, width = image
    while stride > 1:
        height, width, stride = -(-height // 2), -(-width // 2), stride // 2
    return height, width


def _inputs(image, batch):
    random = torch.Generator().manual_seed(1)

    def draw(channels, stride):
        size = (batch, channels, *_size(image, stride))
        return torch.randn(size, generator=random, dtype=torch.float64)

    output, target, teacher = (draw(1, STRIDE) for _ in range(3))
    own = [draw(s, stride).relu() for s, _, stride in TAPS]
    theirs = [draw(t, stride).relu() for _, t, stride in TAPS]
    leaves = [m.requires_grad_() for m in (output, *own)]
    return LossInputs(leaves[0], target, teacher, leaves[1:], theirs)


def _adapted(maps, adapter):
    """A 1x1 convolution with bias, and ReLU."""
    linear = torch.einsum("oc,nchw->nohw", adapter.weight, maps)
    return (linear + adapter.bias.view(1, -1, 1, 1)).clamp(min=0)


def _distance(own, theirs):
    """Equation 3: the sum over images and pixels of 1 - the cosine over channels."""
    total = own.new_zeros(())
    for f, t in zip(own, theirs, strict=True):
        for i in range(f.shape[1]):
            for j in range(f.shape[2]):
                a, b = f[:, i, j], t[:, i, j]
                alive = bool(a.any()) and bool(b.any())
                total = total + 1 - ((a @ b) / (a.norm() * b.norm()) if alive else 0)
    return total


def _normal(image, window):
    """The first largest value of each window [C, P], with mean 0 and deviation 1 over pixels."""
    windows = [
        image[:, i : i + window, j : j + window].flatten(1)
        for i in range(0, image.shape[1], window)
        for j in range(0, image.shape[2], window)
    ]
    pooled = torch.cat([w.gather(1, w.argmax(1, keepdim=True)) for w in windows], 1)
    gap = pooled - pooled.mean(1, keepdim=True)
    return gap / ((gap**2).mean(1, keepdim=True) + 1e-5).sqrt()


def _relations(own, theirs, windows):
    """Equation 5 of one image: squared differences of the Grams of every pair of layers."""
    nets = [[_normal(m, k) for m, k in zip(net, windows, strict=True)] for net in (own, theirs)]
    total = own[0].new_zeros(())
    for i, j in combinations(range(len(windows)), 2):
        mine, other = (torch.einsum("ap,bp->ab", z[i], z[j]) / z[i].shape[1] for z in nets)
        total = total + ((mine - other) ** 2).sum()
    return total


def _paper(inputs, adapters):
    """L_h + L_s + 0.5 L_cos + 0.5 L_fsp as released, where a batch is one image; its mean else."""
    batch = len(inputs.student)
    maps = zip(inputs.student_features, adapters, strict=True)
    adapted = [_adapted(m, adapter) for m, adapter in maps]
    loss = ((inputs.student - inputs.target) ** 2).sum()
    loss = loss + ((inputs.student - inputs.teacher) ** 2).sum()
    for own, theirs in zip(adapted, inputs.teacher_features, strict=True):
        loss = loss + 0.5 * _distance(own, theirs)
    windows = [*(STRIDE // stride for *_, stride in TAPS), 1]
    for n in range(batch):
        own, theirs = (
            [m[n] for m in net]
            for net in ((*adapted, inputs.student), (*inputs.teacher_features, inputs.teacher))
        )
        loss = loss + 0.5 * _relations(own, theirs, windows)
    return loss / batch


@pytest.mark.parametrize(("image", "batch"), [(IMAGES[0], 1), (IMAGES[1], 2), (IMAGES[2], 1)])
def test_the_papers_loss_and_gradients(image, batch):
    inputs = _inputs(image, batch)
    shapes = [
        (own.shape, theirs.shape)
        for own, theirs in zip(inputs.student_features, inputs.teacher_features, strict=True)
    ]
    recipe = made("skt", shapes, reduction="paper")
    terms = recipe(inputs)
    assert recipe.weights == {"hard": 1.0, "count": 0.0, "soft": 1.0, "intra": 0.5, "inter": 0.5}
    loss = sum(recipe.weights[name] * value for name, value in terms.items())
    expected = _paper(inputs, recipe.adapters)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    leaves = [inputs.student, *inputs.student_features, *recipe.parameters()]
    found, truth = (torch.autograd.grad(value, leaves) for value in (loss, expected))
    for mine, true in zip(found, truth, strict=True):
        assert (mine - true).norm() <= 1e-12 * true.norm()
        assert true.norm() > 0
