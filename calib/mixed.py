"""Automatic mixed precision: int8 where it pays and is accurate, fp16 elsewhere, in one ONNX file.

Int8 layers sit in float32 between explicit Q/DQ pairs, all else in float16, with explicit casts
where the two meet: opset 17's QuantizeLinear takes float32 alone, and a file that says every type
builds the same on every TensorRT since 8.0, weakly or strongly typed.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from onnx import ModelProto

from kdcompile.calib.costs import Costs
from kdcompile.calib.mixed_plan import MixedPlan, plan_mixed
from kdcompile.calib.precision_regions import Junctions
from kdcompile.calib.qdq import Storage, choose_layers, insert_qdq
from kdcompile.calib.sensitivity import Evaluate, Outcome, Sensitivity
from kdcompile.calib.table import CalibrationTable
from kdcompile.onnx_graph.fp16 import halve_nodes
from kdcompile.onnx_graph.norms import squares


def mixed_model(
    model: ModelProto,
    table: CalibrationTable,
    storage: Storage,
    quantised: Collection[str],
    residuals: Mapping[str, str] | None = None,
) -> ModelProto:
    """The network with the named layers in int8 and the others in float16; float32 outside.

    A norm's sums of squares stay float32 too.

    Args:
        model: float32, of opset 13 to 18.
        table: a range for the data input of each quantised layer.
        storage: of the quantised weights, see `insert_qdq`.
        quantised: names of layers; with none the network is all fp16.
        residuals: sums and their int8 terms, `residual.residual_branches` of the same layers.

    Raises:
        KDError: `calib-layer`, `calib-table`, `fp16-overflow` or `fp16-unsupported`.
    """
    paired = insert_qdq(model, table, storage, quantised, residuals)
    return halve_nodes(paired, Junctions(model).float32_nodes(quantised) | squares(model))


def mix(
    model: ModelProto,
    table: CalibrationTable,
    sensitivity: Sensitivity,
    costs: Costs,
    judge: tuple[Evaluate, Callable[[Outcome], bool]],
) -> MixedPlan:
    """Plan with the real networks: each set of layers is built and evaluated.

    ONNX Runtime on a CPU computes the float16 part in float32, so what is evaluated is the error of
    int8; that of float16 alone is the fp16 network's and is far smaller.

    Args:
        model: float32.
        table: its ranges.
        sensitivity: of the same model and table; orders the layers.
        costs: of its layers.
        judge: an evaluation (on validation images) and the limits that an outcome must keep.

    Raises:
        KDError: what `mixed_model` and the evaluation raise.
    """
    evaluate, keeps = judge
    names = [layer.name for layer in choose_layers(model, None)]
    by_name = {entry.layer: entry for entry in sensitivity.layers}
    plan = plan_mixed(
        {name: sensitivity.benefit(by_name[name]) for name in names},
        costs,
        Junctions(model).neighbours(),
        lambda chosen: keeps(evaluate(mixed_model(model, table, "int8", chosen))),
    )
    share = sum(by_name[name].macs_share for name in plan.quantised)
    return replace(plan, macs_share=share)
