"""Outputs of a network by PyTorch, in half precision and by ONNX Runtime, and their agreement."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcompile.onnx_graph.session import cpu_session
from kdcompile.tasks.agreement import agreement

Floats = NDArray[np.float32]


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
