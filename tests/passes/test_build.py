"""The whole way on the embedded example, made small: build, cache, bundle, run, verify."""

import json
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from command_line import kdcompile
from documents import check_document, command_of
from PIL import Image
from small_digits import AT_64, few_photos

from kdcompile.cli import cli
from kdcompile.core.store import KEY_CHARS
from kdcompile.onnx_graph.opset import opset_of

SMALL = [
    *AT_64,
    "distill.steps=24",
    "distill.evaluations=2",
    "data.train=train:32",
    "data.val=val:16",
    "data.test=test:40",
    "quantize.images=8",
    "gates.accuracy.max_increase=5%",  # which a few steps cannot reach
    "gates.speedup.required=false",  # a busy machine decides no test
]


def _sets():
    return [word for value in SMALL for word in ("--set", value)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the example and its bundle; 24 steps cannot pass the accuracy gate."""
    folder = tmp_path_factory.mktemp("build")
    kdcompile(folder, "init", "--example", "digits", "tiny")
    few_photos(folder / "tiny")  # of the commands that are given no sets
    kdcompile(folder, "build", "tiny", "--target", "jetson", *_sets(), code=3)
    return folder


def test_the_bundle_holds_everything(built):
    bundle = built / "dist" / "tiny-jetson"
    names = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert {
        "manifest.json", "report.json", "report.md", "report.html", "model.onnx", "infer.py",
        "preprocess.json", "calibration.json", "metrics.jsonl", "kit/build_engine.py",
        "kit/agent.pyz", "kit/student_fp32.onnx", "kit/student_fp16.onnx", "kit/student_int8.onnx",
        "kit/reference.npz", "kit/gates.json",
    } <= names  # fmt: skip
    assert set(json.loads((bundle / "manifest.json").read_text())["files"]) == names - {
        "manifest.json"
    }


def test_tensorrt_rtx_compiles_fp32_and_qdq(built):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    report = json.loads((built / "dist" / "tiny-jetson" / "report.json").read_text())
    choice = report["details"]["choice"]
    checks = choice["rtx_compile_check"]
    found = {(check["precision"], check["capability"]): check["ok"] for check in checks}
    # a mixed network is one where a layer is worth int8
    mixed = ("mixed",) * any(c["precision"] == "mixed" for c in choice["candidates"])
    asked = ("fp32", "int8", *mixed)
    assert found == {(p, c): True for p in asked for c in ("8.0", "8.6")}


def test_the_verdict_names_what_failed_and_what_is_pending(built):
    report = json.loads((built / "dist" / "tiny-jetson" / "report.json").read_text())
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert report["verdict"] == "failed: accuracy"
    assert report["exit_code"] == 3
    assert gates["accuracy"]["verdict"] == "failed"
    assert gates["parity"]["verdict"] == "passed"
    assert {n for n, g in gates.items() if g["verdict"] == "pending"} == {
        "accuracy@device",
        "parity@device",
        "speedup@device",
    }
    assert all(gate["evidence"] in ("host", "device", "predicted") for gate in gates.values())


def test_a_second_build_runs_nothing(built):
    found = kdcompile(built, "build", "tiny", "--target", "jetson", *_sets(), code=3)
    assert found.stderr == ""
    plan = json.loads(kdcompile(built, "plan", "tiny", *_sets(), "--json").stdout)
    assert all(step["key"] for step in plan["steps"])
    assert plan["margin"]["images"] == 40


def test_a_cached_build_loads_no_heavy_library(built):
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom kdcompile.cli import cli\n"
        f"r = CliRunner().invoke(cli, {['build', 'tiny', '--target', 'jetson', *_sets()]!r})\n"
        "assert r.exit_code == 3, r.output\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-P", "-c", code]
    found = subprocess.run(command, cwd=built, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


OF_A_BUILD = [
    ("plan", "tiny"), ("plan", "tiny", "--target", "cpu"), ("build", "tiny"), ("search", "tiny"),
    ("distill", "tiny"), ("distill", "tiny", "--explain"), ("export", "tiny"),
    ("calibrate", "tiny"), ("compile", "tiny"), ("bundle", "tiny"), ("verify", "tiny"),
    ("verify", "dist/tiny-jetson"), ("verify", "dist/tiny-jetson", "--parity"),
    ("bisect", "dist/tiny-jetson"), ("report", "dist/tiny-jetson"),
]  # fmt: skip
UNCOMPARED = [("verify", "dist/tiny-jetson", "--parity"), ("bisect", "dist/tiny-jetson")]


@pytest.mark.parametrize("words", OF_A_BUILD, ids=" ".join)
def test_json_is_one_document_of_its_schema(built, words):
    sets = _sets() if words[1] == "tiny" else []
    with chdir(built):
        found = CliRunner().invoke(cli, [*words, *sets, "--json"])
    # the fp32 student, which ships where none passes, has no other form to be held against
    assert found.exit_code in ((5,) if words in UNCOMPARED else (0, 3)), found.output
    check_document(command_of(words), json.loads(found.stdout))


def test_a_change_reruns_what_depends_on_it(built):
    def steps(*sets):
        words = [w for value in sets for w in ("--set", value)]
        plan = json.loads(kdcompile(built, "plan", "tiny", *_sets(), *words, "--json").stdout)
        why.append({step["stage"]: step["why"] for step in plan["steps"]})
        return [step["stage"] for step in plan["steps"] if step["key"] is None]

    why = []
    assert steps("data.max_test=39") == ["verify", "bundle"]
    assert steps("quantize.calibrator=minmax") == ["calibrate", "compile", "verify", "bundle"]
    later = ["distill", "export", "calibrate", "compile", "verify", "bundle"]
    assert steps("distill.lr=0.5") == later
    assert steps("data.train=train:33") == ["teacher", *later]
    assert [found["verify"][0] for found in why[:2]] == [
        "spec: data.max_test none -> 39", "spec: quantize.calibrator entropy -> minmax",
    ]  # fmt: skip
    assert why[2]["distill"] == ["spec: distill.lr 0.001 -> 0.5"]
    assert why[3]["teacher"][0].startswith("data: ")
    assert why[3]["search"] == []


def test_another_power_mode_trains_nothing_again(built):
    plan = json.loads(
        kdcompile(built, "plan", "tiny", *_sets(), "--target", "jetson@15W", "--json").stdout
    )
    keys = {step["stage"]: step["key"] for step in plan["steps"]}
    assert keys["distill"]
    assert keys["compile"] is None


def test_this_machine_as_the_target(built):
    untimed = ("--set", "gates.speedup.evidence=predicted")  # a busy machine is timed three times
    kdcompile(built, "build", "tiny", "--target", "cpu", *_sets(), *untimed, code=3)
    bundle = built / "dist" / "tiny-cpu"
    report = json.loads((bundle / "report.json").read_text())
    assert not any(gate["verdict"] == "pending" for gate in report["gates"])
    assert report["details"]["choice"]["basis"] == "measured"
    assert {c["precision"] for c in report["details"]["choice"]["candidates"]} == {"fp32", "int8"}
    assert not (bundle / "kit").exists()
    ladder = json.loads(kdcompile(built, "bisect", bundle, "--json").stdout)
    verdicts = {rung["name"]: rung["verdict"] for rung in ladder["rungs"]}
    assert (verdicts["onnx"], verdicts["engine"]) == ("reference", "passed")
    assert ladder["n"] == 16  # of the validation photos, of at most 4 MB


def test_run_and_infer_count_alike(built):
    bundle = built / "dist" / "tiny-jetson"
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 99, (64, 64), np.uint8)).save(built / "photo.png")
    row = json.loads(kdcompile(built, "run", str(bundle), "photo.png", "--json").stdout)
    check_document("run", row)
    assert (built / row["overlay"]).is_file()
    command = [sys.executable, str(bundle / "infer.py"), "photo.png"]
    found = subprocess.run(command, cwd=built, capture_output=True, text=True, check=True)
    assert any(
        float(word) == pytest.approx(row["count"], abs=0.06)
        for word in found.stdout.split()
        if word.replace(".", "").replace("-", "").isdigit()
    )


def test_verify_and_report_read_the_bundle(built):
    bundle = str(built / "dist" / "tiny-jetson")
    checked = json.loads(kdcompile(built, "verify", bundle, "--json", code=3).stdout)
    report = json.loads((built / "dist" / "tiny-jetson" / "report.json").read_text())
    precision = report["details"]["choice"]["precision"]
    assert checked["parity"]["sqnr_db"] > {"fp32": 100, "fp16": 50}.get(precision, 30)
    assert "failed: accuracy" in kdcompile(built, "report", bundle).stdout


def test_a_flipped_byte_is_refused(built):
    copy = built / "copy"
    shutil.copytree(built / "dist" / "tiny-jetson", copy)
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").chmod(0o644)
    (copy / "model.onnx").write_bytes(content)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(built / "black.png")
    for args in (("run", "copy", "black.png"), ("verify", "copy"), ("report", "copy")):
        error = kdcompile(built, *args, code=1).stderr
        assert error.startswith("error[bundle-corrupt]")
        assert "model.onnx" in error


def test_a_stage_alone_writes_its_file(built):
    found = kdcompile(built, "export", "tiny", *_sets(), "-o", "student.onnx")
    assert "student.onnx" in found.stdout
    model = onnx.load(built / "student.onnx")
    assert opset_of(model) == 18
    assert model.ir_version == 9
    kdcompile(built, "calibrate", "tiny", *_sets(), "-o", "calibrated")
    assert (built / "calibrated" / "calibration.json").is_file()


def test_a_spoilt_store_entry_is_made_again(built):
    plan = json.loads(kdcompile(built, "plan", "tiny", *_sets(), "--json").stdout)
    key = next(step["key"] for step in plan["steps"] if step["stage"] == "export")
    entry = built / "tiny" / ".kdcompile" / "export" / key[:KEY_CHARS] / "student.onnx"
    entry.chmod(0o644)
    entry.write_bytes(b"edited")
    found = kdcompile(built, "export", "tiny", *_sets(), "-o", "again.onnx")
    assert "export" in found.stderr.splitlines()
    assert (built / "again.onnx").read_bytes() == (built / "student.onnx").read_bytes()


def test_clean_keeps_what_the_spec_needs(built):
    found = json.loads(kdcompile(built, "clean", "tiny", "--json").stdout)
    check_document("clean", found)
    assert any("distill" in path for path in found["removed"])
    plan = json.loads(kdcompile(built, "plan", "tiny", "--json").stdout)
    assert [s["stage"] for s in plan["steps"] if s["key"]] == ["search"]
    kdcompile(built, "clean", "tiny", "--all")
    store = built / "tiny" / ".kdcompile"
    assert [p for p in store.glob("*/*") if p.is_dir() and p.parent.name != "locks"] == []


def test_a_useless_teacher_stops_the_build(built):
    weights = Path(built / "tiny" / "teacher.safetensors")
    from safetensors.torch import load_file, save_file

    state = {name: tensor * 0 for name, tensor in load_file(weights).items()}
    save_file(state, built / "zero.safetensors")
    sets = [*_sets(), "--set", "teacher.weights=zero.safetensors"]
    error = kdcompile(built, "build", "tiny", *sets, code=1).stderr
    assert "error[teacher-useless]" in error
