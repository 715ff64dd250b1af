"""Networks of several named inputs and outputs, without labels, the whole way."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from command_line import kdcompile
from cpp_sample import compile_, infer, save_engine
from two_inputs import network, samples, write

from kdcompile import api
from kdcompile.core.errors import KDError
from kdcompile.core.ports import Port, Ports
from kdcompile.core.report import Report
from kdcompile.data.preprocess import Preprocess, RowPreprocess
from kdcompile.gates.from_board import judge_board
from kdcompile.remote.agent.pack import Pack, prepare

NANO = {"backend": "tensorrt", "backend_version": "10.3.0", "platform": "linux aarch64",
        "module": "NVIDIA Jetson Orin Nano Developer Kit", "power_mode": "15W",
        "gpu": {"name": "Orin", "compute_capability": "8.7"},
        "memory_mb": {"total": 7620}}  # fmt: skip
INPUTS = {"signal": {"shape": [1, 2, 24]}, "ids": {"shape": [1, 5], "dtype": "int64"}}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a spec and its bundle."""
    folder = tmp_path_factory.mktemp("generic")
    write(folder)
    spec = folder / "kdcompile.toml"  # by its latency so small a network would ship in fp32
    spec.write_text('quantize.precision = "fp16"\n' + spec.read_text())
    kdcompile(folder, "build", "kdcompile.toml", "-o", "bundle")
    return folder


def _sample(folder):
    given = {name: array[0] for name, array in samples(80).items()}
    np.savez(folder / "one.npz", **given)
    return given


def test_the_network_has_its_names_shapes_and_types(built):
    graph = onnx.load(built / "bundle" / "kit" / "student_fp32.onnx").graph
    ports = [*graph.input, *graph.output]
    found = {
        v.name: ([d.dim_value for d in v.type.tensor_type.shape.dim], v.type.tensor_type.elem_type)
        for v in ports
    }
    assert found == {
        "signal": ([1, 2, 24], onnx.TensorProto.FLOAT),
        "ids": ([1, 5], onnx.TensorProto.INT64),
        "scores": ([1, 6], onnx.TensorProto.FLOAT),
        "trace": ([1, 3, 12], onnx.TensorProto.FLOAT),
    }


def test_the_student_is_smaller_and_evaluated_by_its_distance(built):
    report = json.loads((built / "bundle" / "report.json").read_text())
    details = report["details"]
    costs = details["costs"]
    assert costs["student"]["params"] < 0.6 * costs["teacher"]["params"]
    assert details["task"]["metric"] == "rel_error"
    rows = details["predictions"]
    assert len(rows) == 16
    assert max(row["teacher"] for row in rows) < 1e-4
    assert all(0 < row["student_fp32"] < 6 for row in rows)
    gate = next(g for g in report["gates"] if g["name"] == "accuracy")
    assert gate["verdict"] == "passed"


def test_training_comes_nearer_to_the_teacher(built):
    lines = (built / "bundle" / "metrics.jsonl").read_text().splitlines()
    found = [row["val_rel_error"] for row in map(json.loads, lines) if "val_rel_error" in row]
    assert found[-1] < found[0]


def test_run_infer_and_the_kit_agree(built):
    given, bundle = _sample(built), built / "bundle"
    kdcompile(built, "run", "bundle", "one.npz", "-o", "there")
    command = [sys.executable, str(bundle / "infer.py"), "one.npz"]
    told = subprocess.run(command, cwd=built, capture_output=True, text=True, check=True).stdout
    assert "scores [1, 6], trace [1, 3, 12]" in told
    with np.load(built / "there" / "one_outputs.npz") as a, np.load(built / "one_outputs.npz") as b:
        assert a.files == b.files == ["scores", "trace"]
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
    out = built / "device"
    command = [sys.executable, "build_engine.py", "--backend", "onnxruntime", "--out", str(out)]
    subprocess.run(command, cwd=bundle / "kit", capture_output=True, check=True)
    fp32 = json.loads((out / "device.json").read_text())["candidates"][0]
    assert (fp32["precision"], fp32["sqnr_db"]) == ("fp32", 200.0)
    assert fp32["relative_error"] == 0
    assert given["signal"].shape == (2, 24)


def test_verify_and_a_second_build_find_it_whole(built):
    kdcompile(built, "verify", "bundle")
    told = kdcompile(built, "build", "kdcompile.toml", "-o", "bundle").stderr
    assert "distill" not in told


def test_a_metric_of_the_users_own(built):
    (built / "score.py").write_text(
        "def score(outputs, sample):\n"
        '    return float(abs(outputs["scores"][0] - sample["target"]).mean())\n'
    )
    sets = ["--set", "task.metric=score.py:score", "--set", "distill.steps=0"]
    kdcompile(built, "build", "kdcompile.toml", "-o", "scored", *sets)
    details = json.loads((built / "scored" / "report.json").read_text())["details"]
    row, teacher, target = details["predictions"][0], network(), samples(80)["target"][64]
    told = json.loads(kdcompile(built, "bisect", "kdcompile.toml", *sets, "--json").stdout)
    assert told["rungs"][0]["metric"] > 0
    assert "score" in told["tolerance_why"]
    refusal = kdcompile(built, "bisect", "scored", code=1).stderr
    assert "error[parity-incomplete]" in refusal
    assert "function of its metric score" in refusal
    given = {name: array[64:65] for name, array in samples(80).items()}
    import torch

    scores = teacher(torch.from_numpy(given["signal"]), torch.from_numpy(given["ids"]))["scores"]
    wanted = np.abs(scores.detach().numpy()[0] - target).mean()
    assert row["teacher"] == pytest.approx(wanted, rel=1e-4)


def test_from_python_with_samples_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = samples(80)
    each = [{n: a[i] for n, a in given.items() if n != "target"} for i in range(80)]
    plan = api.plan(
        teacher=network(), data={"train": each[:48], "val": each[48:64], "test": each[64:]},
        task="generic", target="jetson", work=tmp_path / "work",
        export={"inputs": INPUTS},
    )  # fmt: skip
    assert [step.stage for step in plan.steps][:2] == ["teacher", "search"]


@pytest.mark.parametrize(
    ("sets", "code", "says"),
    [
        (["export.inputs.ids.shape=[1, 4]"], "sample-shape", "ids is [5]"),
        (["export.inputs.ids.dtype=float32"], "network-forward", "ids float32 [1, 5]"),
        (["task.kind=classification"], "spec-invalid", 'export.inputs needs task.kind = "generic"'),
        (["student.family=search", "student.budget={macs=1e4}"], "spec-invalid", "has no search"),
        (["quantize.qad=true"], "spec-invalid", "has no quantize.qad"),
        (["distill.precision=bfloat16"], "spec-invalid", "has no distill.precision"),
        (["task.metric=absent.py:score"], "factory-missing", "absent.py"),
        (["data.val=samples.npz[80:]"], "split-empty", "no image of its own"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_plan(built, sets, code, says):
    words = [word for one in sets for word in ("--set", one)]
    told = kdcompile(built, "plan", "kdcompile.toml", *words, code=1).stderr
    assert f"error[{code}]" in told
    assert says in " ".join(told.split())


def test_bisect_climbs_the_rungs_of_a_spec_and_of_a_bundle(built):
    told = json.loads(kdcompile(built, "bisect", "kdcompile.toml", "--json").stdout)
    found = {rung["name"]: rung["verdict"] for rung in told["rungs"]}
    assert (found["pytorch"], found["exported"], found["onnx"]) == ("reference", "passed", "passed")
    assert set(found.values()) == {"reference", "passed", "absent"}
    metrics = [rung["metric"] for rung in told["rungs"] if rung["metric"] is not None]
    assert metrics == pytest.approx([metrics[0]] * len(metrics), rel=0.05)
    told = json.loads(kdcompile(built, "bisect", "bundle", "--json").stdout)
    shown = {rung["name"]: rung["verdict"] for rung in told["rungs"]}
    assert {**found, "pytorch": "absent", "exported": "absent", "onnx": "reference"} == shown


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_the_cpp_sample_of_the_bundle_takes_the_same_archive(built):
    given, bundle = _sample(built), built / "bundle"
    folder = built / "compiled"
    shutil.copytree(bundle / "cpp", folder / "cpp")
    compile_(folder, "-o", str(folder / "infer"))
    save_engine(folder, b"rows engine")
    done = infer(folder, built / "one.npz", cwd=folder)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "one_outputs.npz") as found:
        assert {name: found[name].shape for name in found.files} == {
            "scores": (1, 6), "trace": (1, 3, 12),
        }  # fmt: skip
        assert found["scores"][0, 0] == (given["ids"] * np.arange(1, 6)).sum()
    command = [sys.executable, str(bundle / "infer.py"), "one.npz", "--save-input", "x.npy"]
    refused = subprocess.run(command, cwd=built, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "takes no image" in refused.stderr


@pytest.fixture(scope="module")
def on_board(built):
    """What the kit's own script finds with the test pack, run here."""
    kdcompile(built, "bundle", "kdcompile.toml", "--test-pack", "pack", "-o", "bundle")
    out, kit = built / "tested", built / "bundle" / "kit"
    command = [sys.executable, "build_engine.py", "--backend", "onnxruntime", "--test"]
    command += [str(built / "pack"), "--out", str(out), "--iterations", "2"]
    done = subprocess.run(command, cwd=kit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "device.json").read_text())


def test_a_board_with_the_test_pack_decides_accuracy_and_speedup(built, on_board):
    report = json.loads((built / "bundle" / "report.json").read_text())
    wanted = [row["student_fp32"] for row in report["details"]["predictions"]]
    fp32 = next(c for c in on_board["candidates"] if c["precision"] == "fp32")
    assert fp32["predictions"] == pytest.approx(wanted, rel=1e-4)
    assert fp32["accuracy"]["student"] == pytest.approx(np.mean(wanted), rel=1e-4)
    verdicts = {gate["name"]: gate["verdict"] for gate in on_board["gates"]}
    assert verdicts["accuracy"] == "passed"
    assert verdicts["speedup"] != "skipped"


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "passed"), (9.0, "failed")])
def test_home_decides_a_boards_numbers(built, on_board, scale, verdict):
    bundle = built / "bundle"
    record = json.loads(json.dumps(on_board))
    record["environment"] |= NANO  # as if the board had been one
    chosen = next(c for c in record["candidates"] if c["precision"] == record["chosen"])
    chosen["predictions"] = [scale * error for error in chosen["predictions"]]
    report = Report.from_json(json.loads((bundle / "report.json").read_text()))
    kit, gates = (json.loads((bundle / "kit" / f).read_text()) for f in ("kit.json", "gates.json"))
    merged, _ = judge_board(report, kit, gates, record, "device.json")
    found = {gate.name: gate for gate in merged.gates}
    assert found["accuracy@device"].verdict == verdict
    assert "rel_error" in found["accuracy@device"].observed
    assert found["speedup@device"].verdict != "pending"
    other = {**report.details, "data": {"test": {"photos_sha256": "0" * 64}}}
    with pytest.raises(KDError, match="other images or another teacher"):
        judge_board(replace(report, details=other), kit, gates, record, "device.json")


def test_a_pack_of_another_teacher_is_refused(built, on_board):
    kit = json.loads((built / "bundle" / "kit" / "kit.json").read_text())
    assert Pack(str(built / "pack"), kit).outputs.names == ("scores", "trace")
    with pytest.raises(KDError, match="another build: teacher differ"):
        Pack(str(built / "pack"), {**kit, "teacher": "0" * 64})


@pytest.mark.parametrize("over", ["sample", "set"])
def test_no_board_has_a_metric_of_the_users_own(built, over):
    (built / "score.py").write_text("def score(outputs, sample):\n    return 0.0\n")
    command = ["bundle", "kdcompile.toml", "--set", "task.metric=score.py:score"]
    command += ["--set", f"task.metric_over={over}"]
    command += ["--set", "distill.steps=0", "--test-pack", "scored_pack"]
    told = kdcompile(built, *command, code=1).stderr
    assert "error[pack-task]" in told
    assert "score.py:score" in told
    assert not (built / "scored_pack").exists()


def test_a_board_makes_the_same_row_of_a_photo():
    image = Preprocess(3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (16, 24), (16, 24))
    whole = RowPreprocess.of(Ports((Port("image", (1, 3, 16, 24), "float32"),)), image)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 24, 3), np.uint8)
    constants = json.loads(json.dumps(whole.to_json()))
    assert prepare(pixels, constants).tobytes() == whole(pixels).tobytes()


def test_a_damaged_sample_is_one_error_line(built):
    (built / "bad.npz").write_bytes(b"nothing")
    _sample(built)
    found = kdcompile(built, "run", "bundle", "bad.npz", "one.npz", "-o", "there", code=1)
    assert "error[sample-unreadable]" in found.stderr
    assert "one.npz" in found.stdout


def test_photos_of_a_network_of_two_outputs(tmp_path):
    """Photos are the one input then; what they are labelled with does not matter."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)\n"
        "        self.c = nn.Linear(32, 4)\n\n"
        "    def forward(self, x):\n"
        "        maps = torch.relu(self.b(torch.relu(self.a(x))))\n"
        "        return self.c(maps.mean((2, 3))), maps[:, :, ::4, ::4].mean(1)\n\n\n"
        "def build():\n    torch.manual_seed(0)\n    return Net()\n"
    )
    import importlib.util

    spec = importlib.util.spec_from_file_location("net", tmp_path / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import torch

    torch.save(module.build().state_dict(), tmp_path / "net.pt")
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "d.npz", x=random.integers(0, 256, (40, 16, 16, 3), np.uint8), y=np.zeros(40)
    )
    (tmp_path / "kdcompile.toml").write_text(
        'task.kind = "generic"\nteacher = { model = "net.py:build", weights = "net.pt" }\n'
        'data = { format = "npz", root = ".", train = "d.npz[:24]", val = "d.npz[24:32]", '
        'test = "d.npz[32:]" }\nstudent.budget.width = 0.5\nexport.shape = [1, 3, 16, 16]\n'
        "distill.steps = 4\nquantize.images = 4\n"
        'gates.accuracy = { max_increase = "100%", margin = "110%" }\n'
    )
    kdcompile(tmp_path, "build", "kdcompile.toml", "-o", "bundle", "--target", "cpu")
    found = json.loads((tmp_path / "bundle" / "preprocess.json").read_text())
    assert found["inputs"] == [{"name": "image", "shape": [1, 3, 16, 16], "dtype": "float32"}]
    assert found["image"]["channels"] == 3
