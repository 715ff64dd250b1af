"""What int8 saves in a layer and what a change of precision costs: predicted and measured."""

import pytest
from onnx_graphs import chain

from kdcompile.calib.costs import measured_costs, measured_reformat_ms, predicted_costs
from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.targets import load

SHAPE = [1, 3, 16, 16]


def test_predicted_costs_follow_the_sheet() -> None:
    model, target = chain(3, width=64), load("jetson")
    costs = predicted_costs(model, SHAPE, target)
    assert costs.basis == "predicted"
    assert all(
        costs.int8_ms[n] < costs.fp16_ms[n]
        for n in (layer.name for layer in quantised_layers(model))
    )
    elements = 64 * 16 * 16
    leaves = elements / (target.bandwidth_gbs * 1e6)
    enters = 3 * leaves + target.launch_us / 1000
    assert costs.reformat_ms(frozenset()) == 0
    assert costs.reformat_ms(frozenset({"c0"})) == pytest.approx(leaves)
    assert costs.reformat_ms(frozenset({"c1"})) == pytest.approx(leaves + enters)
    assert costs.latency_ms(set()) == pytest.approx(sum(costs.fp16_ms.values()))


def test_a_target_without_int8_is_refused() -> None:
    with pytest.raises(KDError) as error:
        predicted_costs(chain(2), SHAPE, load("cpu"))
    assert error.value.code == "mixed-target"
    assert "quantize.precision=auto" in error.value.fix


def profile(ms: float) -> list[dict]:
    return [
        {"name": "c0 + relu", "ms": ms, "onnx": ["c0", "relu_of_c0"]},
        {"name": "Reformatting CopyNode for relu_of_c0", "ms": 0.25, "onnx": None},
        {"name": "c1_w_QuantizeLinear + c1 || c2", "ms": 3 * ms, "onnx": ["c1", "c2"]},
        {"name": "image_fp16_cast", "ms": 0.75, "onnx": ["image_fp16_cast"]},
    ]


def test_measured_costs_come_from_the_kernels() -> None:
    model = chain(3)
    costs = measured_costs(model, profile(1.0), profile(2.0), reformat_ms=0.5)
    assert costs.int8_ms == {"c0": 1.0, "c1": 1.5, "c2": 1.5}
    assert costs.fp16_ms == {"c0": 2.0, "c1": 3.0, "c2": 3.0}
    assert costs.latency_ms({"c1"}) == 2 + 1.5 + 3 + 2 * 0.5
    assert measured_reformat_ms(model, profile(1.0)) == 0.5
    assert measured_reformat_ms(model, profile(1.0)[:1]) is None


def test_a_layer_that_the_profile_lacks_is_an_error() -> None:
    with pytest.raises(KDError, match="c3") as error:
        measured_costs(chain(4), profile(1.0), profile(2.0), 0.5)
    assert error.value.code == "mixed-profile"
    assert "predicted costs" in error.value.fix
