"""A training goes on after any kill and any torn file, to the same weights bit for bit."""

import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from tiny_training import SPEC, PowerCutError, stopped_at, trainer

from kdcompile.config.load import load_spec
from kdcompile.distill import train
from kdcompile.distill.state import BEFORE, CHECKPOINT, State, load_checkpoint, save_checkpoint

STEPS = 12
SETS = (f"distill.steps={STEPS}", "distill.views=2")
CPU = torch.device("cpu")


def _zeroed(content: bytes) -> bytes:
    """With a block of zeros where something stands: in an archive, not in what only pads it."""
    at, end = 0, len(content)
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            largest = max(archive.infolist(), key=lambda one: one.file_size)
        name, extra = struct.unpack_from("<HH", content, largest.header_offset + 26)
        at = largest.header_offset + 30 + name + extra
        end = at + largest.file_size
    at = next(i for i in range((at + end) // 2, end) if content[i])
    return content[:at] + bytes(len(content[at : at + 64])) + content[at + 64 :]


TORN = {
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
    "a zeroed block": _zeroed,
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spec")
    (folder / "kdcompile.toml").write_text(SPEC)
    return load_spec(folder / "kdcompile.toml", SETS)


@pytest.fixture(scope="module")
def whole(spec, tmp_path_factory):
    return trainer(spec, tmp_path_factory.mktemp("whole")).run()


@pytest.fixture
def cut(spec, tmp_path, monkeypatch, caplog):
    """The work folder of a training that was cut off before step 8, a checkpoint at each step."""
    caplog.set_level("INFO", "kdcompile")
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    work = tmp_path / "work"
    with pytest.raises(PowerCutError):
        stopped_at(trainer(spec, work), 8).run()
    return work


def _same(found, whole):
    assert found.step == STEPS
    assert (found.value, found.best_step) == (whole.value, whole.best_step)
    assert found.best.keys() == whole.best.keys()
    assert all(torch.equal(found.best[n], whole.best[n]) for n in whole.best)
    timed = ("ms",)
    rows = [[{k: v for k, v in r.items() if k not in timed} for r in s.metrics]
            for s in (found, whole)]  # fmt: skip
    assert rows[0] == rows[1]


def test_it_goes_on_from_the_last_checkpoint(spec, cut, whole, caplog):
    _same(trainer(spec, cut).run(), whole)
    assert "resumed after step 8" in caplog.text


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_checkpoint_is_said_and_the_one_before_is_taken(spec, cut, whole, torn, caplog):
    path = cut / CHECKPOINT
    path.write_bytes(TORN[torn](path.read_bytes()))
    _same(trainer(spec, cut).run(), whole)
    assert f"{CHECKPOINT} is damaged" in caplog.text
    assert "resumed after step 7" in caplog.text


def test_with_no_whole_checkpoint_it_starts_again(spec, cut, whole, caplog):
    for name in (CHECKPOINT, BEFORE):
        (cut / name).write_bytes(b"")
    _same(trainer(spec, cut).run(), whole)
    assert "the training starts again" in caplog.text


@pytest.mark.parametrize("torn", ["half", "a zeroed block"])
@pytest.mark.parametrize("name", ["steps.json", "teacher-*.safetensors", "*.sha256"])
def test_the_files_beside_it_are_made_again(spec, cut, whole, torn, name):
    (path,) = cut.glob(name)
    path.write_bytes(TORN[torn](path.read_bytes()))
    _same(trainer(spec, cut).run(), whole)


def test_lengths_that_were_timed_come_from_the_checkpoint(spec, cut):
    (cut / "steps.json").write_text("[")
    training = trainer(spec, cut)
    training._planned = lambda: pytest.fail("the lengths are known")
    assert training._lengths() == [STEPS]
    assert json.loads((cut / "steps.json").read_text()) == [STEPS]


@pytest.mark.parametrize("moment", ["write", "first rename", "second rename"])
def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path, monkeypatch, moment):
    for step in (1, 2):
        save_checkpoint(tmp_path, State(step=step), {})
    renames = []

    def refuse(*args, **options):
        raise OSError(28, os.strerror(28))

    def rename(one, other, original=os.replace):
        renames.append(other)
        if len(renames) == {"first rename": 1, "second rename": 2}[moment]:
            refuse()
        original(one, other)

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr("pathlib.Path.write_bytes", refuse)
        else:
            patch.setattr(os, "replace", rename)
        with pytest.raises(OSError, match="No space"):
            save_checkpoint(tmp_path, State(step=3), {})
    assert load_checkpoint(tmp_path, CPU)["state"]["step"] == 2
    assert list(tmp_path.glob(".*")) == []


def test_predictions_are_arrays_also_of_a_checkpoint_that_has_lists(tmp_path):
    rows = np.random.default_rng(0).random((3, 5))
    save_checkpoint(tmp_path, State(predicted=rows, initial=rows[:, 0]), {})
    found = load_checkpoint(tmp_path, CPU)["state"]
    for name, wanted in (("predicted", rows), ("initial", rows[:, 0])):
        assert found[name].tobytes() == wanted.tobytes()
    older = vars(State()) | {"predicted": rows.tolist(), "initial": []}
    torch.save({"state": older}, tmp_path / CHECKPOINT)
    found = load_checkpoint(tmp_path, CPU)["state"]
    assert found["predicted"].tobytes() == rows.tobytes()
    assert found["initial"].shape == (0,)
