"""What the callbacks of all trainers share, without any of their libraries."""

import sys

import pytest
import torch
from bright_images import bright, network

from kdcompile import api
from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.integrations.at_end import AtEnd
from kdcompile.passes.inputs import spec_of
from kdcompile.tasks.task import task_of

SPLITS = {"train": bright(0, 2), "val": bright(2, 4), "test": bright(4, 6)}


def own_loss(output, boxes):
    return output.sum()


def refused(code, data=None, loss=None, **options):
    with pytest.raises(KDError) as error:
        AtEnd(data, loss, options)
    assert error.value.code == code
    return error.value


def test_what_was_passed_goes_before_what_the_trainer_has(monkeypatch):
    given = {}

    def build(**named):
        given.update(named)
        return "the result"

    monkeypatch.setattr(api, "build", build)
    own = bright(6, 8)
    at_end = AtEnd({"test": own, "mean": [0.5]}, None, {"task": "classification", "target": "cpu"})
    assert at_end.compress(net := network(), SPLITS) == at_end.built == "the result"
    assert given == {
        "teacher": net, "data": SPLITS | {"test": own, "mean": [0.5]},
        "task": "classification", "target": "cpu",
    }  # fmt: skip


def test_a_function_is_the_loss_of_a_detector(tmp_path, monkeypatch):
    for task in ("detection", {"kind": "detection", "decode": "yolov8"}):
        section = AtEnd(None, own_loss, {"task": task}).options["task"]
        assert section["loss"] == f"{__name__}:own_loss"
        assert section.get("decode") == (None if task == "detection" else "yolov8")
    boxed = {split: [(torch.zeros(3, 16, 16), [[2, 2, 9, 9, 0]])] * 2 for split in SPLITS}
    data, options = boxed | {"classes": ["a"]}, AtEnd(None, own_loss, {"task": "detection"}).options
    monkeypatch.chdir(tmp_path)
    task = task_of(spec_of(None, {"teacher": network(), "data": data, "target": "cpu", **options}))
    assert task.loss == (own_loss, f"{__name__}:own_loss"), "as the training takes it"
    assert "task of your own" in refused("loss-unused", loss=own_loss, task="classification").fix
    refused("loss-unused", loss=own_loss)
    refused("loss-unnamed", loss=lambda output, boxes: 0, task="detection")
    refused("loss-unnamed", loss=network(), task="detection")


def test_options_are_checked_before_the_training():
    assert "taks" in refused("inputs-unused", taks="classification").message
    refused("inputs-unused", teacher=network())
    AtEnd(None, None, {"target": "cpu", "out": "x", "track": "mlflow", "gates": {}, "name": "n"})


def test_several_processes_are_refused():
    at_end = AtEnd(None, None, {})
    at_end.refuse_early(1, SPLITS)
    with pytest.raises(KDError) as error:
        at_end.refuse_early(2, SPLITS)
    assert error.value.code == "fit-distributed"


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_missing_library_is_an_error_with_its_extra(library, monkeypatch):
    module = f"kdcompile.integrations.{library}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    for name in (library, "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ToolMissingError) as error:
        __import__(module)
    assert f"kdcompile[{library}]" in error.value.fix
