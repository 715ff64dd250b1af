"""Histograms of the inputs of a student's quantised layers, for the calibrators, in PyTorch."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdcompile.calib.histogram import Histogram
from kdcompile.calib.observers import find_calibrator
from kdcompile.calib.table import tensor_range
from kdcompile.distill.qad_layers import QadLayer


@torch.no_grad()
def observe(
    student: nn.Module, layers: Sequence[QadLayer], images: Iterable[Tensor]
) -> list[Histogram]:
    """A histogram for each activation scale, of what the layers read before it is rounded.

    The student runs in inference mode and in float32, quantised or not as it is.

    Args:
        student: left in the mode that it is in.
        layers: from `find_layers`.
        images: batches [N, C, H, W] on the student's device.

    Raises:
        KDError: `calib-nonfinite`.
    """
    histograms = [Histogram() for _ in range(1 + max(layer.tensor for layer in layers))]
    was_training = student.training
    student.eval()
    try:
        for batch in images:
            with torch.autocast(batch.device.type, enabled=False), _inputs(student, layers) as seen:
                student(batch.float())
            for tensor, values in seen:
                histograms[tensor].add(values.float().cpu().numpy())
    finally:
        student.train(was_training)
    return histograms


def chosen_scales(histograms: Iterable[Histogram], calibrator: str) -> list[float]:
    """The scale that a calibrator chooses for each tensor."""
    choose = find_calibrator(calibrator)
    return [tensor_range(choose(h), 0.0, h.minimum, h.maximum).scale for h in histograms]


@contextmanager
def _inputs(student: nn.Module, layers: Sequence[QadLayer]) -> Iterator[list[tuple[int, Tensor]]]:
    """(tensor, values) of each call; a tensor that two layers read is taken from the first."""
    seen: list[tuple[int, Tensor]] = []
    known: set[int] = set()

    def watch(name: str, tensor: int) -> object:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) not in known:
                known.add(id(inputs[0]))
                seen.append((tensor, inputs[0]))

        return student.get_submodule(name).register_forward_pre_hook(hook)

    handles = [
        watch(name, t) for name, t in {layer.module: layer.tensor for layer in layers}.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
