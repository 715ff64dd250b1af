"""Q/DQ insertion, the table, and the calibrate stage's parts, on a small network."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from kdcompile.calib.calibrate import calibrate
from kdcompile.calib.collect import collect, tensors_to_observe
from kdcompile.calib.qdq import insert_qdq, quantise, weight_scales, weight_storage
from kdcompile.calib.table import CalibrationTable, tensor_range
from kdcompile.core import plugins
from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.splits import evenly
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.passes.calibrate import worst_sqnr

Size = int | str


def network(height: Size = 32, width: Size = 48, opset: int = 17) -> ModelProto:
    """conv-relu-pool, a residual of two convolutions on one tensor, a transposed one, 1x1 out."""
    rng = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        fan = np.prod(shape[1:])
        values = rng.standard_normal(shape) * np.sqrt(2 / fan) * np.exp(rng.standard_normal())
        return numpy_helper.from_array(values.astype(np.float32), name)

    node = helper.make_node
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], "first", **pads),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Conv", ["p1", "w2", "b2"], ["c2"], "left", **pads),
        node("Conv", ["p1", "w3"], ["c3"], "right", pads=[2, 2, 2, 2], dilations=[2, 2]),
        node("Add", ["c2", "c3"], ["sum"]),
        node("Relu", ["sum"], ["r2"]),
        node("ConvTranspose", ["r2", "w4"], ["c4"], "up", strides=[2, 2]),
        node("Relu", ["c4"], ["r4"]),
        node("Conv", ["r4", "w5", "b5"], ["o"], "output"),
        node("Relu", ["o"], ["density"]),
    ]
    constants = [
        weight("w1", 8, 3, 3, 3),
        weight("b1", 8),
        weight("w2", 8, 8, 3, 3),
        weight("b2", 8),
        weight("w3", 8, 8, 3, 3),
        weight("w4", 8, 4, 2, 2),
        weight("w5", 1, 4, 1, 1),
        numpy_helper.from_array(np.full(1, 4.0, np.float32), "b5"),
    ]
    value = helper.make_tensor_value_info
    result = value("density", TensorProto.FLOAT, [1, 1, None, None])
    body = helper.make_graph(
        nodes, "g", [value("image", TensorProto.FLOAT, [1, 3, height, width])], [result], constants
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def photos(n: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((1, 3, 32, 48), dtype=np.float32) for _ in range(n)]


def table_of(model: ModelProto, calibrator: str = "minmax") -> CalibrationTable:
    images = photos()
    names = [(f"p{i}", "0" * 64) for i in range(len(images))]
    return calibrate(model, "f" * 64, images, names, calibrator)


def test_ranges_are_those_of_the_tensors() -> None:
    model = network()
    assert tensors_to_observe(model) == ["image", "p1", "r2", "c2"]  # the last for its sum
    found = collect(model, photos(), ["image", "p1", "r2"])
    watched = network()
    watched.graph.output.append(helper.make_tensor_value_info("r2", TensorProto.FLOAT, None))
    session = cpu_session(watched)
    values = np.concatenate([session.run(["r2"], {"image": x})[0].ravel() for x in photos()])
    assert found["r2"].total == values.size
    assert found["r2"].amax == values.max()
    assert found["image"].minimum == min(x.min() for x in photos())


def test_the_output_layer_stays_in_float() -> None:
    names = [layer.node.name for layer in quantised_layers(network())]
    assert names == ["first", "left", "right", "up"]


@pytest.mark.parametrize("storage", ["int8", "float"])
def test_pairs_lie_on_the_inputs_of_layers_only(storage: str) -> None:
    model = network()
    result = insert_qdq(model, table_of(model), storage)
    makers = {o: n for n in result.graph.node for o in n.output}
    constants = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    axes = {"first": 0, "left": 0, "right": 0, "up": 1}
    for node in result.graph.node:
        if node.name in axes:
            data, weight = makers[node.input[0]], makers[node.input[1]]
            assert data.op_type == weight.op_type == "DequantizeLinear"
            assert constants[data.input[1]].shape == ()
            (axis,) = (a.i for a in weight.attribute)
            assert axis == axes[node.name]
            assert all(name in constants for name in node.input[2:])  # the bias, in float
        elif node.op_type in ("Relu", "Add", "MaxPool", "Conv"):
            assert all("quantized" not in name for name in node.input), node
    zeros = [constants[n.input[2]] for n in result.graph.node if "quantizeL" in n.op_type.lower()]
    assert all(z.dtype == np.int8 and not z.any() for z in zeros)
    activations = [n for n in result.graph.node if n.op_type == "QuantizeLinear"]
    assert len(activations) == (3 if storage == "int8" else 3 + 4)  # p1 is shared by two layers
    assert (constants["w5"] == numpy_helper.to_array(model.graph.initializer[6])).all()


def test_both_storages_give_the_same_and_int8_is_smaller() -> None:
    model = network()
    table = table_of(model)
    stored, paired = (insert_qdq(model, table, s) for s in ("int8", "float"))
    assert worst_sqnr(stored, paired, photos()) == 200.0
    assert "w2" not in {t.name for t in stored.graph.initializer}
    assert "w2" in {t.name for t in paired.graph.initializer}


@pytest.mark.parametrize("calibrator", plugins.names("calibrators"))
def test_int8_is_close_to_float(calibrator: str) -> None:
    model = network()
    quantised = insert_qdq(model, table_of(model, calibrator))
    assert 15 < worst_sqnr(model, quantised, photos()) < 60


def test_one_per_tensor_scale_is_worse() -> None:
    """Were the axis wrong, or the scale not per channel, the error would be like this."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((4, 5, 3, 3)) * 10.0 ** np.arange(4)[:, None, None, None]).astype(
        np.float32
    )
    errors = []
    for axis in (0, None):
        scales = weight_scales(weight, axis)
        shape = (-1, 1, 1, 1) if axis == 0 else ()
        back = quantise(weight, scales, axis) * scales.reshape(shape)
        errors.append(np.abs(back - weight)[0].max() / np.abs(weight[0]).max())
    assert errors[0] <= 0.5 / 127 + 1e-6
    assert errors[1] > 0.5


def test_a_channel_of_zeros_has_a_positive_scale() -> None:
    weight = np.ones((2, 3), np.float32)
    weight[1] = 0
    scales = weight_scales(weight, 0)
    assert scales[1] == 1.0
    assert not quantise(weight, scales, 0)[1].any()


def test_table_of_another_network_is_refused() -> None:
    model = network()
    table = table_of(model)
    lacking = CalibrationTable("minmax", "f", table.images, {"image": table.tensors["image"]})
    with pytest.raises(KDError, match="p1") as error:
        insert_qdq(model, lacking)
    assert error.value.code == "calib-table"


def test_table_round_trip(tmp_path: Path) -> None:
    table = table_of(network(), "percentile")
    table.write(tmp_path / "t.json")
    assert CalibrationTable.read(tmp_path / "t.json") == table
    entry = json.loads((tmp_path / "t.json").read_text())["tensors"]["r2"]
    assert entry["scale"] == pytest.approx(entry["amax"] / 127)
    assert 0 <= entry["saturation"] <= 1e-4


@pytest.mark.parametrize("text", ["", "[]", '{"tensors": {}}', '{"tensors": 3}'])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(KDError) as error:
        CalibrationTable.read(tmp_path / "t.json")
    assert error.value.code == "calib-table"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_table_refuses_nonfinite(bad: float) -> None:
    with pytest.raises(KDError) as error:
        CalibrationTable("mse", "f", (("a", "b"),), {"x": tensor_range(bad, 0, 0, 1)})
    assert error.value.code == "calib-nonfinite"


def test_no_images_is_an_error() -> None:
    with pytest.raises(KDError) as error:
        calibrate(network(), "f", [], [], "entropy")
    assert error.value.code == "calib-empty"


def test_nan_names_the_tensor_and_the_image() -> None:
    images = photos(2)
    images[1][0, 0, 0, 0] = np.nan
    with pytest.raises(KDError) as error:
        collect(network(), images, ["image", "r2"])
    assert error.value.code == "calib-nonfinite"
    assert error.value.where == "tensor image, calibration image 2"


def test_a_network_of_one_layer_has_nothing_to_quantise() -> None:
    model = network()
    for _ in range(9):
        model.graph.node.pop(0)
    model.graph.node[0].input[0] = "image"
    with pytest.raises(KDError) as error:
        tensors_to_observe(model)
    assert error.value.code == "calib-nothing"


def test_a_dead_tensor_is_exact() -> None:
    entry = tensor_range(0.0, 0.0, 0.0, 0.0)
    assert (entry.amax, entry.scale) == (0.0, 1.0)


def test_calibration_photos_are_spread_evenly() -> None:
    points = np.zeros((0, 2), np.float32)
    many = [Photo(str(i), points) for i in range(10)]
    assert [p.name for p in evenly(many, 4)] == ["0", "2", "5", "7"]
    assert evenly(many, 99) == many


@pytest.mark.parametrize(
    ("version", "storage"),
    [("8.6.2", "float"), ("8.5..11.99", "float"), ("10.3", "int8"), ("11.4.1", "int8")],
)
def test_weight_storage(version: str, storage: str) -> None:
    assert weight_storage(version) == storage


def test_without_tensorrt_weights_are_int8() -> None:
    assert weight_storage(None) == "int8"


@pytest.mark.rtx
@pytest.mark.parametrize("storage", ["int8", "float"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_tensorrt_rtx_compiles_it(storage: str, dynamic: bool) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    model = network("height", "width") if dynamic else network()
    blob = insert_qdq(model, table_of(model), storage).SerializeToString()
    for capability in (trt.ComputeCapability.SM80, trt.ComputeCapability.SM86):
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        net = builder.create_network(0)
        parser = trt.OnnxParser(net, trt.Logger(trt.Logger.ERROR))
        errors = [] if parser.parse(blob) else [parser.get_error(i).desc() for i in range(9)]
        assert not errors
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
        if dynamic:
            profile = builder.create_optimization_profile()
            profile.set_shape("image", (1, 3, 16, 16), (1, 3, 32, 48), (1, 3, 64, 64))
            config.add_optimization_profile(profile)
        assert builder.build_serialized_network(net, config) is not None
