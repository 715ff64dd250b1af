"""`deepstream/`: what nvinfer computes by its configuration is what the bundle computes."""

import configparser
import json

import numpy as np
import onnx
import onnxruntime
import pytest

from kdcompile.bundle.deepstream import refusal, write_deepstream
from kdcompile.bundle.samples import Tensor, network_io
from kdcompile.data.preprocess import Preprocess

SIZE = (6, 8)
UNLIKE = (0.229, 0.224, 0.225)
MEAN = (0.485, 0.456, 0.406)
NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[1, {channels}, 6, 8] image) => (float[1, 3, 6, 8] logits)
{{
    logits = Conv(image, weight, bias)
}}
"""


def write_network(folder, channels):
    """Three classes, of which the logits are all far below -1."""
    model = onnx.parser.parse_model(NETWORK.format(channels=channels))
    random = np.random.default_rng(channels)
    weight = random.normal(size=(3, channels, 1, 1)).astype(np.float32)
    for name, values in (("weight", weight), ("bias", np.full(3, -40, np.float32))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, folder / "model.onnx")
    return network_io(folder / "model.onnx")


def settings_of(folder):
    found = configparser.ConfigParser(interpolation=None)
    found.read(folder / "deepstream" / "config_infer_primary.txt")
    return found["property"]


def output_of(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def parsed(values, threshold):
    """The class map of nvinfer's own parser, -1 where it finds no class."""
    found = np.full(values.shape[1:], -1)
    best = np.full(values.shape[1:], -1.0)
    for index, plane in enumerate(values):
        better = (plane > best) & (plane > threshold)
        found[better], best[better] = index, plane[better]
    return found


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.4,), (0.3,)), (MEAN, (0.5, 0.5, 0.5)), (MEAN, UNLIKE)],
    ids=["grey", "alike", "unlike"],
)
def test_nvinfer_computes_what_the_bundle_computes(tmp_path, mean, std):
    channels = len(mean)
    preprocess = Preprocess(channels, mean, std, SIZE, SIZE, "mirror")
    io = write_network(tmp_path, channels)
    assert refusal(preprocess.to_json(), io, "segmentation") is None
    write_deepstream(tmp_path, preprocess.to_json(), io, ["a", "b;c", "d"], "fp32", "jetson")
    told = settings_of(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (*SIZE, channels), np.uint8)
    wanted = output_of(tmp_path / "model.onnx", preprocess(pixels))[0]
    offsets = np.float32([float(value) for value in told["offsets"].split(";")])
    seen = np.float32(told["net-scale-factor"]) * (pixels.astype(np.float32) - offsets)
    inside = tmp_path / "deepstream"
    given = np.ascontiguousarray(seen.transpose(2, 0, 1)[None])
    found = output_of(inside / told["onnx-file"], given)[0]
    power = np.exp(wanted - wanted.max(0))
    assert found == pytest.approx(power / power.sum(0), abs=1e-5)
    assert (wanted.max(0) < -1).all()
    assert (parsed(wanted, float(told["segmentation-threshold"])) == -1).all()  # of bare logits
    classes = parsed(found, float(told["segmentation-threshold"]))
    assert (classes == wanted.argmax(0)).all()
    assert [int(n) for n in told["infer-dims"].split(";")] == [channels, *SIZE]
    assert told["model-color-format"] == {1: "2", 3: "0"}[channels]
    assert (told["network-type"], told["num-detected-classes"], told["batch-size"]) == (
        "2", "3", "1",
    )  # fmt: skip
    assert (inside / told["labelfile-path"]).read_text() == "a\nb,c\nd\n"


def test_the_factor_of_channels_is_in_the_network_only_where_they_differ(tmp_path):
    for std, count in (((0.5, 0.5, 0.5), 0), (UNLIKE, 1)):
        io = write_network(tmp_path, 3)
        preprocess = Preprocess(3, MEAN, std, SIZE, SIZE).to_json()
        write_deepstream(tmp_path, preprocess, io, None, "fp32", "jetson")
        nodes = onnx.load(tmp_path / "deepstream" / "model.onnx").graph.node
        assert [node.op_type for node in nodes] == ["Mul"] * count + ["Conv", "Softmax"]
        assert (tmp_path / "deepstream" / "labels.txt").read_text() == "0\n1\n2\n"


@pytest.mark.parametrize(
    ("precision", "mode", "engine"),
    [("fp32", "0", None), ("fp16", "2", None), ("int8", "1", "model.plan"),
     ("mixed", "1", "model.plan")],
)  # fmt: skip
def test_a_quantised_network_names_the_engine_that_must_be_built_first(
    tmp_path, precision, mode, engine
):
    io = write_network(tmp_path, 1)
    preprocess = Preprocess(1, (0.4,), (0.3,), SIZE, SIZE).to_json()
    write_deepstream(tmp_path, preprocess, io, None, precision, "jetson")
    told = settings_of(tmp_path)
    assert (told["network-mode"], told.get("model-engine-file")) == (mode, engine)
    text = (tmp_path / "deepstream" / "config_infer_primary.txt").read_text()
    assert ("trtexec" in text) == (engine is not None)


IMAGE = Tensor("image", "FLOAT", (1, 3, 6, 8))
LOGITS = Tensor("logits", "FLOAT", (1, 3, 6, 8))
PLAIN = Preprocess(3, MEAN, UNLIKE, SIZE, SIZE).to_json()


@pytest.mark.parametrize(
    ("preprocess", "io", "task", "why"),
    [
        (PLAIN, ([IMAGE], [LOGITS]), "detection", "DetectNet_v2"),
        (PLAIN, ([IMAGE], [LOGITS]), "counting", "no parser of counting"),
        (PLAIN | {"in_graph": True}, ([IMAGE], [LOGITS]), "segmentation", "in-graph"),
        (PLAIN, ([IMAGE, IMAGE], [LOGITS]), "segmentation", "one image"),
        (json.loads('{"inputs": [], "image": null}'), ([IMAGE], [LOGITS]), "segmentation", "one"),
        (PLAIN, ([IMAGE], [Tensor("logits", "FLOAT16", (1, 3, 6, 8))]), "segmentation", "float32"),
        (PLAIN, ([Tensor("image", "FLOAT", (1, 3, -1, -1))], [LOGITS]), "segmentation", "several"),
    ],
)  # fmt: skip
def test_what_nvinfer_cannot_run_is_refused_with_the_reason(preprocess, io, task, why):
    assert why in refusal(preprocess, io, task)
