"""On a GPU: every way to run a step gives the same curve, waits for nothing, and resumes."""

import pytest
import torch
from tiny_recipes import trainer as recipe_trainer
from tiny_training import PowerCutError, stopped_at, trainer

from kdcompile.distill import train as train_module
from kdcompile.distill.registry import recipes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CURVE = 0.05  # bfloat16, and sums in another order, grown over the steps
MODES = ("eager", "compile", "graph")


def _losses(state):
    return [row["loss"] for row in state.metrics if "loss" in row]


@pytest.mark.parametrize("recipe", recipes())
def test_every_mode_has_the_same_curve(tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(train_module, "LOG_EVERY", 1)
    curves = {}
    for mode in MODES:
        sets = {"distill.execution": f'"{mode}"'}
        state = recipe_trainer(recipe, tmp_path, mode, steps=12, **sets).run()
        assert state.stages["distill"]["execution"]["mode"] == mode
        curves[mode] = _losses(state)
    assert len(curves["eager"]) == 12
    for mode in MODES[1:]:
        assert curves[mode] == pytest.approx(curves["eager"], rel=CURVE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("views", [0, 2])
def test_a_step_never_waits_for_the_device(spec, tmp_path, mode, views):
    sets = ("distill.recipe=skt", "distill.steps=12", f"distill.views={views}")
    training = trainer(spec(*sets, f"distill.execution={mode}"), tmp_path / "work")
    run = training._enter(0, training._plans[0], 12, 0)
    run.step(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 8):
            run.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(run.values).all()


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_resumed_run_has_the_same_curve(spec, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(train_module, "LOG_EVERY", 1)
    sets = ("distill.recipe=skt", "distill.steps=12", f"distill.execution={mode}")
    whole = trainer(spec(*sets), tmp_path / "whole").run()
    with pytest.raises(PowerCutError):
        stopped_at(trainer(spec(*sets), tmp_path / "cut"), 7).run()
    again = trainer(spec(*sets), tmp_path / "cut").run()
    assert _losses(again) == pytest.approx(_losses(whole), rel=CURVE)


def test_auto_times_every_mode_and_leaves_the_weights(spec, tmp_path):
    training = trainer(spec("distill.recipe=skt", "distill.steps=12"), tmp_path / "work")
    before = {name: value.clone() for name, value in training.student.state_dict().items()}
    run = training._enter(0, training._plans[0], 12, 0)
    assert set(run.execution.ms) | set(run.execution.failed) == set(MODES)
    assert not run.execution.failed
    for name, value in training.student.state_dict().items():
        assert torch.equal(value, before[name])
