"""Builds on the played TensorRT of every recorded generation: flags, networks, options, errors."""

import json
import sys
import types

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from played_tensorrt import GENERATIONS

from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.onnx_file import OnnxFile
from kdcompile.remote.agent.tensorrt_network import PRECISIONS, _layer
from kdcompile.remote.agent.worker import Worker

WEAK, TYPED = ["EXPLICIT_BATCH"], ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
PLANS = {
    "8.5.3": {"fp32": ("fp32", []), "fp16": ("fp32", ["FP16"]), "int8": ("int8", ["INT8", "FP16"]),
              "mixed": ("mixed", ["INT8", "FP16"])},
    "10.3.0": {"bf16": ("fp32", ["BF16"]), "fp8": ("fp8", ["FP8", "FP16"])},
    "10.13.3": {p: (p, []) for p in PRECISIONS},
}  # fmt: skip
PLANS["8.6.1"] = PLANS["8.5.3"]
PLANS["10.3.0"].update(PLANS["8.5.3"])
PLANS["10.16.1"] = PLANS["11.4.0"] = PLANS["10.13.3"]
NETWORK = {"8.5.3": WEAK, "8.6.1": WEAK, "10.3.0": WEAK, "10.13.3": TYPED, "10.16.1": TYPED,
           "11.4.0": ["STRONGLY_TYPED"]}  # fmt: skip


def flags_of(scene):
    return [call[1] for call in scene.calls if call[0] == "set_flag"]


def config_of(scene):
    return next(call[1] for call in scene.calls if call[0] == "build")


def test_every_generation_is_planned():
    assert set(PLANS) == set(NETWORK) == set(GENERATIONS)


@pytest.mark.parametrize("version", GENERATIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_build(board, order, tmp_path, played_driver, version, precision):
    played_driver.capability = [9, 0]
    ask, scene = board(version)
    plans = ask("hello")["ok"]["precisions"]
    answer = ask("build", **order(precision, workspace_mb=512))
    if precision not in PLANS[version]:
        assert precision not in plans
        assert answer["error"]["code"] == "precision-refused"
        assert not (tmp_path / "e.plan").exists()
        return
    source, flags = PLANS[version][precision]
    network = NETWORK[version]
    assert plans[precision] == {"onnx": source, "flags": flags, "network": network}
    kinds = GENERATIONS[version]["enums"]["NetworkDefinitionCreationFlag"]
    assert ("create_network", sum(1 << kinds[name] for name in network)) in scene.calls
    assert flags_of(scene) == flags
    assert ("set_memory_pool_limit", "WORKSPACE", 512 << 20) in scene.calls
    assert ("set_shape", "image", (1, 3, 8, 8), (1, 3, 16, 16), (1, 3, 64, 64)) in scene.calls
    sources = [c[1] for c in scene.calls if c[0] == "set_tactic_sources"]
    assert sources == ([0b11000] if version.startswith("8") else [])
    assert config_of(scene)["profiling_verbosity"].name == "DETAILED"
    built = answer["ok"]
    assert (tmp_path / "e.plan").read_bytes() == scene.blob()
    assert built == json.loads((tmp_path / "e.plan.json").read_text())
    assert built["bytes"] == len(scene.blob())
    assert (built["gpu"], built["compute_capability"]) == ("Played GPU", "9.0")


@pytest.mark.parametrize(
    ("capability", "absent"), [("8.7", {"fp8"}), ("7.2", {"fp8", "bf16"}), ("8.9", set())]
)
def test_what_the_gpu_lacks(board, order, played_driver, capability, absent):
    played_driver.capability = [int(n) for n in capability.split(".")]
    ask, _ = board("10.13.3")
    assert set(ask("hello")["ok"]["precisions"]) == set(PRECISIONS) - absent
    for precision in absent:
        error = ask("build", **order(precision))["error"]
        assert error["code"] == "precision-refused"
        assert capability in error["message"]


@pytest.mark.parametrize("version", GENERATIONS)
def test_layers(board, order, version):
    ask, _ = board(version)
    first, second = ask("build", **order())["ok"]["layers"]
    assert first["precision"] == "int8"
    assert second["precision"] == "fp16"
    if version != "8.5.3":  # which says no more than the name, and `graph` names no nodes
        assert first["onnx"] == ["head"]
        assert second["onnx"] == ["first", "density"]


def test_nodes_of_a_fused_layer_are_found_by_name():
    known = {"/a/Conv", "/a/Relu", "/b/Add"}
    name = "w + q_1 + /a/Conv + PWN(PWN(/a/Relu), /b/Add)"
    assert _layer({"Name": name}, known)["onnx"] == ["/a/Conv", "/a/Relu", "/b/Add"]
    assert _layer("Reformatting CopyNode for Input Tensor 0 to x", known)["onnx"] is None


@pytest.mark.parametrize(
    ("old", "state"),
    [
        (None, "new"),
        (b"timings", "reused"),
        (b"of another GPU", "replaced"),
        (b"damaged", "replaced"),
        (b"torn", "replaced"),
    ],
)
@pytest.mark.parametrize("version", ["8.5.3", "11.4.0"])
def test_timing_cache(board, order, tmp_path, version, old, state):
    ask, _ = board(version)
    cache = tmp_path / "timing.cache"
    if old is not None:
        cache.write_bytes(old)
    assert ask("build", **order(timing_cache=str(cache)))["ok"]["timing_cache"] == state
    assert cache.read_bytes() == b"timings"


@pytest.mark.parametrize(
    ("version", "first", "second", "flags"),
    [
        ("8.6.1", "best-effort", "best-effort", []),
        ("10.3.0", "recorded", "enforced", ["ERROR_ON_TIMING_CACHE_MISS"]),
        ("10.13.3", "recorded", "enforced",
         ["EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS"]),
        ("11.4.0", "recorded", "enforced",
         ["EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS"]),
    ],
)  # fmt: skip
def test_deterministic_rebuild(board, order, tmp_path, version, first, second, flags):
    ask, scene = board(version)
    asked = order("fp32", timing_cache=str(tmp_path / "timing.cache"), deterministic=True)
    assert ask("build", **asked)["ok"]["deterministic"] == first
    assert flags_of(scene) == flags[:-1]
    scene.calls.clear()
    assert ask("build", **asked)["ok"]["deterministic"] == second
    assert flags_of(scene) == flags
    scene.build_error = "no entry in the timing cache for node head"
    error = ask("build", **asked)["error"]
    assert error["code"] == ("cache-incomplete" if second == "enforced" else "build-failed")
    assert ("timing.cache: " in error["message"]) == (second == "enforced")


def test_deterministic_needs_a_cache(board, order):
    ask, _ = board("10.3.0")
    error = ask("build", **order(deterministic=True))["error"]
    assert (error["code"], "timing_cache" in error["message"]) == ("request-invalid", True)


def test_optimization_level(board, order):
    ask, scene = board("8.6.1")
    assert "ok" in ask("build", **order(optimization_level=5))
    assert config_of(scene)["builder_optimization_level"] == 5
    assert ask("build", **order(optimization_level=6))["error"]["code"] == "request-invalid"
    ask, _ = board("8.5.3")
    error = ask("build", **order(optimization_level=5))["error"]
    assert (error["code"], "8.5.3" in error["message"]) == ("option-refused", True)


@pytest.mark.parametrize("version", GENERATIONS)
def test_tf32_is_left_on_or_cleared(board, order, version):
    """It is set by default in every generation; a kit of settings that nobody gave has None."""
    ask, scene = board(version)
    for given, told in (({}, True), ({"tf32": True}, True), ({"tf32": None}, None)):
        assert ask("build", **order("fp32", **given))["ok"]["tf32"] is told
        assert "clear_flag" not in {call[0] for call in scene.calls}
    assert ask("build", **order("fp32", tf32=False))["ok"]["tf32"] is False
    assert [call[1] for call in scene.calls if call[0] == "clear_flag"] == ["TF32"]


@pytest.mark.parametrize("version", GENERATIONS)
def test_dla_names_what_falls_back(board, order, tmp_path, version):
    ask, scene = board(version)
    assert ask("build", **order())["ok"]["dla_fallback"] is None
    built = ask("build", **order(dla=1))["ok"]
    assert (built["dla"], built["dla_fallback"]) == (1, ["density"])
    assert flags_of(scene)[-1] == "GPU_FALLBACK"
    config = [call[1] for call in scene.calls if call[0] == "build"][-1]
    assert (config["default_device_type"].name, config["DLA_core"]) == ("DLA", 1)
    assert "ok" in ask("load", path=str(tmp_path / "e.plan"))
    assert scene.calls[-2:] == [("deserialize", 1), ("create_execution_context",)]


@pytest.mark.parametrize(("precision", "core"), [("fp32", 0), ("int8", 2), ("int8", -1)])
def test_dla_refused(board, order, precision, core):
    ask, _ = board("10.3.0")
    assert ask("build", **order(precision, dla=core))["error"]["code"] == "option-refused"


def test_several_inputs(board, order):
    ask, scene = board("10.3.0")
    scene.inputs = {"image": (-1, 3, 8, 8), "scale": (-1, 1), "fixed": (1, 2)}
    both = {"image": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]], "scale": [[1, 1], [2, 1], [4, 1]]}
    assert "ok" in ask("build", **order(profile=both))
    assert ("set_shape", "scale", (1, 1), (2, 1), (4, 1)) in scene.calls
    assert not [call for call in scene.calls if call[:2] == ("set_shape", "fixed")]
    assert ask("build", **order())["error"]["code"] == "profile-missing"  # whose is it?
    error = ask("build", **order(profile={"image": both["image"]}))["error"]
    assert (error["code"], "scale" in error["message"]) == ("profile-missing", True)


@pytest.mark.parametrize(
    ("profile", "code"),
    [
        (None, "profile-missing"),
        ([[1, 3, 8, 8], [1, 3, 16, 16]], "profile-refused"),
        ([[1, 3, 8, 8], [1, 3, 4, 4], [1, 3, 64, 64]], "profile-refused"),
        ([[1, 3, 8, 8], [1, 3, 16, 16], [2, 3, 64, 64]], "profile-refused"),
        ([[1, 8, 8], [1, 16, 16], [1, 64, 64]], "profile-refused"),
        ({"picture": [[1, 3, 8, 8]] * 3}, "profile-refused"),
    ],
)
def test_profile_that_does_not_fit(board, order, profile, code):
    ask, _ = board("10.3.0")
    error = ask("build", **order(profile=profile))["error"]
    assert error["code"] == code
    assert "image" in error["message"]


def test_failed_build_gives_the_log(board, order, tmp_path):
    ask, scene = board("10.3.0")
    scene.build_error = "no implementation for node 12"
    error = ask("build", **order())["error"]
    assert (error["code"], error["message"]) == ("build-failed", scene.build_error)
    assert not (tmp_path / "e.plan").exists()


def strange(module_path):
    """A network with a node that no importer has."""
    node = helper.make_node("Mystery", ["image"], ["out"], name="strange")
    scopes = node.metadata_props.add()
    scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", str(["", *module_path, "strange"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("image", "out")]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize("version", GENERATIONS)
def test_refused_onnx_names_operator_node_and_module(board, order, tmp_path, version):
    ask, scene = board(version)
    (tmp_path / "m.onnx").write_bytes(strange(["frontend", "frontend.0"]))
    scene.parse_error = (0, "no importer for it", "strange", "Mystery")
    error = ask("build", **order())["error"]
    assert error["code"] == "onnx-refused"
    assert error["message"] == "Mystery strange (module frontend.0): no importer for it"


def test_refused_file_that_is_no_onnx(board, order):
    ask, scene = board("8.6.1")
    scene.parse_error = (-1, "failed to parse", "", "")
    error = ask("build", **order())["error"]
    assert (error["code"], error["message"]) == ("onnx-refused", "node -1: failed to parse")


@pytest.mark.parametrize("zero", [np.int8(3), np.uint8(0), np.uint8(128)])
@pytest.mark.parametrize("raw", [True, False])
def test_asymmetric_quantisation(board, order, tmp_path, zero, raw):
    kind = helper.np_dtype_to_tensor_dtype(zero.dtype)
    point = numpy_helper.from_array(np.asarray(zero), "z")
    if not raw:
        point = helper.make_tensor("z", kind, [], [int(zero)])
    nodes = [helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"])]
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    ports = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1]),
             helper.make_tensor_value_info("q", kind, [1])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [scale, point])
    ask, _ = board("8.5.3")
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    error = ask("build", **order())["error"]
    assert error["code"] == "qdq-asymmetric"
    assert "QuantizeLinear node_of_q" in error["message"]


def test_asymmetric_by_the_parser(board, order):
    ask, scene = board("11.4.0")
    scene.parse_error = (0, "Non-zero zero point is not supported", "q", "QuantizeLinear")
    assert ask("build", **order())["error"]["code"] == "qdq-asymmetric"


def test_symmetric_passes(board, order, tmp_path, onnx_files):
    ask, _ = board("8.5.3")
    assert "ok" in ask("build", **order() | {"onnx": str(onnx_files()["int8"])})


def test_onnx_file(onnx_files):
    nodes = OnnxFile(onnx_files()["fp16"].read_bytes()).nodes
    assert [(n["name"], n["operator"]) for n in nodes] == [
        ("node_of_half", "Cast"), ("head", "Conv"), ("node_of_absolute", "Abs"),
        ("node_of_density", "Cast"),
    ]  # fmt: skip
    whole = onnx_files()["fp32"].read_bytes()
    for end in range(0, len(whole), 7):  # torn anywhere, it names what it can and raises nothing
        OnnxFile(whole[:end])


def test_old_tensorrt_is_refused(monkeypatch):
    module = types.SimpleNamespace(__version__="8.2.1", IExecutionContext=object)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(WorkerError, match=r"8\.2\.1 is older than 8\.5"):
        Worker("tensorrt")
