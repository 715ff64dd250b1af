"""The trainer: learning, selection, stages, and a resumed run that is the uninterrupted one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from tiny_training import PowerCutError, network, stopped_at, trainer
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.distill import train as train_module
from kdcompile.kernels import ran
from kdcompile.kernels._runtime import using

STAGES = """
[[distill.stages]]
name = "blocks"
steps = 6
recipe = "skt"
blocks = true
lr = 5e-3
[[distill.stages]]
name = "whole"
steps = 8
recipe = "kd"
weights = { soft = { start = 4.0, end = 0.0 } }
[[distill.stages]]
name = "polish"
steps = 6
recipe = "none"
batch = 2
crop = 32
colour = 0.0
lr = 1e-3
"""


@pytest.mark.parametrize("recipe", ["none", "kd", "skt"])
def test_training_lowers_the_loss_and_keeps_the_best(spec, tmp_path, recipe):
    state = trainer(spec(f"distill.recipe={recipe}", "distill.steps=60"), tmp_path / "work").run()
    losses = [row["loss"] for row in state.metrics if "loss" in row]
    validated = [row["val_mae"] for row in state.metrics if "val_mae" in row]
    assert losses[-1] < losses[0]
    assert [row["step"] for row in state.metrics if "val_mae" in row] == [0, 30, 60]
    assert state.value == min(validated)
    assert state.scores["mae"] == state.value
    assert set(state.best) == set(network(4, 1).state_dict())


CURVE = 2e-3  # float32 sums in another order, their differences grown over the steps


@pytest.mark.soak
def test_kernels_and_references_train_alike(spec, tmp_path, monkeypatch):
    """The same curve, term by term, and the same weights in the end."""
    monkeypatch.setattr(train_module, "LOG_EVERY", 1)
    states = {}
    for choice in ("triton", "reference"):
        with using(choice):
            training = trainer(spec("distill.recipe=skt", "distill.steps=8"), tmp_path / choice)
            states[choice] = training.run()
        kind = {ran()[name].split(":")[0] for name in ("density_loss", "skt_tap", "crop_augment")}
        assert kind == {choice}
    kernels, references = (
        [row for row in states[c].metrics if "terms" in row] for c in ("triton", "reference")
    )
    assert len(kernels) == len(references) == 8
    for a, b in zip(kernels, references, strict=True):
        assert a["terms"] == pytest.approx(b["terms"], rel=CURVE)
    assert kernels[-1]["loss"] < kernels[0]["loss"]
    for name, value in states["triton"].best.items():
        assert torch.allclose(value, states["reference"].best[name], atol=CURVE)


def _same(whole, again):
    assert all(torch.equal(whole.best[name], again.best[name]) for name in whole.best)
    kept = ("step", "stage", "loss", "terms", "weights", "lr", "val_mae")
    rows = ([{k: row.get(k) for k in kept} for row in s.metrics] for s in (whole, again))
    first, second = rows
    assert first == second


def test_a_resumed_run_is_the_uninterrupted_one(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(train_module, "LOG_EVERY", 5)
    wanted = spec("distill.steps=12")
    whole = trainer(wanted, tmp_path / "whole").run()
    for stop in (1, 7, 11):
        with pytest.raises(PowerCutError):
            stopped_at(trainer(wanted, tmp_path / "cut"), stop).run()
        resumed = trainer(wanted, tmp_path / "cut")
        assert resumed._state.step == stop
    _same(whole, resumed.run())


@pytest.mark.parametrize("more", ["", "balance"])
def test_stages_resume_exactly(spec, tmp_path, monkeypatch, more):
    """Within a stage, between two, and in the last one."""
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    wanted = spec("distill.balance=gradient" if more else "distill.views=2", more=STAGES)
    whole = trainer(wanted, tmp_path / "whole").run()
    assert [row["stage"] for row in whole.metrics if "stage" in row] == [
        "blocks", "blocks", "whole", "whole", "polish",
    ]  # fmt: skip
    for stop in (3, 6, 9, 16):
        with pytest.raises(PowerCutError):
            stopped_at(trainer(wanted, tmp_path / "cut"), stop).run()
    _same(whole, trainer(wanted, tmp_path / "cut").run())


def test_a_stage_has_its_own_recipe_crop_rate_and_weights(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "LOG_EVERY", 1)
    state = trainer(spec(more=STAGES), tmp_path / "work").run()
    rows = [row for row in state.metrics if "stage" in row]
    terms = {row["stage"]: set(row["terms"]) for row in rows}
    assert terms == {
        "blocks": {"hard", "count", "soft", "intra", "inter"},
        "whole": {"hard", "count", "soft"},
        "polish": {"hard", "count"},
    }
    soft = [row["weights"]["soft"] for row in rows if row["stage"] == "whole"]
    assert soft == pytest.approx([4 * (1 - n / 7) for n in range(8)])
    assert max(row["lr"] for row in rows if row["stage"] == "polish") == pytest.approx(1e-3)
    assert {name: s["crop"] for name, s in state.stages.items()} == {
        "blocks": 16, "whole": 16, "polish": 32,
    }  # fmt: skip
    assert state.stages["blocks"]["taps"] == [["1", "1"], ["4", "4"]]


def test_blocks_learn_from_their_own_tap_alone(spec, tmp_path):
    """With blocks, the first layer's gradient knows nothing of the output's loss."""
    more = STAGES.replace("lr = 5e-3", "weights = { intra = 0.0, inter = 0.0 }", 1)
    training = trainer(spec(more=more), tmp_path / "work")
    run = training._enter(0, training._plans[0], 6, 0)
    run.step(0)
    assert training.student[0].weight.grad is None
    assert float(training.student[5].weight.grad.abs().sum()) > 0


def test_a_loss_that_turns_non_finite_stops_with_the_batch(spec, tmp_path):
    training = trainer(spec("distill.steps=30", "distill.recipe=kd"), tmp_path / "work")
    training._lengths()
    run = training._enter(0, training._plans[0], 30, 0)
    objective, seen = run.objective.terms, []

    def terms(student, target, teacher):
        found = objective(student, target, teacher)
        seen.append({n: p.detach().clone() for n, p in training.student.named_parameters()})
        if len(seen) == 4:
            found["soft"] = found["soft"] * float("inf")
        return found

    run.objective.terms = terms
    training._enter = lambda *_: run
    with pytest.raises(KDError) as error:
        training.run()
    assert error.value.code == "loss-nonfinite"
    assert error.value.message.startswith("step 4: loss and soft not finite (loss = inf, hard = ")
    kept = tmp_path / "work" / "replay-4.safetensors"
    assert str(kept) in error.value.where
    with safe_open(kept, framework="pt") as stream:
        assert json.loads(stream.metadata()["moment"])["step"] == 4
        assert torch.equal(stream.get_tensor("images"), run.sampler.batch(3).images)
        for name, value in seen[3].items():
            assert torch.equal(stream.get_tensor(f"student.{name}"), value)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ('recipe = "skt"\ntaps = [["1", "9"]]', "tap-missing"),
        ('recipe = "none"\nweights = { intra = 1.0 }', "recipe-term"),
    ],
)
def test_a_later_stage_that_cannot_be_is_refused_before_the_first(spec, tmp_path, change, code):
    stages = STAGES.replace('recipe = "none"', change)
    with pytest.raises(KDError) as error:
        trainer(spec(more=stages), tmp_path / "work").run()
    assert error.value.code == code
    assert not (tmp_path / "work" / "checkpoint.pt").exists()


def test_a_gradient_that_overflows_stops_too(spec, tmp_path):
    training = trainer(spec("distill.steps=3", "distill.recipe=none"), tmp_path / "work")
    training.student[0].weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(KDError) as error:
        training.run()
    assert error.value.message.startswith("step 1: the gradient is not finite (loss = ")


def test_predictions_that_are_no_number_stop_the_stage(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "predict", lambda *_: [float("nan")] * 6)
    with pytest.raises(KDError) as error:
        trainer(spec("distill.steps=4"), tmp_path / "work").run()
    assert error.value.code == "student-nonfinite"


@pytest.mark.parametrize("recipe", ["none", "kd", "skt"])
@pytest.mark.parametrize("views", [0, 2])
def test_a_step_in_half_precision_is_near_the_whole_one(spec, tmp_path, recipe, views):
    """What a GPU does: teacher in bfloat16, student under autocast, crops in bfloat16."""
    losses = {}
    for bf16 in (False, True):
        sets = (f"distill.recipe={recipe}", "distill.steps=6", f"distill.views={views}")
        training = trainer(spec(*sets), tmp_path / str(bf16))
        if bf16:
            halved = training.setting.teacher.bfloat16()
            training.setting = replace(training.setting, teacher=halved, bf16=True)
        run = training._enter(0, training._plans[0], 6, 0)
        losses[bf16] = []
        for step in range(6):
            run.step(step)
            losses[bf16].append(run.values.tolist())
        assert all(p.dtype == torch.float32 for p in training.student.parameters())
        assert int(run.update.first_bad) == -1
    assert losses[True][0] == pytest.approx(losses[False][0], rel=0.02, abs=0.005)
    for whole, half in zip(losses[False], losses[True], strict=True):  # they part as they go on
        assert half == pytest.approx(whole, rel=0.1, abs=0.1)


def test_no_steps_keep_the_start(spec, tmp_path):
    training = trainer(spec("distill.steps=0"), tmp_path / "work")
    before = {n: p.clone() for n, p in training.student.state_dict().items()}
    state = training.run()
    assert (state.step, state.best_step, len(state.metrics)) == (0, 0, 1)
    assert all(torch.equal(state.best[name], before[name]) for name in before)


def test_minutes_become_steps_once(spec, tmp_path):
    minutes = spec("distill.minutes=0.01", "distill.recipe=none")
    training = trainer(minutes, tmp_path / "work")
    before = {n: p.clone() for n, p in training.student.state_dict().items()}
    planned = training._lengths()
    assert planned[0] >= 1
    assert json.loads((tmp_path / "work" / "steps.json").read_text()) == planned
    assert training._lengths() == planned
    assert all(torch.equal(p, before[n]) for n, p in training.student.state_dict().items())


def test_a_damaged_checkpoint_is_said_and_the_training_starts_again(spec, tmp_path, caplog):
    work = tmp_path / "work"
    work.mkdir()
    (work / "checkpoint.pt").write_bytes(b"PK torn")
    assert trainer(spec("distill.steps=4"), work).run().step == 4
    assert "checkpoint.pt is damaged" in caplog.text
    assert "the training starts again" in caplog.text


@pytest.mark.parametrize("sets", [("distill.crop=15",), ()])
def test_every_stage_needs_whole_cells(spec, tmp_path, sets):
    with pytest.raises(KDError) as error:
        trainer(spec(*sets, more=STAGES.replace("32", "31")), tmp_path / "work")
    assert error.value.code == "crop-stride"


def test_what_it_says_of_overfitting_and_of_the_teacher(spec, tmp_path):
    training = trainer(spec("distill.steps=20"), tmp_path / "work", teacher_value=1e9)
    training.run()
    assert [w for w in training.conclude()[1] if "the teacher is worse" in w]
    again = trainer(spec("distill.steps=20"), tmp_path / "other", teacher_value=0.0)
    again.run()
    assert not [w for w in again.conclude()[1] if "the teacher is worse" in w]


def test_adapters_are_fitted_to_what_training_shows(spec, tmp_path):
    """Batch norms that have seen nothing give other maps in inference than in training."""
    training = trainer(spec("distill.steps=2", "distill.recipe=fitnet"), tmp_path / "work")
    student = training.setting.student
    for each in (student, training.setting.ema):
        each[3] = nn.Sequential(nn.BatchNorm2d(4), each[3])
    student[0].weight.data.mul_(1e-3)
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    run = training._enter(0, training._plans[0], 2, 0)
    assert student.training
    assert all(torch.equal(before[n], buffer) for n, buffer in student.named_buffers())
    batch = run.shared_crops(8, 1)
    shown = run.recipe(run.trainable.inputs(batch.images, batch.target, run.see(batch)))
    assert shown["fitnet"].item() < 2  # 1: as far as a constant map
