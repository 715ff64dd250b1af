"""A loss that turned non-finite: what is kept of the step, and what runs it again."""

import json
from dataclasses import replace

import pytest
import torch
from bad_inputs import SPEC, project
from command_line import CommandLine, refusal
from safetensors.torch import save_file
from tiny_training import trainer
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.distill import replayed as replayed_module
from kdcompile.distill import train as train_module
from kdcompile.distill.replay import read_replay
from kdcompile.distill.replayed import lines, replayed

NAN = float("nan")
STAGES = """
[[distill.stages]]
name = "first"
steps = 2
recipe = "none"
[[distill.stages]]
name = "second"
steps = 6
recipe = "kd"
weights = { soft = { start = 4.0, end = 0.0 } }
"""


class Fault(nn.ReLU):
    """After some steps of training it gives, or passes back, what is no number."""

    def __init__(self, after=None, backward=False):
        super().__init__()
        self.after, self.backward = after, backward

    def forward(self, x):
        x = super().forward(x)
        if self.after is not None and self.training and torch.is_grad_enabled():
            self.after -= 1
            if self.after < 0:
                if not self.backward:
                    return x / 0
                x.register_hook(lambda grad: grad * NAN)
        return x


def _faulty(training, fault):
    """The trainer, with a fault in the place of the student's first activation."""
    training.student[1] = fault
    return training


def _halved(training):
    """As on a GPU: teacher in bfloat16, student under autocast, crops in bfloat16."""
    teacher = training.setting.teacher.bfloat16()
    training.setting = replace(training.setting, teacher=teacher, bf16=True)
    return training


def _stop(training):
    """Train until it stops; the error and the file that it kept."""
    with pytest.raises(KDError) as error:
        training.run()
    assert error.value.code == "loss-nonfinite"
    (kept,) = training.setting.work.glob("replay-*.safetensors")
    assert str(kept) in error.value.where
    assert f"kdcompile distill --replay {kept}" in error.value.fix
    return error.value, kept


@pytest.fixture
def again(monkeypatch):
    """`again(spec, file, fault)`: the replay, with the fault or mended."""

    def run(spec, path, fault=None):
        def at_rest(spec, _architecture, work):
            return _faulty(trainer(spec, work), fault or Fault())

        monkeypatch.setattr(replayed_module, "at_rest", at_rest)
        return replayed(spec, {}, path)

    return run


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", ["none", "kd", "skt"])
def test_the_module_at_fault_is_named(spec, tmp_path, again, recipe, bf16):
    asked = spec("distill.steps=9", f"distill.recipe={recipe}")
    training = _faulty(trainer(asked, tmp_path / "work"), Fault(after=3))
    error, kept = _stop(_halved(training) if bf16 else training)
    assert error.message.startswith("step 4: loss and hard and count")
    found = again(asked, kept, Fault(after=0))
    assert found["step"] == 4
    assert found["recipe"] == recipe
    assert found["precision"] == ("bfloat16" if bf16 else "float32")
    assert found["batch"] == [4, 1, 16, 16]
    first = found["nonfinite"][0]
    assert (first["of"], first["name"]) == ("student", "1 (Fault)")
    assert first["shape"] == [4, 4, 16, 16]
    assert first["input_largest"] > 0
    assert ["term", "hard"] in [[bad["of"], bad["name"]] for bad in found["nonfinite"]]
    assert found["terms"]["hard"] == "nan"
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = "\n".join(lines(found))
    assert (
        f"step 4 of stage distill, recipe {recipe}: batch 4x1x16x16, {found['precision']}" in text
    )
    assert "student 1 (Fault): " in text
    assert "its input is finite, at most " in text


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_gradient_at_fault_is_named_with_its_term(spec, tmp_path, again, bf16):
    asked = spec("distill.steps=3", "distill.recipe=kd")
    training = _faulty(trainer(asked, tmp_path / "work"), Fault(after=1, backward=True))
    error, kept = _stop(_halved(training) if bf16 else training)
    assert error.message.startswith("step 2: the gradient is not finite (loss = ")
    found = again(asked, kept, Fault(after=0, backward=True))
    names = [(bad["of"], bad["name"]) for bad in found["nonfinite"]]
    assert names[0] == ("gradient", "of hard by 0.weight")
    assert ("gradient", "of soft by 0.weight") in names
    assert not [name for _, name in names if " by 3." in name]  # behind the fault
    for name, value in found["kept"].items():
        assert found["terms"][name] == pytest.approx(value, rel=1e-5)


def test_crops_that_are_padded_run_again_as_they_ran(spec, tmp_path, again):
    """What of them is padding is kept, for the teacher's map is cut off by it."""
    asked = spec("distill.steps=3", "distill.recipe=kd", "distill.scale=[0.3, 0.5]")
    training = _faulty(trainer(asked, tmp_path / "work"), Fault(after=1, backward=True))
    _, kept = _stop(training)
    inside = read_replay(kept).batch.inside
    assert float(inside.min()) == 0.0
    found = again(asked, kept, Fault(after=0, backward=True))
    for name, value in found["kept"].items():
        assert found["terms"][name] == pytest.approx(value, rel=1e-5)


def test_a_mended_network_runs_the_same_step_and_is_finite(spec, tmp_path, again):
    """In the second of two stages, with the weights that its ramp had by then."""
    asked = spec(more=STAGES)
    training = trainer(asked, tmp_path / "work")
    error, kept = _stop(_faulty(training, Fault(after=4)))
    assert error.message.startswith("step 5: ")
    moment = read_replay(kept).moment
    assert moment.stage == "second"
    assert moment.weights["soft"] == pytest.approx(4 * (1 - 2 / 5))
    assert moment.terms["loss"] != moment.terms["loss"]
    found = again(asked, kept)
    assert not found["reproduced"]
    assert found["nonfinite"] == []
    loss = sum(moment.weights[name] * found["terms"][name] for name in moment.weights)
    assert found["terms"]["loss"] == pytest.approx(loss)
    assert "every tensor, term and gradient is finite here" in lines(found)


def test_a_weight_that_overflows_the_sum_is_told_from_its_terms(spec, tmp_path, again):
    asked = spec("distill.steps=1", "distill.recipe=none", "distill.weights={ hard = 3e38 }")
    error, kept = _stop(_faulty(trainer(asked, tmp_path / "work"), Fault()))
    assert error.message.startswith("step 1: loss not finite (loss = inf, hard = ")
    found = again(asked, kept)
    assert [bad["of"] for bad in found["nonfinite"]] == ["loss"]


def test_no_checkpoint_is_written_after_a_bad_step(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    asked = spec("distill.steps=9", "distill.recipe=none")
    _stop(_faulty(trainer(asked, tmp_path / "work"), Fault(after=3)))
    resumed = trainer(asked, tmp_path / "work")
    assert resumed._state.step == 3


def test_a_file_of_something_else_is_refused(spec, tmp_path, again, monkeypatch):
    asked = spec("distill.steps=2", "distill.recipe=none")
    save_file({"weight": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(KDError) as error:
        again(asked, tmp_path / "w.safetensors")
    assert error.value.code == "replay-unreadable"
    _, kept = _stop(_faulty(trainer(asked, tmp_path / "work"), Fault(after=0)))
    others = {
        "its terms are hard, count": spec("distill.recipe=kd"),
        "of stage 'distill', which": spec(more=STAGES),
    }
    for reason, other in others.items():
        with pytest.raises(KDError) as error:
            again(other, kept)
        assert error.value.code == "replay-other"
        assert reason in error.value.message
    plain = trainer(asked, tmp_path / "other")
    plain.student[0] = nn.Conv2d(1, 4, 5, padding=2)
    monkeypatch.setattr(replayed_module, "at_rest", lambda *_: plain)
    with pytest.raises(KDError) as error:
        replayed(asked, {}, kept)
    assert error.value.code == "replay-other"
    assert "its networks are not those of the spec" in error.value.message


def test_the_command_line_names_the_tensor(tmp_path, monkeypatch, capsys):
    """From the refusal of the training, by the command that it proposes, to the mended spec."""
    monkeypatch.chdir(tmp_path)
    command = CommandLine(monkeypatch, capsys)
    project(tmp_path, spec=SPEC.replace("steps = 1", "steps = 1\nweights = { hard = 3e38 }"))
    block = refusal(
        command("distill"),
        "loss-nonfinite",
        "step 1: loss not finite",
        "kdcompile distill --replay",
    )
    (words,) = [line for line in block.splitlines() if "--replay" in line]
    file = words.split("--replay ")[1].split(" with ")[0]
    code, _ = command("distill", "--replay", file)
    assert code == 0
    assert "loss weighted sum of the terms" in command.out
    code, _ = command("distill", "--replay", file, "--json")
    assert code == 0
    assert json.loads(command.out)["reproduced"] is True
    refusal(
        command("distill", "--replay", "w.safetensors"), "replay-unreadable", "no batch", file[:0]
    )
    code, text = command("distill", "--set", "distill.weights={ hard = 1.0 }")
    assert code == 0, text


def test_a_step_in_int8_runs_again_in_int8(spec, tmp_path, again):
    """The terms, which were finite, are the same: with the scales and rounding of then."""
    asked = spec("distill.steps=6", "distill.recipe=kd", "quantize.qad=true")
    training = _faulty(trainer(asked, tmp_path / "work"), Fault(after=5, backward=True))
    _, kept = _stop(training)
    moment = read_replay(kept).moment
    assert (moment.step, moment.quantised) == (6, True)
    found = again(asked, kept, Fault(after=0, backward=True))
    for name, value in moment.terms.items():
        assert found["terms"][name] == pytest.approx(value, rel=1e-5)
    assert found["nonfinite"][0]["of"] == "gradient"
