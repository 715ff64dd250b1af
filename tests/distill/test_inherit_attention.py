"""Heads that shrink are inherited in the basis in which the kept channels say the most."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.distill.inherit import inherit
from kdcompile.distill.inherit.attention import Heads, find_heads, turned
from kdcompile.models.channels import trace
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures

WIDTH, HEADS, SHAPE = 32, 2, (1, 3, 16, 16)
KINDS = ("fused", "apart", "scaled", "normed", "uncalled")
LEFT = {"normed", "uncalled"}  # whose basis stays


class Attention(nn.Module):
    """A block of attention: one layer for queries, keys and values or three, or a norm between."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.size = kind, WIDTH // HEADS
        self.patch, self.norm = nn.Conv2d(3, WIDTH, 4, 4), nn.LayerNorm(WIDTH)
        if kind == "apart":
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        else:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.project, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        n, t, width = x.shape
        y = self.norm(x)
        if self.kind == "apart":
            q, k, v = (
                m(y).view(n, t, HEADS, width // HEADS).transpose(1, 2)
                for m in (self.q, self.k, self.v)
            )
        else:
            made = functional.linear(y, self.qkv.weight, self.qkv.bias)
            q, k, v = (
                (made if self.kind == "uncalled" else self.qkv(y))
                .reshape(n, t, 3, HEADS, -1)
                .permute(2, 0, 3, 1, 4)
            )
        if self.kind == "normed":
            q, k = (functional.normalize(m, dim=-1) for m in (q, k))
        if self.kind == "scaled":  # by a number that stays the teacher's
            z = (q @ k.transpose(-2, -1) * self.size**-0.5).softmax(-1) @ v
        else:
            z = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.project(z.transpose(1, 2).reshape(n, t, -1))
        logits: Tensor = self.head(x.mean(1))
        return logits


def teacher_of(kind: str) -> Attention:
    """Its heads have a few strong directions each, and so has what runs past them."""
    torch.manual_seed(0)
    teacher = Attention(kind).eval()
    with torch.no_grad():
        few = torch.randn(WIDTH, 6) / 6**0.5
        for layer in (teacher.patch, teacher.project):
            layer.weight.copy_(
                (few @ torch.randn(6, layer.weight[0].numel()) / 5).view_as(layer.weight)
            )
            layer.bias.zero_()
        makers = [teacher.q, teacher.k, teacher.v] if kind == "apart" else [teacher.qkv]
        for layer in makers:
            rows = layer.weight.view(-1, WIDTH // HEADS, WIDTH)
            for head in rows:
                turn = torch.linalg.qr(torch.randn(WIDTH // HEADS, WIDTH // HEADS))[0]
                strength = 3.0 * 0.6 ** torch.arange(WIDTH // HEADS)
                head.copy_(turn @ (strength[:, None] * torch.randn_like(head) / 2))
    return teacher


def crops(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, *SHAPE[1:], generator=generator) for _ in range(8)]


def found_heads(teacher: nn.Module) -> list[Heads]:
    channels = trace(teacher, SHAPE)
    narrowed = {
        channels.root(run[0]): torch.tensor([1, 4, 5, 9, 12])
        for layer in channels.layers.values()
        for run in layer.inputs
        if run[1] == WIDTH // HEADS
    }
    return [*find_heads(channels, narrowed)]


def test_heads_are_found() -> None:
    for kind, makers in {"fused": ("qkv",), "apart": ("q", "k", "v")}.items():
        (heads,) = found_heads(teacher_of(kind))
        assert (heads.makers, heads.reader) == (makers, "project")
        assert (heads.count, heads.size) == (HEADS, WIDTH // HEADS)


@pytest.mark.parametrize("kind", KINDS)
def test_another_basis_is_the_same_network_or_is_not_taken(kind: str) -> None:
    teacher = teacher_of(kind)
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    found, done = turned(teacher, found_heads(teacher), crops())
    assert len(done) == (kind not in LEFT)
    x = torch.cat(crops(1))
    torch.testing.assert_close(found(x), teacher(x), atol=1e-4, rtol=1e-3)
    changed = {n for n, v in found.state_dict().items() if not torch.equal(v, state[n])}
    assert bool(changed) == bool(done)
    assert all(torch.equal(v, state[n]) for n, v in teacher.state_dict().items())


def test_the_kept_channels_of_a_turned_head_give_its_scores() -> None:
    """As well as any five channels can: by the singular values of queries times keys."""
    teacher = teacher_of("fused")
    (heads,) = found_heads(teacher)
    network, _ = turned(teacher, [heads], crops())
    x = torch.cat(crops())
    with torch.no_grad():
        y = network.norm(network.patch(x).flatten(2).transpose(1, 2)).flatten(0, 1)
        q, k, _ = network.qkv(y).view(len(y), 3, HEADS, -1).permute(1, 2, 0, 3).double()
        k = k - k.mean(1, keepdim=True)
        full = q @ k.transpose(1, 2)
        kept = q[..., heads.kept] @ k[..., heads.kept].transpose(1, 2)
    best = torch.linalg.svdvals(full)[:, len(heads.kept) :].square().sum(1)
    missing = (full - kept).square().sum((1, 2))
    torch.testing.assert_close(missing, best, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LEFT])
def test_a_student_of_smaller_heads_starts_nearer(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(kind)
    architecture = architectures(teacher, SHAPE, 1, 0, [0.5])[0]
    x, errors = torch.cat(crops(9)), []
    with torch.inference_mode():
        wanted = teacher(x)
    for _ in range(2):
        student = student_from_architecture(teacher, architecture, Path())
        report = inherit(teacher, student, architecture, crops())
        of_project = {layer["name"]: layer["relative_error"] for layer in report["layers"]}
        with torch.inference_mode():
            error = (student.eval()(x) - wanted).norm() / (wanted - wanted.mean(0)).norm()
        errors.append((of_project["project"], float(error)))
        monkeypatch.setattr("kdcompile.distill.inherit.find_heads", lambda *_: [])
    assert errors[0][0] < 0.8 * errors[1][0]
    assert errors[0][1] < errors[1][1]
