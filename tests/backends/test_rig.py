"""The compile stage at a board: a played TensorRT whose engines compute, of three generations."""

import json

import played_tensorrt
import pytest
from near_place import Near, NearGpu
from small_build import SmallBuild

from kdcompile import targets
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.passes import compile
from kdcompile.remote.agent import machine, worker
from kdcompile.remote.agent.worker import Worker

FILES = {
    "choice.json", "engines.json", "mixed.json", "model.engine", "model.engine.json", "model.onnx",
    "preprocess.json", "student_mixed.onnx", "teacher.engine", "teacher.engine.json",
    "timing.cache",
}  # fmt: skip
CARRIED = {
    "parity/gates.json", "parity/outputs.npz", "parity/photos.npz", "parity/student_fp32.onnx",
}  # fmt: skip
VERSIONS = {
    "8.6.1": (["fp32", "fp16", "int8", "mixed"], ["bf16", "fp8"]),
    "10.13.3": (["fp32", "fp16", "bf16", "int8", "fp8", "mixed"], []),
    "11.4.0": (["fp32", "fp16", "bf16", "int8", "fp8", "mixed"], []),
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """No compile check beside, and a replayed graph takes what its layers take."""
    monkeypatch.setattr(compile, "compile_check", lambda *values: [])
    monkeypatch.setattr(played_tensorrt, "REPLAY_MS", 0.0)


def h100(version):
    return targets.load("h100").with_backend(version)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """`compiled(version, ...)` -> (artifact, place) of the compile stage on an H100."""

    def make(version="8.6.1", sets=(), change=lambda scene: None):
        place, target = NearGpu(version, tmp_path / "there", change), h100(version)
        build = SmallBuild(tmp_path, sets=sets)
        build.run("calibrate", target)
        with place.installed(monkeypatch):
            return build.run("compile", target, place.board(target)), place

    return make


def rows_of(artifact):
    return {row["precision"]: row for row in artifact.json("choice.json")["candidates"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_are_built_timed_and_chosen_there(compiled, version):
    found, place = compiled(version)
    choice, (ready, refused) = found.json("choice.json"), VERSIONS[version]
    assert set(found.files) == FILES | CARRIED
    rows = rows_of(found)
    assert list(rows) == ready
    assert {row["evidence"] for row in rows.values()} == {"device"}
    milliseconds = {p: row["latency_ms"] for p, row in rows.items()}
    assert (milliseconds["fp32"], milliseconds["fp16"]) == (16.0, 8.0)
    assert milliseconds["int8"] < milliseconds["fp16"]
    assert rows["int8"]["latency"] == "median of alternated runs at here, graph"
    assert list(choice["refused"]) == refused
    assert all(f"tensorrt {version}" in why.lower() for why in choice["refused"].values())
    assert choice["basis"] == "measured"
    fastest = min(milliseconds.values())
    assert milliseconds[choice["precision"]] <= 1.02 * fastest
    assert choice["board"]["gpu"]["name"] == "NVIDIA H100 80GB HBM3"
    assert (choice["backend"], choice["backend_version"]) == ("tensorrt", version)
    assert not any(scene.driver.alive for scene in place.scenes)


def test_what_is_kept_belongs_together(compiled):
    found, _ = compiled("10.13.3")
    engines, chosen = found.json("engines.json"), found.json("choice.json")["precision"]
    sidecar = found.json("model.engine.json")
    assert sidecar["sha256"] == file_sha256(found.file("model.engine"))
    assert sidecar["onnx_sha256"] == file_sha256(found.file("model.onnx"))
    assert sidecar["precision"] == chosen
    assert sidecar == engines[chosen]["build"]
    assert found.json("teacher.engine.json")["precision"] == "fp16"
    assert found.file("timing.cache").read_bytes() == b"timings"
    layers = {layer["name"]: layer["ms"] for layer in engines[chosen]["profile"]["layers"]}
    assert set(layers) == {"c0", "c1", "c2", "out"}
    assert engines[chosen]["profile"]["total_ms"] == sum(layers.values())
    assert {layer["precision"] for layer in engines["int8"]["build"]["layers"]} >= {"int8"}


def test_mixed_is_planned_from_the_engines_profiles(compiled):
    found, _ = compiled()
    plan = found.json("mixed.json")
    assert (plan["basis"], plan["quantised"]) == ("measured", ["c0", "c1", "c2"])
    assert plan["fp16_ms"] == 6.0
    assert plan["latency_ms"] == pytest.approx(3.0, abs=1e-4)  # and what recasting may cost


def fails(kind):
    """A scene in which no network with such layers is built."""

    def refuses(plan):
        return "no implementation" if kind in {k for _, k in plan.layers} else None

    return lambda scene: setattr(scene, "refuses", refuses)


def test_an_engine_that_does_not_build_is_refused_with_its_reason(compiled):
    found, _ = compiled(change=fails("int8"))
    choice = found.json("choice.json")
    assert choice["refused"]["int8"] == "no implementation"
    assert "int8" in choice["refused"]["mixed"]
    assert choice["precision"] == "fp16"
    assert not {"mixed.json", "student_mixed.onnx"} & set(found.files)


def test_the_asked_precision_alone_is_built(compiled):
    found, place = compiled(sets=["quantize.precision=int8"])
    assert list(rows_of(found)) == ["int8"]
    assert found.json("choice.json")["basis"] == "asked"
    assert place.counts["build"] == 2  # with the teacher
    assert list(found.json("engines.json")) == ["int8"]
    assert found.json("engines.json")["int8"]["profile"]["total_ms"] > 0


@pytest.mark.parametrize(
    ("asked", "change", "reason"),
    [
        ("bf16", lambda scene: None, "bf16: tensorrt 8.6.1 does not build it"),
        ("int8", fails("int8"), "int8: no implementation"),
        ("mixed", fails("int8"), "mixed: it needs int8, fp16 and the layers' sensitivity"),
    ],
)
def test_an_asked_precision_that_cannot_be_built_says_why(compiled, asked, change, reason):
    with pytest.raises(KDError) as error:
        compiled(sets=[f"quantize.precision={asked}"], change=change)
    assert error.value.code == "precision-unsupported"
    assert f"{asked} cannot be built" in error.value.message
    assert reason in error.value.message
    assert "quantize.precision=auto" in error.value.fix


def test_a_network_that_is_refused_stops_the_build(compiled):
    def change(scene):
        scene.parse_error = (2, "no importer", "", "")

    with pytest.raises(KDError) as error:
        compiled(change=change)
    assert error.value.code == "onnx-refused"
    assert "Conv c1: no importer" in error.value.message
    assert error.value.where == "here"


def test_a_dla_builds_what_it_computes(compiled):
    found, _ = compiled("10.3.0", sets=["compile.dla=0"])
    choice = found.json("choice.json")
    assert set(rows_of(found)) == {"fp16", "int8", "mixed"}
    assert "DLA has no fp32" in choice["refused"]["fp32"]
    assert found.json("model.engine.json")["dla"] == 0


def test_deterministic_engines_have_their_own_timings(compiled):
    """One cache for all would bind the second engine to the timings of the first, and fail it."""

    def bound(plan):
        missed = "ERROR_ON_TIMING_CACHE_MISS" in plan.flags
        return "a layer is not in the timing cache" if missed else None

    def change(scene):
        scene.refuses = bound

    found, place = compiled("10.13.3", ["compile.deterministic=true"], change)
    ready, _ = VERSIONS["10.13.3"]
    assert list(rows_of(found)) == ready
    engines = found.json("engines.json").values()
    assert {made["build"]["deterministic"] for made in engines} == {"recorded"}
    assert len(list(place.work.glob("*.cache"))) == len(ready) + 1  # the teacher's
    assert found.file("timing.cache").read_bytes() == b"timings"


def test_an_engine_that_is_no_cuda_graph_is_timed_without_one(compiled, caplog):
    def change(scene):
        scene.driver.broken["cuGraphInstantiateWithFlags"] = 0

    found, _ = compiled(change=change)
    rows = rows_of(found)
    assert list(rows) == VERSIONS["8.6.1"][0]
    assert {row["latency"] for row in rows.values()} == {
        "median of alternated runs at here, device"
    }
    assert "timing without a CUDA graph: cuGraphInstantiateWithFlags failed" in caplog.text


def test_a_jetson_at_the_board_has_device_evidence_and_its_kit(tmp_path, monkeypatch, capsys):
    module = {"/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit"}
    monkeypatch.setattr(worker, "first_line", module.get)
    monkeypatch.setattr(machine, "memory_mb", lambda path: {"total": 7620, "free": 4000})
    target = targets.load("jetson")
    place = NearGpu("10.3.0", tmp_path / "there", capability="8.7", name=b"Orin")
    build = SmallBuild(tmp_path)
    build.run("calibrate", target)
    with place.installed(monkeypatch):
        board = place.board(target)
        found = build.run("compile", target, board)
    assert board.evidence == "device"
    assert board.machine == "NVIDIA Jetson Orin Nano Developer Kit"
    assert {row["evidence"] for row in rows_of(found).values()} == {"device"}
    assert set(found.files) > FILES
    assert "kit/build_engine.py" in found.files
    assert (
        json.loads(found.file("kit/kit.json").read_text())["predicted"]
        == (found.json("choice.json")["precision"])
    )
    assert capsys.readouterr().out == ""


def test_onnx_runtime_plays_a_board(tmp_path, monkeypatch):
    place = Near(lambda: Worker("onnxruntime"), tmp_path / "there")
    target, build = targets.load("jetson"), SmallBuild(tmp_path)
    build.run("calibrate", target)
    with place.installed(monkeypatch):
        found = build.run("compile", target, place.board(target))
    rows = rows_of(found)
    assert {row["evidence"] for row in rows.values()} == {"host"}
    assert set(rows) == {"fp32", "fp16", "int8", "mixed"}
    assert all(row["latency"].endswith(", device") for row in rows.values())
    assert "onnxruntime" in found.json("choice.json")["refused"]["bf16"]
    assert found.file("model.engine").read_bytes() == found.file("model.onnx").read_bytes()
