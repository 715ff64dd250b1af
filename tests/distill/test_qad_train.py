"""Quantisation-aware training: when it starts, that it resumes exactly, what it leaves behind."""

import json

import pytest
import torch
from tiny_training import PowerCutError, network, photos, stopped_at, trainer

from kdcompile.core.errors import KDError
from kdcompile.distill import qad as qad_module
from kdcompile.distill import train as train_module
from kdcompile.distill.qad_modules import NAME, plain_weights, quantiser_of
from kdcompile.distill.update import SCALE_LR

QAD = "quantize.qad=true"
KINDS = ["learnt", "observed"]
STAGES = """
[[distill.stages]]
name = "one"
steps = 6
recipe = "skt"
[[distill.stages]]
name = "two"
steps = 8
recipe = "kd"
balance = "gradient"
"""


def _log_scale(training):
    return training.student.state_dict()[NAME]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_leaves_plain_weights(spec, tmp_path, kind):
    sets = (QAD, f"quantize.qad_scales={kind}", "distill.steps=60")
    training = trainer(spec(*sets), tmp_path / "work")
    state = training.run()
    quantised = [row for row in state.metrics if row["step"] > 30]
    assert quantised[-1]["loss"] < next(row["loss"] for row in state.metrics if "loss" in row)
    assert state.best_step == 60  # what validated before was another network
    assert set(plain_weights(state.best)) == set(network(4, 1).state_dict())
    training.conclude()
    record = training.qad.record(training._train)
    assert [layer["module"] for layer in record["layers"]] == ["0", "3"]
    assert [layer["tensor"] for layer in record["layers"]] == [0, 1]
    assert json.loads(json.dumps(record)) == record
    expected = state.best[NAME].exp().tolist()
    assert [entry["scale"] for entry in record["tensors"]] == expected
    assert record["from_step"] == 30


def test_without_it_nothing_is_attached(spec, tmp_path):
    training = trainer(spec(), tmp_path / "work")
    assert quantiser_of(training.student) is None
    assert len(training.setting.layers) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(spec, tmp_path, monkeypatch, kind):
    """Before the ranges are fixed, at that step, and after it."""
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(train_module, "LOG_EVERY", 5)
    monkeypatch.setattr(qad_module, "OBSERVE_EVERY", 1)
    sets = (QAD, f"quantize.qad_scales={kind}", "quantize.qad_start=0.43")
    whole = trainer(spec(*sets, more=STAGES), tmp_path / "whole").run()
    for stop in (5, 6, 9):
        with pytest.raises(PowerCutError):
            stopped_at(trainer(spec(*sets, more=STAGES), tmp_path / "cut"), stop).run()
    again = trainer(spec(*sets, more=STAGES), tmp_path / "cut").run()
    assert whole.stages["two"]["qad"]["from_step"] == 6
    assert all(torch.equal(whole.best[name], again.best[name]) for name in whole.best)
    kept = ("step", "loss", "terms", "weights", "val_mae")
    first, second = ([{k: r.get(k) for k in kept} for r in s.metrics] for s in (whole, again))
    assert first == second
    assert whole.best_step == again.best_step


def test_it_goes_on_after_the_last_checkpoint(spec, tmp_path):
    """The training is done and its artifact is not: the student is still the quantised one."""
    sets = (QAD, "distill.steps=8")
    first = trainer(spec(*sets), tmp_path / "work")
    first.run()
    first.conclude()
    again = trainer(spec(*sets), tmp_path / "work")
    again.run()
    again.conclude()
    assert again.qad.record(photos(6, 2)) == first.qad.record(photos(6, 2))
    assert quantiser_of(again.setting.ema).on


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_first_those_of_the_calibrator(spec, tmp_path, kind):
    sets = (QAD, f"quantize.qad_scales={kind}", "distill.steps=10", "quantize.calibrator=minmax")
    training = trainer(spec(*sets, "quantize.qad_start=0"), tmp_path / "work")
    lengths = training._lengths()
    training.qad = qad_module.Qad(training.setting, sum(lengths), 0)
    run = training._enter(0, training._plans[0], 10, 0)
    crops = [run.shared_crops(8, i).images for i in range(4)]
    training.qad.before(run, 0, training._state)
    seen = torch.cat(crops).abs().max()
    assert float(_log_scale(training)[0].exp()) == pytest.approx(float(seen) / 127, rel=1e-5)
    before = _log_scale(training).clone()
    run.step(0)
    moved = (_log_scale(training) - before).abs()
    if kind == "learnt":
        assert 0 < float(moved.max()) <= SCALE_LR * 1.01
    else:
        assert float(moved.max()) == 0


def test_observed_scales_follow_the_network_and_then_stay(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(qad_module, "OBSERVE_EVERY", 2)
    sets = (QAD, "quantize.qad_scales=observed", "distill.steps=16", "quantize.qad_start=0.25")
    training = trainer(spec(*sets), tmp_path / "work")
    seen, before = [], qad_module.Qad.before

    def watching(self, run, step, state):
        before(self, run, step, state)
        seen.append(_log_scale(training).clone())

    monkeypatch.setattr(qad_module.Qad, "before", watching)
    training.run()
    changed = [i for i in range(1, 16) if not torch.equal(seen[i], seen[i - 1])]
    assert changed == [4, 6, 8]
    gap = training.setting.ema.state_dict()[NAME] - seen[-1]
    assert float(gap.abs().max()) < 0.5


def test_minutes_count_the_quantised_steps(spec, tmp_path, monkeypatch):
    times = iter([0.02, 0.04])
    monkeypatch.setattr(train_module, "seconds_per_step", lambda _: next(times))
    sets = (QAD, "distill.minutes=0.05", "quantize.qad_start=0.5")
    training = trainer(spec(*sets), tmp_path / "work")
    assert training._lengths() == [100]  # 3 s of steps of 0.03 s
    assert not quantiser_of(training.student).on


@pytest.mark.parametrize(
    ("sets", "code", "fix"),
    [
        (("distill.steps=0",), "qad-steps", "distill.steps=2"),
        (("distill.steps=2", "quantize.precision=fp16"), "qad-precision", "quantize.qad=false"),
        (
            ("distill.steps=2", "quantize.precision=bf16"),
            "qad-precision",
            "quantize.precision=int8",
        ),
    ],
)
def test_what_cannot_be_says_how_it_can(spec, tmp_path, sets, code, fix):
    with pytest.raises(KDError) as error:
        trainer(spec(QAD, *sets), tmp_path / "work").run()
    assert error.value.code == code
    name, _, value = fix.partition("=")
    assert name in error.value.fix
    assert value in error.value.fix or value.isdigit()
    assert trainer(spec(QAD, *sets, fix), tmp_path / "other").run().step == 2


def test_it_runs_in_half_precision(spec, tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        sets = (QAD, "distill.steps=6", f"distill.precision={precision}")
        training = trainer(spec(*sets), tmp_path / precision)
        teacher = next(training.setting.teacher.parameters())
        assert teacher.dtype == getattr(torch, precision)
        state = training.run()
        losses[precision] = [row["loss"] for row in state.metrics if "loss" in row]
        assert training.student[0].weight.dtype == torch.float32
        assert torch.isfinite(_log_scale(training)).all()
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["bfloat16"] != losses["float32"]
