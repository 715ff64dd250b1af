"""A reference network as an ONNX file, with one output or several."""

from pathlib import Path

import numpy as np
import onnx
import onnxslim
import torch
from onnx import ModelProto
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.core.files import replacing
from kdcompile.export.leftovers import prove_clean
from kdcompile.export.onnx_file import INPUT, onnx_from_module, quiet_exporter
from kdcompile.onnx_graph.opset import EXPORTED_OPSET, at_opset, restore_scopes
from kdcompile.onnx_graph.session import cpu_session

IR_VERSION = 10
TOLERANCE = 1e-3  # of the largest output: folded normalisations and another order of sums


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight so that activations keep their size (He et al. 2015), in place."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.01, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            # folded into a bias of zero, the simplifier would drop it
            nn.init.normal_(module.bias, std=0.1, generator=generator)
    return network.eval()


def write_onnx(
    network: nn.Module,
    path: Path,
    shape: tuple[int, int, int, int],
    outputs: tuple[str, ...],
    max_opset: int = EXPORTED_OPSET,
) -> ModelProto:
    """Write a network in evaluation mode: input `image` of one shape, outputs of these names.

    Raises:
        KDError: as `kdcompile.export.onnx_file.onnx_from_module`, which writes where there is one
            output; `export-failed` where a file does not give what PyTorch gives.
    """
    with replacing(path) as temporary:
        if len(outputs) == 1:
            shapes = (shape, shape, shape)
            return onnx_from_module(
                network, temporary, shapes, max_opset, IR_VERSION, output=outputs[0]
            )
        model = _several(network, shape, outputs, max_opset)
        onnx.save(model, temporary)
    return model


def _several(
    network: nn.Module, shape: tuple[int, ...], outputs: tuple[str, ...], max_opset: int
) -> ModelProto:
    """The same steps as for one output."""
    with quiet_exporter():
        program = torch.onnx.export(
            network,
            (torch.zeros(shape),),
            input_names=[INPUT],
            output_names=list(outputs),
            opset_version=EXPORTED_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "without a path the exporter returns its program"
    raw = program.model_proto
    model: ModelProto = onnxslim.slim(at_opset(raw, max_opset, IR_VERSION))
    onnx.checker.check_model(model, full_check=True)
    at_opset(model, max_opset, IR_VERSION)  # the simplifier must not have brought newer operators
    prove_clean(model, network)
    restore_scopes(model, raw)
    _prove_same(model, network, shape)
    return model


def _prove_same(model: ModelProto, network: nn.Module, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with torch.inference_mode():
        expected = [y.numpy() for y in network(torch.from_numpy(x))]
    for y, got in zip(expected, cpu_session(model).run(None, {INPUT: x}), strict=True):
        off = float(np.abs(got - y).max()) if got.shape == y.shape else float("inf")
        if not off <= TOLERANCE * float(np.abs(y).max()):
            raise KDError(
                "export-failed",
                f"the ONNX file differs from PyTorch by {off:.3g}",
                where=type(network).__name__,
                fix="pip install -U torch onnx onnxslim",
            )
