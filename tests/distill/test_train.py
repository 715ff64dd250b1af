"""The trainer: taps, schedule, learning, and a resumed run that is the uninterrupted one."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from kdcompile.data.photo import Photo
from kdcompile.distill import train as train_module
from kdcompile.distill.schedule import evaluation_steps, learning_rate, total_steps
from kdcompile.distill.taps import resolve_taps
from kdcompile.distill.train import Trainer
from kdcompile.errors import KDError
from kdcompile.kernels import ran
from kdcompile.kernels._runtime import using
from kdcompile.spec import Distill
from kdcompile.spec_file import load_spec

SPEC = """
seed = 1
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "points-jsonl"
root = "."
mean = [0.5]
std = [0.5]
[distill]
batch = 4
crop = 16
scale = [1.0, 1.0]
lr = 1e-2
evaluations = 2
taps = [["1", "1"], ["4", "4"]]
[export]
shape = [1, 1, 16, 16]
"""


def _network(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 1),
    )  # fmt: skip


def _photos(number, seed):
    random = np.random.default_rng(seed)
    photos = []
    for i in range(number):
        points = random.uniform(2, 14, (random.integers(1, 5), 2)).astype(np.float32)
        pixels = np.zeros((16, 16, 1), np.uint8)
        for x, y in points.astype(int):
            pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        photos.append(Photo(str(i), points, array=pixels))
    return photos


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "kdcompile.toml").write_text(SPEC)

    def load(*sets):
        return load_spec(tmp_path / "kdcompile.toml", sets)

    return load


def _trainer(spec, work):
    work.mkdir(exist_ok=True)
    return Trainer(spec, _network(8, 0), _network(4, 1), _photos(12, 0), _photos(6, 1), work)


@pytest.mark.parametrize("recipe", ["none", "kd", "skt"])
def test_training_lowers_the_loss_and_keeps_the_best(spec, tmp_path, recipe):
    trainer = _trainer(spec(f"distill.recipe={recipe}", "distill.steps=60"), tmp_path / "work")
    state = trainer.run()
    losses = [row["loss"] for row in state.metrics]
    validated = [row["val_mae"] for row in state.metrics if "val_mae" in row]
    assert losses[-1] < losses[0]
    assert len(validated) == 2
    assert state.best_mae == min(validated)
    assert set(state.best) == set(_network(4, 1).state_dict())


CURVE = 2e-3  # float32 sums in another order, their differences grown over the steps


def test_kernels_and_references_train_alike(spec, tmp_path, monkeypatch):
    """The same curve, term by term, and the same weights in the end."""
    monkeypatch.setattr(train_module, "LOG_EVERY", 1)
    states = {}
    for choice in ("triton", "reference"):
        with using(choice):
            trainer = _trainer(spec("distill.recipe=skt", "distill.steps=8"), tmp_path / choice)
            states[choice] = trainer.run()
        kind = {ran()[name].split(":")[0] for name in ("density_loss", "skt_tap")}
        assert kind == {choice}
    kernels, references = (states[c].metrics for c in ("triton", "reference"))
    assert len(kernels) == len(references) == 8
    for a, b in zip(kernels, references, strict=True):
        assert a["terms"] == pytest.approx(b["terms"], rel=CURVE)
    assert kernels[-1]["loss"] < kernels[0]["loss"]
    for name, value in states["triton"].best.items():
        assert torch.allclose(value, states["reference"].best[name], atol=CURVE)


def test_a_resumed_run_is_the_uninterrupted_one(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    whole = _trainer(spec("distill.steps=12"), tmp_path / "whole").run()
    stopped = _trainer(spec("distill.steps=12"), tmp_path / "stopped")
    original = stopped._step

    def interrupted(student, recipe, optimizer, step, total):
        if step == 7:
            raise KeyboardInterrupt
        return original(student, recipe, optimizer, step, total)

    monkeypatch.setattr(stopped, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = _trainer(spec("distill.steps=12"), tmp_path / "stopped")
    assert resumed._state.step == 7
    again = resumed.run()
    assert all(torch.equal(whole.best[name], again.best[name]) for name in whole.best)
    assert [r["loss"] for r in whole.metrics] == [r["loss"] for r in again.metrics]


def test_a_diverging_loss_stops_with_its_terms(spec, tmp_path):
    trainer = _trainer(spec("distill.steps=5"), tmp_path / "work")
    with torch.no_grad():
        trainer.student[0].weight.fill_(float("inf"))
    with pytest.raises(KDError) as error:
        trainer.run()
    assert error.value.code == "loss-nonfinite"
    assert "hard" in error.value.message


def test_counts_that_are_no_number_stop_the_stage(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "predict", lambda *_: [float("nan")] * 6)
    with pytest.raises(KDError) as error:
        _trainer(spec("distill.steps=4"), tmp_path / "work").run()
    assert error.value.code == "student-nonfinite"


def test_minutes_become_steps_once(spec, tmp_path):
    trainer = _trainer(spec("distill.minutes=0.01", "distill.recipe=none"), tmp_path / "work")
    planned = trainer._total_steps()
    assert planned >= 1
    assert json.loads((tmp_path / "work" / "steps.json").read_text()) == planned
    before = {n: p.clone() for n, p in trainer.student.state_dict().items()}
    assert trainer._total_steps() == planned
    assert all(torch.equal(p, before[n]) for n, p in trainer.student.state_dict().items())


def test_crop_must_be_whole_cells(spec, tmp_path):
    with pytest.raises(KDError) as error:
        _trainer(spec("distill.crop=15"), tmp_path / "work")
    assert error.value.code == "crop-stride"


def test_schedule():
    options = Distill(warmup=0.1, lr=1.0)
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == 1.0
    assert rates == [*rates[:11], *sorted(rates[11:], reverse=True)]
    assert 0 < rates[-1] < 0.01
    assert evaluation_steps(10, 4) == {2, 5, 8, 10}
    assert evaluation_steps(1, 10) == {1}
    assert total_steps(Distill(epochs=2, batch=4), 10, lambda: None) == 5
    assert total_steps(Distill(), 16, lambda: None) == 100


def test_auto_taps_pair_equal_strides_in_order():
    example = torch.zeros(1, 1, 16, 16)
    taps = resolve_taps(_network(8, 0).eval(), _network(4, 0).eval(), example, "auto")
    assert [(t.teacher, t.student) for t in taps] == [("1", "1"), ("4", "4")]
    assert [(t.teacher_channels, t.student_channels) for t in taps] == [(8, 4), (8, 4)]


@pytest.mark.parametrize(
    ("asked", "code"), [([("1", "9")], "tap-missing"), ([("1", "4")], "tap-stride")]
)
def test_taps_that_cannot_be(asked, code):
    example = torch.zeros(1, 1, 16, 16)
    with pytest.raises(KDError) as error:
        resolve_taps(_network(8, 0), _network(4, 0), example, asked)
    assert error.value.code == code
