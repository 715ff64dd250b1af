"""The baseline file: what is kept, and every way in which a file may be no good."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench_samples import FACTS, MODE, made

from kdcompile.core.errors import KDError
from kdcompile.latency.baseline import (
    FORMAT,
    Baseline,
    check_baseline,
    make_baseline,
    read_baseline,
)
from kdcompile.latency.baseline_store import author
from kdcompile.latency.report import disturbances, summary
from kdcompile.stats.samples import Block


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "kept" / "b.json"
    make_baseline(made(), tmp_path / "net.onnx", path, "Ann <a@b>", "first").write(path)
    return path


def _refused(file, code):
    with pytest.raises(KDError) as error:
        read_baseline(file)
    assert error.value.code == code
    assert error.value.exit_code == 1
    assert error.value.fix
    return error.value


def _edit(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def _with_block(samples, block):
    """The samples with another first block."""
    run = samples.runs[0]
    build = run.builds[0]
    process = build.processes[0]
    process = replace(process, blocks=(block, *process.blocks[1:]))
    build = replace(build, processes=(process, *build.processes[1:]))
    return replace(samples, runs=(replace(run, builds=(build,)), *samples.runs[1:]))


def test_it_is_read_back_as_it_was_written(file, tmp_path):
    found = read_baseline(file)
    assert len(found.samples.runs) == 3
    assert found.environment["facts"] == FACTS
    assert found.mode == MODE
    assert found.reference == "../net.onnx"
    assert found.artifact(file) == tmp_path / "net.onnx"
    assert [block.ms for block in found.samples.blocks()] == [
        tuple(round(ms, 6) for ms in block.ms) for block in made().blocks()
    ]
    first, second = tmp_path / "x.json", tmp_path / "y.json"
    found.write(first)
    read_baseline(first).write(second)
    assert first.read_text() == second.read_text()


def test_a_block_is_one_line(file):
    lines = file.read_text().splitlines()
    assert len(lines) < 800  # 90 blocks of 20 numbers
    assert sum(line.count(",") > 15 for line in lines) == 90


def test_text_that_looks_like_numbers_is_not_touched(tmp_path):
    file = tmp_path / "b.json"
    make_baseline(made(), tmp_path / "n", file, "me", "[\n 1,\n 2 ]").write(file)
    assert read_baseline(file).history[0]["why"] == "[\n 1,\n 2 ]"


def test_its_history_goes_on(file, tmp_path):
    old = read_baseline(file)
    faster = made(0.9, sha256="b" * 64)
    new = make_baseline(faster, tmp_path / "net.onnx", file, "Bob", "a faster head", old)
    new.write(file)
    first, second = read_baseline(file).history
    assert (first["who"], first["why"], first["before"]) == ("Ann <a@b>", "first", None)
    assert second["sha256"] == "b" * 64
    assert second["before"] == first["after"]
    assert second["after"]["p50_ms"] == pytest.approx(0.9, rel=0.01)
    assert second["when"].endswith("+00:00")


def test_a_run_here_must_be_alike(file):
    baseline = read_baseline(file)
    here = {"facts": {**FACTS, "cpu": "Other"}, "state": {}}
    assert check_baseline({"facts": FACTS, "state": {"load": 9}}, MODE, baseline) == ()
    with pytest.raises(KDError, match="cpu: Test CPU -> Other"):
        check_baseline(here, MODE, baseline, (), "b.json")
    assert len(check_baseline(here, MODE, baseline, ["cpu"])) == 1


def test_missing(tmp_path):
    error = _refused(tmp_path / "none.json", "baseline-missing")
    assert f"--save {tmp_path / 'none.json'}" in error.fix


def test_a_folder(tmp_path):
    _refused(tmp_path, "baseline-broken")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated(file, share):
    text = file.read_text()
    file.write_text(text[: int(share * len(text))].rstrip("}\n "))
    assert "no whole JSON" in _refused(file, "baseline-broken").message


def test_not_text(file):
    file.write_bytes(b"\xff\xfe\x00binary")
    _refused(file, "baseline-broken")


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"format": "one"}', '{"version": 1}'])
def test_another_json(file, text):
    file.write_text(text)
    _refused(file, "baseline-unknown")


def test_a_newer_format(file):
    _edit(file, lambda v: v.update(format=FORMAT + 1, kdcompile_version="99.1"))
    assert "99.1" in _refused(file, "baseline-newer").message


def _slower(values):
    values["samples"]["runs"][0]["builds"][0]["processes"][0]["blocks"][0]["ms"][0] *= 2


@pytest.mark.parametrize(
    "change",
    [
        _slower,
        lambda v: v["samples"]["runs"].pop(),
        lambda v: v["samples"]["runs"][0]["mode"].update(batch=8),
        lambda v: v["history"][0].update(why="nothing"),
        lambda v: v["reference"].update(sha256="c" * 64),
        lambda v: v.pop("digest"),
        lambda v: v.update(more=1),
    ],
)
def test_edited(file, change):
    _edit(file, change)
    _refused(file, "baseline-edited")


def test_a_formatter_is_no_editor(file):
    values = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(values.items())), indent=4))
    assert len(read_baseline(file).samples.runs) == 3


def test_a_sealed_file_without_samples(file, monkeypatch):
    kept = Baseline.to_json

    def lacking(baseline):
        values = kept(baseline)
        del values["samples"], values["digest"]
        from kdcompile.core.store import digest

        return values | {"digest": digest(values)}

    baseline = read_baseline(file)
    monkeypatch.setattr(Baseline, "to_json", lacking)
    baseline.write(file)
    assert "samples" in _refused(file, "baseline-broken").message


@pytest.mark.parametrize("runs", [1, 2])
def test_fewer_than_three_runs(file, tmp_path, runs):
    with pytest.raises(KDError) as error:
        make_baseline(made(runs=runs), tmp_path / "n", file, "me", "why")
    assert error.value.code == "baseline-runs"
    Baseline(made(runs=runs), "n", ()).write(file)
    _refused(file, "baseline-runs")


@pytest.mark.parametrize("ms", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_latency_that_is_none(file, tmp_path, ms):
    bad = _with_block(made(), Block((1.0, ms), 0.0))
    with pytest.raises(KDError) as error:
        make_baseline(bad, tmp_path / "n", file, "me", "why")
    assert error.value.code == "baseline-samples"
    Baseline(bad, "n", ()).write(file)
    message = _refused(file, "baseline-samples").message
    assert f"a latency of {ms} ms (run 1, build 1, process 1, block 1)" in message


def test_no_latency_at_all(tmp_path):
    for samples in (made(blocks=0), made(blocks=2, disturbed=(0, 1))):
        with pytest.raises(KDError, match="run 1 has no undisturbed block"):
            make_baseline(samples, tmp_path / "n", tmp_path / "b.json", "me", "why")


def test_runs_of_an_unsteady_machine(tmp_path):
    runs = made().runs
    environment = {"facts": {**FACTS, "governor": "powersave"}, "state": {}}
    mixed = replace(made(), runs=(*runs[:2], replace(runs[2], environment=environment)))
    with pytest.raises(KDError) as error:
        make_baseline(mixed, tmp_path / "n", tmp_path / "b.json", "me", "why")
    assert error.value.code == "baseline-unsteady"
    assert "run 3" in error.value.message
    assert "governor: (absent) -> powersave" in error.value.message


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "f").write_text("")
    baseline = make_baseline(made(), tmp_path / "n", tmp_path / "b.json", "me", "why")
    with pytest.raises(KDError) as error:
        baseline.write(tmp_path / "f" / "b.json")
    assert error.value.code == "baseline-folder"


def test_summaries_leave_out_what_was_disturbed():
    found = summary(made(disturbed=(0, 3)))
    assert (found["blocks"], found["disturbed"], found["runs"]) == (72, 18, 3)
    assert found["inferences"] == 72 * 20
    assert found["p50_ms"] < found["p90_ms"] < found["p99_ms"]
    assert disturbances(made(disturbed=(0, 3))) == {"clock fell": 18}
    assert summary(made(blocks=1, disturbed=(0,)))["p50_ms"] is None


def test_the_author_is_gits_or_the_login(monkeypatch, tmp_path):
    config = tmp_path / "config"
    config.write_text("[user]\n name = Ann\n email = ann@x.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.chdir(tmp_path)
    assert author() == "Ann <ann@x.org>"
    config.write_text("")
    monkeypatch.setenv("LOGNAME", "login")
    assert author() == "login"
    monkeypatch.setenv("PATH", "")  # no git
    assert author() == "login"
    monkeypatch.delenv("LOGNAME")
    monkeypatch.setattr("getpass.getuser", _nameless)
    assert author() == "unknown"


def _nameless():
    raise OSError("no username")


def test_the_artifact_may_lie_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    baseline = make_baseline(made(), Path("a/net.onnx"), Path("kept/here/b.json"), "me", "why")
    assert baseline.reference == "../../a/net.onnx"
    assert baseline.artifact(Path("kept/here/b.json")) == tmp_path / "a" / "net.onnx"
