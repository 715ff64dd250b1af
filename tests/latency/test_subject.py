"""What can be measured: ONNX files, engines with their records, bundles; built and loaded."""

import json

import numpy as np
import onnx
import onnx_graphs
import pytest
from benching import Clock
from near_place import NearGpu
from onnx import TensorProto, helper, numpy_helper

from kdcompile.bundle.manifest import write_manifest
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json
from kdcompile.core.report import Report
from kdcompile.latency.interference import Watch
from kdcompile.latency.sampler import Effort, Tools, measure
from kdcompile.latency.settings import Mode
from kdcompile.latency.subject import find_subject


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(onnx_graphs.chain(2), path)
    return path


def refused(code, path, *arguments, **options):
    with pytest.raises(KDError) as caught:
        find_subject(path, *arguments, **options)
    assert caught.value.code == code
    assert caught.value.fix
    return caught.value


def engine(folder, content=b"plan", name="m.engine", **record):
    path = folder / name
    path.write_bytes(content)
    about = {"tensorrt": "8.6.1", "precision": "int8", "sha256": file_sha256(path)} | record
    write_json(folder / f"{name}.json", about)
    return path


def one(weights, *nodes, shape=(1, 3, 16, 16)):
    """A network of some weights and nodes."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Identity", ["image"], ["out"])], "g",
        [value("image", TensorProto.FLOAT, shape)], [value("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_an_onnx_file(net):
    found = find_subject(net)
    assert (found.name, found.kind, found.precision) == ("net.onnx", "onnx", "fp32")
    assert found.sha256 == file_sha256(net)
    assert found.input_shape == (1, 3, 16, 16)
    assert found.backend is None
    assert find_subject(net, "tensorrt").backend == "tensorrt"
    assert find_subject(net, shape=[2, 3, 16, 16]).input_shape == (2, 3, 16, 16)


@pytest.mark.parametrize(("model", "precision"), [
    (one({"w": np.zeros(2, np.float16)}), "fp16"),
    (one({"p": np.zeros(1, np.int8)}, helper.make_node("QuantizeLinear", ["image", "s"], ["out"])),
     "int8"),
    (one({}), "fp32"),
])  # fmt: skip
def test_the_precision_is_that_of_the_files_own_types(tmp_path, model, precision):
    onnx.save(model, tmp_path / "net.onnx")
    assert find_subject(tmp_path / "net.onnx").precision == precision


@pytest.mark.parametrize(("kind", "nodes", "precision"), [
    (TensorProto.BFLOAT16, ["Identity"], "bf16"),
    (TensorProto.FLOAT8E4M3FN, ["DequantizeLinear"], "fp8"),
])  # fmt: skip
def test_the_precision_of_types_that_numpy_has_not(tmp_path, kind, nodes, precision):
    model = one({}, *[helper.make_node(op, ["image"], ["out"]) for op in nodes])
    size = 2 if kind == TensorProto.BFLOAT16 else 1
    tensor = helper.make_tensor("w", kind, [1], bytes(size), raw=True)
    model.graph.initializer.append(tensor)
    onnx.save(model, tmp_path / "net.onnx")
    assert find_subject(tmp_path / "net.onnx").precision == precision


@pytest.mark.parametrize("shape", [("batch", 3, 16, 16), (1, 3, None, 16)])
def test_open_sizes_are_not_guessed(tmp_path, shape):
    onnx.save(one({}, shape=shape), tmp_path / "net.onnx")
    assert find_subject(tmp_path / "net.onnx").input_shape is None


def test_an_engine_with_its_record(tmp_path):
    found = find_subject(engine(tmp_path))
    assert (found.kind, found.precision, found.backend) == ("engine", "int8", "tensorrt")
    assert found.input_shape is None
    assert found.record["tensorrt"] == "8.6.1"
    assert find_subject(engine(tmp_path, name="m.plan"), "tensorrt").sha256 == found.sha256


@pytest.mark.parametrize(("provider", "backend"), [
    ("CUDAExecutionProvider", "onnxruntime-cuda"), ("CPUExecutionProvider", "onnxruntime"),
    ("TensorrtExecutionProvider", "onnxruntime-tensorrt"), (None, "onnxruntime"),
])  # fmt: skip
def test_an_engine_of_onnx_runtime_needs_its_provider(tmp_path, provider, backend):
    path = engine(tmp_path)
    record = {"onnxruntime": "1.20", "precision": "fp32", "sha256": file_sha256(path),
              "provider": provider}  # fmt: skip
    write_json(path.with_name("m.engine.json"), record)
    assert find_subject(path).backend == backend


def test_what_is_no_artifact_is_refused(tmp_path, net):
    refused("artifact-missing", tmp_path / "gone.onnx")
    (tmp_path / "notes.txt").write_text("x")
    refused("artifact-unknown", tmp_path / "notes.txt")
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert "no operator" in refused("onnx-refused", tmp_path / "empty.onnx").message
    (tmp_path / "text.onnx").write_text("not a network at all")
    refused("onnx-refused", tmp_path / "text.onnx")
    (tmp_path / "half.onnx").write_bytes(net.read_bytes()[:-50])
    refused("onnx-refused", tmp_path / "half.onnx")
    (tmp_path / "empty").mkdir()
    refused("bundle-missing", tmp_path / "empty")


def test_an_engine_without_a_record_or_with_anothers_is_refused(tmp_path):
    path = engine(tmp_path)
    path.write_bytes(b"another plan")
    refused("engine-damaged", path)
    path.with_name("m.engine.json").unlink()
    refused("engine-unknown", path)


def test_an_engine_of_another_backend_is_refused(tmp_path):
    assert "tensorrt" in refused("backend-differs", engine(tmp_path), "onnxruntime").message


class BundleFolder:
    """A bundle as `read_bundle` takes it."""

    def __init__(self, folder, model):
        self.folder = folder
        (folder / "kit").mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model.read_bytes())
        self.preprocess([16, 16], [16, 16])
        self.engine = None

    def preprocess(self, low, high):
        values = {"min_hw": low, "max_hw": high, "channels": 3}
        values |= {"mean": [0.0] * 3, "std": [1.0] * 3}
        write_json(self.folder / "preprocess.json", values)

    def sealed(self):
        choice = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1.20"}
        report = Report("crowd", "jetson", "passed", 0, (), (), {})
        write_manifest(self.folder, report, "counting", choice)
        return self.folder


@pytest.fixture
def bundle(tmp_path, net):
    return BundleFolder(tmp_path / "bundle", net)


def test_a_bundle_is_measured_by_its_onnx_file(bundle):
    found = find_subject(bundle.sealed())
    assert (found.name, found.kind, found.target) == ("crowd for jetson", "onnx", "jetson")
    assert found.path == bundle.folder / "model.onnx"
    assert found.input_shape == (1, 3, 16, 16)


def test_a_bundle_is_measured_by_its_engine_where_the_backend_is_its(bundle):
    engine(bundle.folder, name="model.engine")
    bundle.engine = "model.engine"
    folder = bundle.sealed()
    for backend in (None, "tensorrt"):
        found = find_subject(folder, backend)
        assert (found.kind, found.backend, found.precision) == ("engine", "tensorrt", "int8")
        assert found.target == "jetson"
        assert found.input_shape == (1, 3, 16, 16)  # which the engine alone would not tell
    found = find_subject(folder, "onnxruntime")
    assert (found.kind, found.backend) == ("onnx", "onnxruntime")


def test_the_typical_size_is_the_kits_where_sizes_vary(bundle, tmp_path):
    onnx.save(one({}, shape=(1, 3, "height", "width")), bundle.folder / "model.onnx")
    bundle.preprocess([8, 8], [64, 64])
    assert find_subject(bundle.sealed()).input_shape is None
    profile = [[1, 3, 8, 8], [1, 3, 32, 48], [1, 3, 64, 64]]
    (bundle.folder / "kit/kit.json").write_text(json.dumps({"profile": profile}))
    assert find_subject(bundle.sealed()).input_shape == (1, 3, 32, 48)


def test_a_changed_bundle_is_refused(bundle):
    folder = bundle.sealed()
    (folder / "model.onnx").write_bytes(b"x")
    refused("bundle-corrupt", folder)


class Gpu:
    """A place with the real worker on the played TensorRT."""

    def __init__(self, tmp_path):
        self.near, self.clock = NearGpu("8.6.1", tmp_path / "place"), Clock()

    def tools(self):
        def open_place(via, backend):
            self.clock.pass_(0.1)
            return self.near.open(via, backend)

        look = lambda place: {"facts": {}, "state": {}}  # noqa: E731
        return Tools(open_place, lambda place, past: Watch(None), look, self.clock)

    def measure(self, paths, effort, mode=Mode()):  # noqa: B008  # frozen
        subjects = [find_subject(path, "tensorrt") for path in paths]
        return measure(subjects, "python:played", effort, mode, tools=self.tools())


def test_an_onnx_file_is_built_timed_and_removed_by_the_real_worker(tmp_path, net):
    gpu = Gpu(tmp_path)
    found = gpu.measure([net, net], Effort(processes=1, blocks=2, builds=2, seconds=1000))
    for samples in found:
        assert len(samples.runs[0].builds) == 2
        assert set(next(samples.blocks()).ms) == {13.0}  # three layers of 4 ms, and the launch
    assert found[0].runs[0].mode["graph"] is True
    assert gpu.near.counts["build"] == 4
    assert list((tmp_path / "place").glob("bench-*")) == []


def test_an_engine_that_was_brought_is_loaded_by_its_record(tmp_path, net):
    gpu = Gpu(tmp_path)
    with gpu.near.open() as place:
        there = place.path("m.engine")
        place.call("build", onnx=place.put(net), engine=there, precision="fp16")
        place.get(there, tmp_path / "m.engine")
        place.get(there + ".json", tmp_path / "m.engine.json")
    path = tmp_path / "m.engine"
    found = gpu.measure([path], Effort(processes=1, blocks=2, seconds=1000))[0]
    assert set(next(found.blocks()).ms) == {7.0}
    assert found.runs[0].builds[0].sha256 == file_sha256(path) == found.sha256
    assert gpu.measure([path], Effort(samples=4), Mode(copies="both"))[0].runs[0].mode["graph"]


def test_open_sizes_at_tensorrt_are_asked_for(tmp_path):
    path = tmp_path / "net.onnx"
    model = onnx_graphs.chain(2)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, path)
    with pytest.raises(KDError) as caught:
        Gpu(tmp_path).measure([path], Effort(samples=4))
    assert caught.value.code == "shape-unknown"
    assert "--shape" in caught.value.fix
