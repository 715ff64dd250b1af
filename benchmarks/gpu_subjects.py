"""A tiny and a large case of every public kernel, for the smoke test and the dry run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

TEMPERATURE = 4.0
FLOOR = 1e-6  # that of the kernels' tests


@dataclass(frozen=True)
class Subject:
    """A kernel and its reference, as functions of the leaves and of the other tensors.

    size: the magnitude of the terms of the loss, as `check_kernel` has it. exact: equal bit by bit.
    """

    kernel: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    leaves: Sequence[Tensor]
    fixed: Sequence[Tensor] = field(default=())
    size: float = FLOOR
    exact: bool = False


@dataclass(frozen=True)
class Place:
    """Where a subject's tensors lie, in which type and format, and whether they are large."""

    device: str
    dtype: torch.dtype
    layout: torch.memory_format
    large: bool

    def draw(self, *shape: int) -> Tensor:
        """Random values; maps in the memory format."""
        values = torch.randn(shape, device=self.device).to(self.dtype)
        return values.contiguous(memory_format=self.layout) if len(shape) == 4 else values

    def maps(self) -> tuple[Tensor, Tensor]:
        """Two maps of one shape."""
        shape = (8, 64, 144, 192) if self.large else (2, 5, 6, 7)
        return self.draw(*shape), self.draw(*shape)


def _summed(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """A loss of several terms as their sum."""
    return lambda *tensors: torch.stack([t.sum() for t in function(*tensors)]).sum()


def _module(name: str) -> Any:
    return import_module(f"kdcompile.kernels.{name}")


def _pair(name: str, *options: Any, size: float = FLOOR) -> Callable[[Place], Subject]:
    """A loss of a student's and a teacher's maps."""

    def make(place: Place) -> Subject:
        module, (student, teacher) = _module(name), place.maps()
        kernel, reference = getattr(module, name), getattr(module, f"{name}_reference")
        return Subject(
            lambda s, t: kernel(s, t, *options), lambda s, t: reference(s, t, *options),
            [student], [teacher], size,
        )  # fmt: skip

    return make


def _kd_kl(place: Place) -> Subject:
    module, (student, teacher) = _module("kd_kl"), place.maps()
    rest = (None, 0, student.shape[1], None, False, False)
    return Subject(
        lambda s, t: module.kd_kl(s, t, TEMPERATURE),
        lambda s, t: module.kd_kl_reference(s, t, TEMPERATURE, *rest),
        [student], [teacher], TEMPERATURE**2,
    )  # fmt: skip


def _feature_mse(place: Place) -> Subject:
    module, (student, teacher) = _module("feature_mse"), place.maps()
    mask = torch.rand(student.shape[0], 1, *student.shape[2:], device=place.device)
    return Subject(
        lambda s, t, m: module.feature_mse(s, t, m, normalize=True),
        lambda s, t, m: module.feature_mse_reference(s, t, m, True),
        [student], [teacher, mask], 2 / student.shape[1],
    )  # fmt: skip


def _density_loss(place: Place) -> Subject:
    module, shape = _module("density_loss"), (4, 1, *((288, 384) if place.large else (9, 17)))
    student, target, teacher = (place.draw(*shape) for _ in range(3))
    return Subject(
        _summed(lambda s, y, t: module.density_loss(s, y, t)),
        _summed(lambda s, y, t: module.density_loss_reference(s, y, t, 8, "mean")),
        [student], [target.float(), teacher], 1.0,
    )  # fmt: skip


def _taps(place: Place) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Students, teachers, weights and biases of two taps; the second has half the side."""
    n, side = (4, (144, 192)) if place.large else (2, (8, 10))
    widths = ((16, 64), (64, 256)) if place.large else ((2, 4), (3, 8))
    sizes = [(side[0] // k, side[1] // k) for k in (1, 2)]
    students = [place.draw(n, s, *hw).relu() for (s, _), hw in zip(widths, sizes, strict=True)]
    teachers = [place.draw(n, t, *hw).relu() for (_, t), hw in zip(widths, sizes, strict=True)]
    weights = [torch.randn(t, s, device=place.device) / s**0.5 for s, t in widths]
    biases = [torch.randn(t, device=place.device) for _, t in widths]
    return students, teachers, weights, biases


def _adapter_cosine(place: Place) -> Subject:
    module, taps = _module("adapter_cosine"), _taps(place)
    student, teacher, weight, bias = (tensors[-1] for tensors in taps)
    return Subject(
        lambda s, w, b, t: module.adapter_cosine(s, t, w, b),
        lambda s, w, b, t: module.adapter_cosine_reference(s, t, w, b),
        [student, weight, bias], [teacher], 1.0,
    )  # fmt: skip


def _gram_relation(place: Place) -> Subject:
    module, (_, first, *_) = _module("gram_relation"), _taps(place)
    second = [place.draw(*t.shape) for t in first]
    return Subject(
        lambda a, b, *t: module.gram_relation([a, b], t),
        lambda a, b, *t: module.gram_relation_reference([a, b], t),
        second, first,
    )  # fmt: skip


def _skt_tap(place: Place) -> Subject:
    module, (students, teachers, weights, biases) = _module("skt_tap"), _taps(place)
    shape = students[1].shape
    densities = [place.draw(shape[0], 1, *shape[2:]) for _ in range(2)]

    def by(function: Callable[..., Any]) -> Callable[..., Tensor]:
        def loss(*tensors: Tensor) -> Tensor:
            s, w, b, (d, t1, t2, td) = tensors[:2], tensors[2:4], tensors[4:6], tensors[6:]
            intra, inter = function(s, (t1, t2), w, b, d, td)
            return intra.sum() + inter

        return loss

    return Subject(
        by(module.skt_tap), by(module.skt_tap_reference),
        [*students, *weights, *biases, densities[0]], [*teachers, densities[1]], 1.0,
    )  # fmt: skip


def _fake_quant(place: Place) -> Subject:
    module, (x, _) = _module("fake_quant"), place.maps()
    scale = torch.full((x.shape[1],), 0.02, device=place.device)
    return Subject(
        lambda v, s: module.fake_quant(v, s, axis=1),
        lambda v, s: module.fake_quant_reference(v, s, 1, 127),
        [x], [scale], exact=True,
    )  # fmt: skip


def _absmax_histogram(place: Place) -> Subject:
    module, (x, _) = _module("absmax_histogram"), place.maps()
    limit = torch.full((), 3.0, device=place.device)
    return Subject(
        lambda v, m: torch.cat([t.double().flatten() for t in module.absmax_histogram(v, m)]),
        lambda v, m: torch.cat(
            [t.double().flatten() for t in module.absmax_histogram_reference(v, m, 4096, None)]
        ),
        [], [x, limit], exact=True,
    )  # fmt: skip


def _crop_augment(place: Place) -> Subject:
    side = 256 if place.large else 12
    case = _module("crop_augment")._case(side, torch.device(place.device), place.dtype, None)
    return Subject(case.kernel, case.reference, [])


def _norm_direction(place: Place) -> Subject:
    module, (rows, width) = _module("norm_direction"), (8192, 512) if place.large else (5, 9)
    student, teacher, means = (place.draw(n, width) for n in (rows, rows, 7))
    labels = torch.randint(7, (rows,), device=place.device)
    return Subject(
        lambda s, t, m: module.norm_direction(s, t, m, labels),
        lambda s, t, m: module.norm_direction_reference(s, t, m, labels),
        [student], [teacher, means], 0.1,
    )  # fmt: skip


def _token_graph(place: Place) -> Subject:
    module, shape = _module("token_graph"), (2048, 128) if place.large else (9, 6)
    return Subject(
        lambda s, t: module.token_graph(s, t), lambda s, t: module.token_graph_reference(s, t),
        [place.draw(*shape)], [place.draw(*shape)], 20.0,
    )  # fmt: skip


SUBJECTS: dict[str, Callable[[Place], Subject]] = {  # the most important first
    "adapter_cosine": _adapter_cosine, "skt_tap": _skt_tap, "gram_relation": _gram_relation,
    "kd_kl": _kd_kl, "token_graph": _token_graph, "absmax_histogram": _absmax_histogram,
    "fake_quant": _fake_quant, "crop_augment": _crop_augment, "density_loss": _density_loss,
    "channel_kl": _pair("channel_kl", TEMPERATURE, size=TEMPERATURE**2),
    "feature_mse": _feature_mse, "attention_transfer": _pair("attention_transfer", "code"),
    "batch_relation": _pair("batch_relation", "spkd"), "norm_direction": _norm_direction,
}  # fmt: skip
