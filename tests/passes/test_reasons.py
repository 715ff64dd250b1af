"""Why a step is to do: what is said, where it is kept, and what happens without it."""

import json

import pytest
from command_line import CommandLine
from written_build import paint, plan_of, to_do

from kdcompile.config.distill import INHERITED_RATE
from kdcompile.core import logs
from kdcompile.passes import why
from kdcompile.passes.keys import covered
from kdcompile.passes.plan_text import lines
from kdcompile.passes.show import step_of
from kdcompile.passes.stages import STAGES
from kdcompile.passes.why import NEVER, UNSEEN, drop_unused, reasons


@pytest.fixture
def folder(folder_built):
    return folder_built


def test_what_was_made_again_is_not_to_do(folder, monkeypatch):
    assert to_do(plan_of(folder)) == {}
    paint(folder, 1)
    plan_of(folder).make("bundle")
    assert to_do(plan_of(folder)) == {}


def test_what_waits_says_for_whom(written, folder):
    assert to_do(plan_of(written)) == {name: [NEVER] for name in STAGES}
    told = to_do(plan_of(folder, "distill.lr=0.5"))
    assert told["export"] == ["after distill"]
    assert told["bundle"] == ["after distill, calibrate, compile, verify"]
    assert told["verify"][0] == f"spec: distill.lr {INHERITED_RATE} -> 0.5"


def test_another_result_of_the_step_before(folder):
    changed = plan_of(folder, "distill.lr=0.5")
    changed.make("distill")
    told = to_do(changed)
    assert told["export"] == [
        "distill: architecture.json changed", "distill: student.safetensors changed",
    ]  # fmt: skip


def test_an_entry_that_was_edited_is_called_so(folder):
    file = plan_of(folder).found()["export"].file("student.onnx")
    file.chmod(0o644)
    file.write_text("edited")
    assert to_do(plan_of(folder))["export"] == ["its entry in the store is damaged"]


def test_an_entry_that_another_target_made_is_called_reused(folder, caplog):
    """The key of `distill` is known once `search` has run, which is made anew for a target."""
    caplog.clear()
    with caplog.at_level("INFO", "kdcompile"):
        plan_of(folder, "target=cpu").make("distill")
    told = [message for message in caplog.messages if message.startswith("distill")]
    assert told == ["distill", "distill: an earlier build made it from the same inputs: reused"]
    assert any(message.startswith("search: done in") for message in caplog.messages)


def test_an_entry_that_another_target_made_and_was_edited_is_called_damaged(folder, caplog):
    file = plan_of(folder).found()["distill"].file("student.safetensors")
    file.chmod(0o644)
    file.write_text("edited")
    caplog.clear()
    with caplog.at_level("INFO", "kdcompile"):
        plan_of(folder, "target=cpu").make("distill")
    told = [message for message in caplog.messages if message.startswith("distill")]
    assert told[1] == "distill: its entry in the store is damaged"
    assert told[-1].startswith("distill: done in")
    assert not any("reused" in message for message in told)


def test_a_field_that_is_not_set_and_one_that_is_not_read_are_the_same(folder):
    """`compile` reads two gates for a cpu, and all of them for a Jetson."""
    told = to_do(plan_of(folder, "target=cpu"))["compile"]
    assert not any("none -> none" in reason for reason in told)
    assert "spec: target" not in told
    now = {"spec": {"gates": {"energy_mj": None}}}
    assert list(why._changes(now, {"spec": {"gates": {}}})) == []
    assert list(why._changes({"spec": {"gates": {}}}, now)) == []
    assert len(list(why._changes({"a": 1}, {}))) == 1
    assert len(list(why._changes({"a": None}, {"a": [1]}))) == 1


def test_where_no_field_that_is_set_differs_there_is_a_reason_all_the_same(folder):
    (file,) = (folder / ".kdcompile" / "compile").glob("*.json")
    plan = plan_of(folder)
    cover = why._read(file)
    cover["spec"]["gates"]["later"] = None
    file.unlink()
    why._write(file, cover)
    made = plan.found()
    stage = STAGES["compile"]
    cover = covered(stage, plan.parts["compile"], made)
    assert reasons(plan.store, "compile", "0" * 24, cover, plan.rows) == [UNSEEN]


def test_a_split_that_a_stage_did_not_read_is_read_now(folder):
    """As where a student that was scaled is searched for."""
    (file,) = (folder / ".kdcompile" / "distill").glob("*.json")
    kept = why._read(file)
    del kept["splits"]["val"]
    file.unlink()
    why._write(file, kept)
    paint(folder, 1)
    assert "data: val is read now" in to_do(plan_of(folder))["distill"]


def test_many_changes_are_counted(folder, monkeypatch):
    for number in range(4):
        paint(folder, number, 230 + number)
    told = to_do(plan_of(folder))["distill"]
    assert told[3] == "data: and 1 more"
    assert sum(reason.startswith("data: images/") for reason in told) == 3


@pytest.mark.parametrize("harm", ["torn", "gone", "of another shape"])
def test_a_torn_record_costs_the_reason_and_nothing_else(folder, harm):
    plan = plan_of(folder)
    for path in plan.store.root.glob("*/????????????????????????.json"):
        if harm == "torn":
            path.write_bytes(path.read_bytes()[:40])
        elif harm == "gone":
            path.unlink()
        else:
            path.write_text(json.dumps({"value": [1], "sha256": "0"}))
    assert to_do(plan_of(folder)) == {}
    assert to_do(plan_of(folder, "seed=4"))["distill"] == [NEVER]
    plan_of(folder, "seed=4").make("bundle")
    assert to_do(plan_of(folder, "seed=4")) == {}


def test_clean_keeps_the_reasons_of_what_it_keeps(folder):
    paint(folder, 1)
    new = plan_of(folder)
    new.make("bundle")
    before = set(new.store.root.glob("splits/*.json"))
    new.store.prune(new.found().values())
    drop_unused(new.store)
    left = {p.parent.name for p in new.store.root.glob("*/????????????????????????.json")}
    assert left == {*STAGES, "splits"}
    assert len(set(new.store.root.glob("splits/*.json"))) == 3 < len(before)
    assert "data: images/001.png changed" not in to_do(plan_of(folder, "seed=5"))["distill"]
    new.store.prune([])
    drop_unused(new.store)
    assert list(new.store.root.glob("*/????????????????????????.json")) == []


def test_a_store_that_cannot_be_written_still_builds(folder, monkeypatch):
    def refuse(*_):
        raise OSError("read only")

    monkeypatch.setattr("kdcompile.passes.why.write_json", refuse)
    paint(folder, 1)
    plan_of(folder).make("bundle")
    assert to_do(plan_of(folder)) == {}


def test_the_plan_as_text_and_as_values(folder):
    paint(folder, 1)
    plan = plan_of(folder)
    found = plan.found()
    steps = [step_of(plan, name, found) for name in STAGES]
    assert steps[2]["why"] == ["data: images/001.png changed", "after teacher"]
    assert steps[1]["key"]
    assert steps[1]["why"] == []
    described = {
        "spec": "s", "board": None, "steps": steps, "estimate": None, "stopped": None, "rules": [],
        "rules_on_operators": True, "dla": None, "warnings": ["mostly padding"], "decides": [],
        "metric": "mae", "margin": None,
        "target": plan.target.to_json() | {"full_name": plan.target.full_name},
    }  # fmt: skip
    text = lines(described)
    assert "distill    to do    data: images/001.png changed" in text
    assert f"{'':<19} after teacher" in text
    assert "warning    mostly padding" in text
    assert any(line.startswith(f"search     cached   {steps[1]['key'][:12]}") for line in text)


def test_the_build_says_why_in_its_log(folder, caplog):
    paint(folder, 7)
    caplog.clear()
    with caplog.at_level("INFO", "kdcompile"):
        plan_of(folder).make("bundle")
    assert "verify: data: images/007.png changed" in caplog.messages
    assert "verify" in caplog.messages
    assert not any(message.startswith("distill") for message in caplog.messages)


def test_results_and_progress_do_not_mix(folder, monkeypatch, capsys):
    """The log has what a quiet command did not tell; standard output has results only."""
    run = CommandLine(monkeypatch, capsys)
    words = ("distill", str(folder), "--json")
    assert run(*words, "--set", "seed=9", "-q") == (0, "")
    assert json.loads(run.out)["stage"] == "distill"
    code, told = run("-v", *words, "--set", "seed=10")
    assert code == 0
    assert json.loads(run.out)["stage"] == "distill"
    assert "distill: done in" in told
    assert "spec: seed 9 -> 10" in told
    text = (folder / ".kdcompile" / logs.FILE).read_text()
    assert "--set seed=9" in text
    assert "INFO distill: done in" in text


def test_an_error_is_told_however_quiet(folder, monkeypatch, capsys):
    run = CommandLine(monkeypatch, capsys)
    code, told = run("-q", "plan", folder, "--set", "distill.stepz=4")
    assert code == 1
    assert told.startswith("error[")
    assert run.out == ""


def test_a_copy_of_another_name_makes_its_bundle_anew(folder):
    copy = folder.rename(folder.with_name("parking"))
    assert to_do(plan_of(copy)) == {"bundle": ["name: here -> parking"]}
