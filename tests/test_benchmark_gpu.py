"""benchmarks/gpu.py without a GPU: the plan, the dry run, how it goes on, what it brings back."""

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NAMES = ("gpu", "gpu_files", "gpu_merge", "gpu_ncu", "gpu_pack", "gpu_plan", "gpu_run", "gpu_steps",
         "gpu_warm")  # fmt: skip


@pytest.fixture(scope="module")
def scripts():
    """The modules by their short names."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield SimpleNamespace(**{n.removeprefix("gpu_"): importlib.import_module(n) for n in NAMES})
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in set(sys.modules) - before:
            if name.startswith(("gpu", "kernel_", "static_")):
                del sys.modules[name]


@pytest.fixture
def place(scripts, tmp_path):
    """An empty work folder of a dry run."""
    own = scripts.steps.Place("cpu", tmp_path / "work", 1)
    own.results.mkdir(parents=True)
    return own


@pytest.fixture
def battery(scripts, place, tmp_path, monkeypatch):
    """`battery(steps, seconds)` of steps given as name: commands, what pytest needs aside."""

    def make(steps, seconds=60.0):
        known = {n: s for n, s in steps.items() if isinstance(s, scripts.steps.Step)}
        made = {
            name: known.get(name)
            or scripts.steps.Step(name, 20, lambda _, code=code: [python(code)])
            for name, code in steps.items()
        }
        monkeypatch.setattr(scripts.run, "STEPS", made)
        end = time.monotonic() + scripts.run.RESERVE + seconds
        return scripts.run.Battery(place, tmp_path / "out", end)

    return make


def python(code):
    return [sys.executable, "-c", code]


def statuses(found):
    return {name: step["status"] for name, step in found.state["steps"].items()}


def test_the_plan_shares_steps_and_parts_out_under_the_limits(scripts):
    plan, machine = scripts.plan, scripts.plan.Machine()
    steps = [("a", 300, ()), ("b", 200, ()), ("c", 200, ("photos",)), ("d", 500, ("photos",))]
    parts = {"photos": [(f"photos.{i}", 16 * plan.MIB) for i in range(8)], "unused": [("u", 1)]}
    calls = plan.planned(steps, parts, [("site", 10 * plan.MIB)], 12 * plan.MIB, machine)
    assert [call.steps for call in calls] == [["a", "b"], [], [], ["c"], ["d"]]
    assert [len(call.files) for call in calls] == [3, 3, 1, 3, 1]
    assert [call.seconds for call in calls] == [500, 0, 0, 200, 500]
    for call in calls:
        assert call.bytes + 12 * plan.MIB <= machine.carried_bytes
        assert call.seconds <= 60 * machine.call_minutes
    text = plan.text(calls, 12 * plan.MIB, machine)
    assert "01         500   54.0  a, b; site, photos.0, photos.1" in text
    assert "nothing but to bring files" in text


def test_a_call_over_its_limit_is_an_error(scripts):
    plan, machine = scripts.plan, scripts.plan.Machine()
    with pytest.raises(ValueError, match="exceed the room"):
        plan.planned([("a", 1, ())], {}, [("site", 60 * plan.MIB)], 12 * plan.MIB, machine)
    parts = {"photos": [("photos.0", 60 * plan.MIB)]}
    with pytest.raises(ValueError, match=r"photos\.0 of \d+ bytes exceeds"):
        plan.planned([("a", 1, ("photos",))], parts, [], 12 * plan.MIB, machine)


def test_every_step_is_in_the_order_of_its_worth(scripts):
    assert [s.name for s in scripts.steps.FIRST] == [
        "smoke", "warm", "gate", "main rows", "other rows", "ncu", "speed", "test_cuda", "ablation",
    ]  # fmt: skip
    assert [s.name for s in scripts.steps.SECOND] == [
        "tensorrt", "engines", "calibrate", "ranking", "searched"
    ]  # fmt: skip
    machine = scripts.plan.Machine()
    assert all(s.seconds <= 60 * machine.call_minutes for s in scripts.steps.STEPS.values())
    rows = {*scripts.steps.MAIN, *scripts.steps.OTHERS}
    kernels = importlib.import_module("kdcompile.kernels._registry").kernels()
    assert rows == set(kernels)


@pytest.mark.parametrize("backend", ["cuda", "cpu"])
def test_every_program_and_file_of_a_step_is_there(scripts, tmp_path, backend):
    place = scripts.steps.Place(backend, tmp_path, 14)
    for step in scripts.steps.STEPS.values():
        for command in step.commands(place):
            named = [Path(word) for word in command if word.endswith(".py")]
            assert all(path.is_file() for path in named), command
            assert [w for w in command if isinstance(w, str)] == command


def test_nothing_is_written_where_it_would_be_lost(scripts, tmp_path):
    """Every file that a step on the machine makes lies in what comes back or is kept there."""
    place = scripts.steps.Place("cuda", tmp_path, 14)
    for step in scripts.steps.STEPS.values():
        for command in step.commands(place):
            outs = [command[i + 1] for i, w in enumerate(command) if w in ("--out", "-o", "--work")]
            outs += [word.partition("=")[2] for word in command if word.startswith("--junitxml=")]
            folders = (place.results, place.work / "kept")
            assert all(any(Path(o).is_relative_to(f) for f in folders) for o in outs), command
            assert outs or step.name in ("warm", "tensorrt", "calibrate")


def test_it_goes_on_where_it_stopped(scripts, battery):
    sleeping = [python("import time; time.sleep(600)")]
    steps = {
        "one": "open('results/n', 'a').write('x')",
        "slow": scripts.steps.Step("slow", 1, lambda _: sleeping),
        "two": "print('in the log')",
    }
    assert battery(steps, seconds=-10).run(list(steps)) == 5
    first = battery(steps)
    assert first.run(list(steps)) == 5
    assert statuses(first) == {"one": "passed", "slow": "remains", "two": "passed"}
    assert (first.out / "state.json").is_file()
    steps["slow"] = "raise SystemExit(3)"
    second = battery(steps)
    assert second.run(list(steps)) == 1
    assert statuses(second) == {"one": "passed", "slow": "failed", "two": "passed"}
    assert (second.place.results / "n").read_text() == "x"
    assert "in the log" in (second.out / "log.txt").read_text()
    table = second.table(list(steps))
    assert "slow         failed" in table
    assert "2 passed, 1 failed, 0 skipped, 0 remains" in table


def test_a_step_that_says_five_is_tried_again_and_then_failed(scripts, battery):
    steps = {"part": "raise SystemExit(5)"}
    codes = [battery(steps).run(["part"]) for _ in range(scripts.run.TRIES)]
    assert codes == [5, 5, 1]


def test_what_cannot_run_is_skipped_with_a_reason_and_did_not_pass(scripts, battery, tmp_path):
    steps = {"ncu": scripts.steps.STEPS["ncu"]}
    found = battery(steps)
    assert found.run(["ncu"]) == 0
    assert found.state["steps"]["ncu"]["reason"] == "ncu profiles a GPU"
    assert "0 passed, 0 failed, 1 skipped" in found.table(["ncu"])
    place = scripts.steps.Place("cuda", tmp_path, 1)
    reason = scripts.steps.reason_to_skip(scripts.steps.STEPS["engines"], place)
    assert reason == "not brought here whole: photos, tensorrt"


def test_tests_that_all_skip_themselves_are_a_skipped_step(scripts, place, battery, tmp_path):
    (tmp_path / "test_none.py").write_text("import pytest\ndef test_a():\n    pytest.skip('no')\n")
    report = place.results / "nothing.xml"
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:kdcompile",
               f"--rootdir={tmp_path}", f"--junitxml={report}", str(tmp_path)]  # fmt: skip
    step = scripts.steps.Step("nothing", 60, lambda _: [command], tests=True)
    found = battery({"nothing": step})
    assert found.run(["nothing"]) == 0
    assert statuses(found) == {"nothing": "skipped"}


def test_nothing_outlives_its_step(battery):
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "open('results/pid', 'w').write(str(p.pid))"
    )
    found = battery({"parent": code})
    assert found.run(["parent"]) == 0
    child = int((found.place.results / "pid").read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}/cmdline").is_file() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "a process of the step still runs"
        time.sleep(0.05)


def test_what_comes_back_goes_on_elsewhere(scripts, battery, place, tmp_path):
    assert (
        battery(
            {"one": "open('results/a.csv', 'w').write('1')", "more": "raise SystemExit(5)"}
        ).run(["one", "more"])
        == 5
    )
    (place.work / "kept").mkdir()
    (place.work / "kept" / "half").write_bytes(os.urandom(1000))
    scripts.files.bring_back(place.work, tmp_path / "out", with_kept=True)
    back = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert back == ["kept.tar.gz.00of01", "log.txt", "results.tar.gz", "state.json"]
    gpu = tmp_path / "gpu"
    (gpu / "call02").mkdir(parents=True)
    scripts.pack.add_back(gpu, tmp_path / "out")
    elsewhere = scripts.steps.Place("cpu", tmp_path / "elsewhere", 1)
    found = scripts.run.begin(elsewhere, gpu / "call02", tmp_path / "out2", 1.0)
    assert statuses(found) == {"one": "passed", "more": "remains"}
    assert (elsewhere.results / "a.csv").read_text() == "1"
    assert (elsewhere.work / "kept" / "half").stat().st_size == 1000
    with pytest.raises(SystemExit, match="is of the backend cpu"):
        scripts.run.Battery(scripts.steps.Place("cuda", elsewhere.work, 1), tmp_path, 0.0)


def test_too_much_to_bring_back_is_left_out_and_told(
    scripts, battery, place, monkeypatch, tmp_path
):
    monkeypatch.setattr(scripts.files, "PART_BYTES", 100)
    monkeypatch.setattr(scripts.files, "RESULT_BYTES", 100)
    (place.results / "large.bin").write_bytes(os.urandom(1000))
    (place.results / "small.csv").write_text("1")
    (place.work / "tuned").mkdir()
    (place.work / "tuned" / "tuned-card.json").write_text("{}")
    (place.work / "kept").mkdir()
    (place.work / "kept" / "half").write_bytes(os.urandom(1000))
    found = battery({"one": ""})
    assert found.run(["one"]) == 0
    log = (place.work / "log.txt").read_text()
    assert "not brought back: what is half done" in log
    assert "not brought back: large.bin of 1000 bytes" in log
    scripts.files.unpacked((found.out / "results.tar.gz").read_bytes(), tmp_path / "seen")
    seen = {p.relative_to(tmp_path / "seen").as_posix() for p in (tmp_path / "seen").rglob("*.*")}
    assert seen == {"small.csv", "tuned/tuned-card.json"}
    assert len(list(found.out.iterdir())) <= scripts.plan.Machine.files_back


def test_parts_are_joined_when_the_last_has_come(scripts, place, tmp_path):
    (tmp_path / "photos" / "data").mkdir(parents=True)
    (tmp_path / "photos" / "data" / "one.jpg").write_bytes(os.urandom(3000))
    data = scripts.files.packed(tmp_path / "photos")
    parts = scripts.files.parts_of(data, "photos.tar.gz", 1000)
    assert len(parts) > 2
    for number, (name, piece) in enumerate(parts):
        carried = tmp_path / f"call{number}"
        carried.mkdir()
        (carried / name).write_bytes(piece)
        scripts.files.receive(carried, place.work)
        assert (place.work / "photos").is_dir() == (number == len(parts) - 1)
    assert (place.work / "photos" / "data" / "one.jpg").stat().st_size == 3000


def test_results_are_merged_once_and_those_of_a_dry_run_never(scripts, place, battery, tmp_path):
    battery({}).run([])
    out, into = tmp_path / "out", tmp_path / "benchmarks"
    with pytest.raises(SystemExit, match="a dry run measures nothing"):
        scripts.merge.merge(out, into)
    with pytest.raises(SystemExit, match="holds no results"):
        scripts.merge.merge(tmp_path, into)
    (place.results / "kernels.csv").write_text('kernel,setting\nkd_kl,"a, b"\n')
    (place.results / "distill" / "models").mkdir(parents=True)
    (place.results / "distill" / "distill.json").write_text('{"x": {"steps": 1}}')
    (place.work / "state.json").write_text('{"backend": "cuda", "steps": {}}')
    scripts.files.bring_back(place.work, out, with_kept=False)
    into.mkdir()
    (into / "kernels.csv").write_text("kernel,setting\nold,row\n")
    assert scripts.merge.merge(out, into)[0] == "kernels.csv: 1 rows more"
    assert scripts.merge.merge(out, into)[0] == "kernels.csv: 0 rows more"
    assert (into / "kernels.csv").read_text() == 'kernel,setting\nold,row\nkd_kl,"a, b"\n'
    assert json.loads((into / "distill.json").read_text()) == {"x": {"steps": 1}}


def test_the_rows_to_profile_are_the_farthest_from_their_floor(scripts, tmp_path):
    path = tmp_path / "kernels.csv"
    head = "kernel,setting,dtype,layout,impl,p50_ms,floor_ms\n"
    lines = ["a,s,f,l,kernel,2,1", "b,s,f,l,kernel,9,3", "b,s,f,l,eager,90,3", "c,s,f,l,kernel,4,4"]
    path.write_text(head + "\n".join(lines) + "\n")
    assert scripts.ncu.worst(path, 2) == [("b", "s", "f", "l"), ("a", "s", "f", "l")]


def test_what_the_machine_lacks_travels_with_all_that_it_needs_itself(scripts):
    """The project's requirements, and those of what is carried, are carried or said to be there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], "pytest", "pytest-xdist", "hypothesis"]
    for name in scripts.pack.CARRIED:
        wanted += importlib.metadata.requires(name) or []
    there = {"extra": "", "python_version": "3.12", "python_full_version": "3.12.3"}
    for text in wanted:
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate(there):
            known = {*scripts.pack.CARRIED, *scripts.pack.TAKEN}
            assert canonicalize_name(needed.name) in known, text


def _dry_run(out, *more):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "run", "--backend", "cpu",
               "--minutes", "10", "--out", str(out), *more]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_part_of_the_dry_run(scripts, tmp_path):
    done = _dry_run(tmp_path / "out", "--steps", "main rows", "ncu")
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "log.txt").read_text()
    assert "1 passed, 0 failed, 1 skipped, 0 remains" in done.stdout
    scripts.files.unpacked((tmp_path / "out" / "results.tar.gz").read_bytes(), tmp_path / "back")
    lines = (tmp_path / "back" / "kernels.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * len(scripts.steps.TOY)
    assert all(",dry run," in line for line in lines[1:])


def test_without_a_gpu_there_is_only_the_dry_run(scripts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert scripts.gpu.main(["run", "--out", str(tmp_path), "--work", str(tmp_path / "work")]) == 4
    assert "no CUDA GPU" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.soak
def test_the_whole_dry_run(tmp_path):
    done = _dry_run(tmp_path / "out")
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "log.txt").read_text()
    state = json.loads((tmp_path / "out" / "state.json").read_text())["steps"]
    skipped = {name for name, step in state.items() if step["status"] == "skipped"}
    assert skipped == {"other rows", "ncu", "test_cuda", "tensorrt"}
    assert len(state) == 14
