from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdcompile.backends.candidate_runner import predict_outputs
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess


def test_runs_each_precision_alike(onnx_files):
    image = np.random.default_rng(1).standard_normal((1, 3, 16, 24)).astype(np.float32)
    outputs = {p: open_session(path)(image) for p, path in onnx_files().items()}
    assert outputs["fp32"].shape == (1, 1, 8, 12)
    for precision, tolerance in (("fp16", 2e-3), ("int8", 0.05)):
        assert np.abs(outputs[precision] - outputs["fp32"]).max() < tolerance
        assert np.abs(outputs[precision] - outputs["fp32"]).max() > 0


def test_says_what_runs(onnx_files):
    runner = open_session(onnx_files()["fp32"], threads=1)
    assert (runner.name, runner.provider) == ("onnxruntime", "CPUExecutionProvider")
    assert runner.version.count(".") >= 1


def test_absent_provider_is_an_error(onnx_files):
    with pytest.raises(KDError, match="CUDAExecutionProvider was asked for") as caught:
        open_session(onnx_files()["fp32"], providers=("CUDAExecutionProvider",))
    assert caught.value.code == "provider-fallback"


def test_declined_provider_is_an_error(onnx_files, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["Other"])
    with pytest.raises(KDError) as caught:
        open_session(onnx_files()["fp32"])
    assert caught.value.code == "provider-fallback"


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((1, 3, 16, 25), np.float32), "got float32"),
        (np.zeros((1, 3, 16, 24)), "float64"),
        (np.zeros((3, 16, 24), np.float32), r"\[3, 16, 24\]"),
    ],
)
def test_wrong_input(onnx_files, image, text):
    with pytest.raises(KDError, match=text) as caught:
        open_session(onnx_files()["fp32"])(image)
    assert caught.value.code == "input-refused"


def test_a_second_input_and_a_run_that_fails(tmp_path):
    def network(name, *inputs):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Add", [inputs[0], inputs[-1]], ["y"])], name,
            [value(i, TensorProto.FLOAT, [1, None, None, 2]) for i in inputs],
            [value("y", TensorProto.FLOAT, None)],
        )  # fmt: skip
        opset = [helper.make_opsetid("", 17)]
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return open_session(path)

    image = np.zeros((1, 3, 4, 2), np.float32)
    assert network("one", "image")(image).shape == image.shape
    with pytest.raises(KDError, match="image, mask") as caught:
        network("two", "image", "mask")(image)
    assert caught.value.code == "input-refused"
    runner = network("failing", "image")

    def run(*given):
        raise RuntimeError("out of memory")

    runner = replace(runner, session=SimpleNamespace(
        get_inputs=runner.session.get_inputs, run=run))  # fmt: skip
    with pytest.raises(KDError, match="out of memory") as caught:
        runner(image)
    assert caught.value.code == "run-failed"


def test_broken_and_missing_files(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"not a model")
    for name, code in (("a.onnx", "onnx-refused"), ("b.onnx", "onnx-missing")):
        with pytest.raises(KDError) as caught:
            open_session(tmp_path / name)
        assert caught.value.code == code


def test_each_photo_has_its_output():
    preprocess = Preprocess(1, (0.0,), (1.0,), (1, 1), (64, 64))
    photos = [Photo(str(n), np.zeros((0, 2)), array=np.full((4, n, 1), 255)) for n in (2, 5)]
    outputs, frames = predict_outputs(lambda image: image, photos, preprocess)
    assert [output.shape for output in outputs] == [(1, 1, 4, 2), (1, 1, 4, 5)]
    assert [frame.seen for frame in frames] == [(4, 2), (4, 5)]
    assert [output.sum() for output in outputs] == [8, 20]
