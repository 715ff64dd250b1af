"""How closely two runs of one network agree."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcompile.errors import KDError
from kdcompile.export.session import cpu_session

MAX_SQNR_DB = 200.0  # stands for "equal": JSON has no infinity

Floats = NDArray[np.float32]


def agreement(reference: Sequence[Floats], outputs: Iterable[Floats]) -> dict[str, float]:
    """The worst over images: `max_rel_error` = max|a-b| / max|a|, `sqnr_db`, and their number `n`.

    SQNR = 20 log10(||a|| / ||a-b||), capped at 200 dB.

    Raises:
        KDError: `parity-nonfinite`, or `parity-empty` for no images.
    """
    worst, sqnr, n = 0.0, MAX_SQNR_DB, 0
    for a, b in zip(reference, outputs, strict=True):
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise KDError(
                "parity-nonfinite",
                "the network's output holds NaN or infinity",
                where=f"image {n}",
                fix="check the weights; in fp16, a value over 65504 overflows",
            )
        a64, error = a.astype(np.float64), a.astype(np.float64) - b
        peak, noise = float(np.abs(a64).max()), float(np.linalg.norm(error))
        if noise > 0:
            worst = max(worst, float(np.abs(error).max()) / max(peak, 1e-30))
            ratio = max(float(np.linalg.norm(a64)), 1e-30) / noise
            sqnr = min(sqnr, 20 * float(np.log10(ratio)))
        n += 1
    if n == 0:
        raise KDError("parity-empty", "there is no image to compare on", fix="fill the val split")
    return {"max_rel_error": worst, "sqnr_db": sqnr, "n": n}


def torch_outputs(module: nn.Module, images: Iterable[Floats]) -> list[Floats]:
    """The module's float32 output for each image [1, C, H, W]."""
    with torch.inference_mode():
        return [module(torch.from_numpy(image)).numpy() for image in images]


def half_outputs(module: nn.Module, images: Iterable[Floats]) -> list[Floats]:
    """The same with weights, and what each layer gives, rounded to float16; sums stay float32.

    This is what a GPU stores. ONNX Runtime on a CPU removes the casts of a float16 file and keeps
    activations in float32, so it can show neither their rounding nor an overflow.
    """
    rounded = copy.deepcopy(module).half().float()

    def round_output(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.half().float()

    for layer in rounded.modules():
        if not list(layer.children()):
            layer.register_forward_hook(round_output)
    halves = (torch.from_numpy(image).half().float().numpy() for image in images)
    return torch_outputs(rounded, halves)


def onnx_outputs(path: Path, images: Iterable[Floats]) -> list[Floats]:
    """The same of an ONNX file, by ONNX Runtime on the CPU."""
    session = cpu_session(path)
    name = session.get_inputs()[0].name
    return [session.run(None, {name: image})[0] for image in images]


def parity(module: nn.Module, path: Path, images: Sequence[Floats]) -> dict[str, float]:
    """`agreement` of an ONNX file with the PyTorch module that it was made from."""
    return agreement(torch_outputs(module, images), onnx_outputs(path, images))
