"""Fp8 pairs: the grid, the numbers, and which GPUs a compiler takes them for."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx_graphs import branches, chain, images, residual, table_of

from kdcompile.backends.tensorrt_rtx_ import compile_check
from kdcompile.calib.fp8 import insert_fp8
from kdcompile.calib.qdq import insert_qdq
from kdcompile.calib.sensitivity import evaluator
from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.tasks.agreement import pooled_sqnr


def sqnr(a, b) -> float:
    sessions = [cpu_session(model, as_written=True) for model in (a, b)]
    return pooled_sqnr(*([s.run(None, {"image": x})[0] for x in images()] for s in sessions))


@pytest.mark.parametrize("build", [chain, residual, branches])
def test_it_is_close_to_float(build) -> None:
    model = build()
    fp8 = insert_fp8(model, table_of(model))
    onnx.checker.check_model(fp8, full_check=True)
    assert fp8.opset_import[0].version == 19
    assert 20 < sqnr(model, fp8) < 45


def test_scales_are_amax_over_448() -> None:
    model = chain(2)
    table, fp8 = table_of(model), insert_fp8(model, table_of(model))
    constants = {t.name: t for t in fp8.graph.initializer}
    scale = numpy_helper.to_array(constants["image_scale"])
    assert scale == pytest.approx(table.tensors["image"].amax / 448)
    weight = numpy_helper.to_array(constants["c1_w"])
    scales = numpy_helper.to_array(constants["c1_w_scale"])
    assert scales == pytest.approx(np.abs(weight).max(axis=(1, 2, 3)) / 448)
    zeros = [t for name, t in constants.items() if name.endswith("zero_point")]
    assert {t.data_type for t in zeros} == {TensorProto.FLOAT8E4M3FN}
    assert not any(any(t.raw_data) for t in zeros)


def test_an_outlier_hurts_it_less_than_int8() -> None:
    model = chain(4, outlier=2)
    table = table_of(model)
    only = {"layers": ["c2"]}
    assert sqnr(model, insert_fp8(model, table, **only)) > 3 + sqnr(
        model, insert_qdq(model, table, **only)
    )


def test_an_evaluation_computes_pairs_as_they_are_written() -> None:
    """ONNX Runtime's usual optimisations on a CPU give garbage for fp8."""
    model = chain(3)
    judge = evaluator(model, lambda: iter(images()), lambda _: 0.0)
    assert judge(insert_fp8(model, table_of(model))).sqnr_db > 20


def test_only_the_named_layers() -> None:
    model = chain(3)
    fp8 = insert_fp8(model, table_of(model), layers=["c1"])
    pairs = {n.input[0] for n in fp8.graph.node if n.op_type == "QuantizeLinear"}
    assert pairs == {"relu_of_c0", "c1_w"}
    with pytest.raises(KDError) as error:
        insert_fp8(model, table_of(model), layers=["out"])
    assert error.value.code == "calib-layer"


@pytest.mark.rtx
def test_tensorrt_rtx_takes_it_from_8_9_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    model = chain(2)
    onnx.save(insert_fp8(model, table_of(model)), tmp_path / "fp8.onnx")
    found = compile_check(tmp_path / "fp8.onnx", ("8.6", "8.9", "12.0"))
    assert [check["ok"] for check in found] == [False, True, True]
    (error,) = found[0]["errors"]
    assert "Cannot compile for target(s) sm86" in error["message"]
    assert "fp8_e4m3" in error["message"]
