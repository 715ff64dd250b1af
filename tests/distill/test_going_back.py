"""The rule that a training does not spoil its start."""

import numpy as np
import pytest
import torch
from tiny_training import PowerCutError, network, photos, stopped_at

from kdcompile.distill import train as train_module
from kdcompile.distill.going_back import is_spoilt, returns_finding
from kdcompile.distill.train import Trainer
from kdcompile.tasks.builtin import Classification, Counting

GOOD = 200  # steps that make a start which is worth keeping


@pytest.mark.parametrize(
    ("share", "spoilt"), [(1.0, False), (0.5, False), (1.04, False), (1.06, True), (3.0, True)]
)
def test_a_student_may_pass_through_what_is_little_worse(share, spoilt):
    random = np.random.default_rng(0)
    true = random.uniform(10, 20, 40)
    away = random.normal(0, 1, 40)
    assert is_spoilt(Counting(), true + away, true + share * away, true, 0) is spoilt


def test_what_may_be_noise_spoils_nothing():
    """A mean that is a tenth worse on a dozen photos, whose errors are drawn anew."""
    random = np.random.default_rng(0)
    true = random.uniform(10, 20, 12)
    start, now = true + random.normal(0, 1, 12), true + random.normal(0, 1, 12)
    now = true + (now - true) * 1.1 * np.abs(start - true).mean() / np.abs(now - true).mean()
    assert not is_spoilt(Counting(), start, now, true, 0)


def test_a_prediction_that_is_no_number_is_spoilt_and_few_photos_tell_nothing():
    true = [1.0] * 20
    assert is_spoilt(Counting(), true, [float("nan"), *true[1:]], true, 0)
    assert not is_spoilt(Counting(), true[:2], [9.0, 9.0], true[:2], 0)


@pytest.mark.parametrize(("lost", "spoilt"), [(0, False), (7, False), (20, True)])
def test_classes_are_spoilt_where_more_are_lost_than_chance_loses(lost, spoilt):
    true = np.zeros(100)
    now = true.copy()
    now[:lost] = 1
    assert is_spoilt(Classification(), true, now, true, 0) is spoilt


@pytest.fixture(scope="module")
def good_start():
    """Weights that count well, trained by hand."""
    student, many = network(4, 1), photos(48, 0)
    images = torch.from_numpy(np.stack([p.array[..., 0] for p in many])[:, None] / 255.0)
    counts = torch.tensor([p.count for p in many], dtype=torch.float32)
    given = ((images - 0.5) / 0.5).float()
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(GOOD):
        optimizer.zero_grad()
        (student(given).sum((1, 2, 3)) - counts).square().mean().backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def _trainer(spec, work, start):
    work.mkdir(exist_ok=True)
    student = network(4, 1)
    student.load_state_dict(start)
    return Trainer(spec, network(8, 0), student, photos(12, 0), photos(32, 1), work)


WILD = ("distill.recipe=none", "distill.steps=40", "distill.evaluations=8", "distill.lr=0.5")


def test_a_rate_that_destroys_the_start_is_halved_until_it_does_not(spec, tmp_path, good_start):
    training = _trainer(spec(*WILD), tmp_path / "work", good_start)
    state = training.run()
    assert len(state.returns) >= 2
    curve = {row["step"]: row for row in state.metrics if "val_mae" in row}
    start = curve[0]["val_mae"]
    assert all(curve[one["step"]]["val_mae"] == one["value"] > start for one in state.returns)
    rates = [row["lr"] for row in state.metrics if "lr" in row]
    assert max(rates[-2:]) < 0.5 * 0.5 ** (len(state.returns) - 1)
    assert state.value <= start
    _, warnings = training.conclude()
    (told,) = [text for text in warnings if "went back to its best weights" in text]
    assert f"from {start:.4g} to {state.returns[0]['value']:.4g} by step 5" in told


def test_a_rate_that_does_no_harm_stays(spec, tmp_path, good_start):
    calm = (*WILD[:3], "distill.lr=1e-4")
    training = _trainer(spec(*calm), tmp_path / "work", good_start)
    assert training.run().returns == []
    assert not [text for text in training.conclude()[1] if "went back" in text]


def test_it_starts_again_from_the_best_weights_and_without_moments(spec, tmp_path, good_start):
    training = _trainer(spec(*WILD), tmp_path / "work", good_start)
    seen = []
    go_back = training._go_back_if_spoilt

    def watched(run, value):
        go_back(run, value)
        if training._state.returns and not seen:
            own = training.student.state_dict()
            seen.append(all(torch.equal(own[n], v) for n, v in training._state.best.items()))
            seen.append(all(not t.any() for t in run.update.tensors()[:-2]))

    training._go_back_if_spoilt = watched
    training.run()
    assert seen == [True, True]


def test_a_training_that_goes_back_resumes_exactly(spec, tmp_path, monkeypatch, good_start):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    whole = _trainer(spec(*WILD), tmp_path / "whole", good_start).run()
    for stop in (5, 6, 17):
        with pytest.raises(PowerCutError):
            stopped_at(_trainer(spec(*WILD), tmp_path / "cut", good_start), stop).run()
    again = _trainer(spec(*WILD), tmp_path / "cut", good_start).run()
    assert again.returns == whole.returns
    assert all(torch.equal(whole.best[name], again.best[name]) for name in whole.best)
    assert [row.get("loss") for row in whole.metrics] == [row.get("loss") for row in again.metrics]


def test_the_finding_says_the_rate_to_take():
    (told,) = returns_finding("mae", [{"step": 10, "value": 9.0}] * 3, 2.0, 4e-3)
    assert "from 2 to 9 by step 10" in told
    assert "3 times" in told
    assert "to 0.0005 at most; set distill.lr (now 0.004) to that" in told
    assert "once" in returns_finding("mae", [{"step": 10, "value": 9.0}], 2.0, 4e-3)[0]
    assert returns_finding("mae", [], 2.0, 4e-3) == []
