"""What the report warns of."""

from kdcompile.distill.findings import findings
from kdcompile.tasks.metric import MAE, TOP1


def _rows(losses, values, name="val_mae"):
    return [
        {"step": i, "terms": {"hard": loss}, name: value}
        for i, (loss, value) in enumerate(zip(losses, values, strict=True))
    ]


def test_overfitting_is_a_worse_validation_under_a_falling_loss():
    falling = [5.0, 4.0, 3.0, 2.0, 1.0]
    (found,) = findings(MAE, _rows(falling, [9, 8, 7, 8, 9]), 7, None, 1.5)
    assert found.startswith("overfitting: validation mae went from 7 to 9")
    assert "1.5 on training images" in found
    assert not findings(MAE, _rows(falling, [9, 8, 7, 7, 7.1]), 7, None, 1.5)
    assert not findings(MAE, _rows([1, 1, 1, 2, 3], [9, 8, 7, 8, 9]), 7, None, 1.5)


def _curve(losses, values):
    """As a training writes it: the start first, then rows with losses."""
    rows = [{"step": 0, "val_mae": values[0]}]
    for step, (loss, value) in enumerate(zip(losses, values[1:], strict=True), 1):
        rows.append({"step": step, "terms": {"hard": loss}, "lr": 4e-3 / step, "val_mae": value})
    return rows


def test_a_rate_that_breaks_the_start_is_not_overfitting():
    """The loss jumps and falls again, but not to where it was."""
    rate, start = findings(MAE, _curve([1.0, 9.0, 4.0], [0.24, 0.9, 1.2, 1.05]), 0.24, None, 0.3)
    assert rate == (
        "the learning rate is too high for this start: validation mae went from 0.24 to 1.05, and "
        "the training loss did not fall (1 at the first step, 4 at the end); lower distill.lr (now "
        "0.004)"
    )
    assert start == (
        "the training did not improve on its start: validation mae 0.24 before the first step, at "
        "best 0.9 after it; the student is the start, untrained"
    )


def test_a_start_that_is_overfitted_from_is_overfitting():
    over, start = findings(MAE, _curve([5.0, 3.0, 1.0], [0.24, 0.9, 1.2, 1.05]), 0.24, None, 0.3)
    assert over.startswith("overfitting: validation mae went from 0.24 to 1.05 while")
    assert start.startswith("the training did not improve on its start")


def test_a_training_that_is_as_good_as_its_start_did_not_improve():
    (found,) = findings(MAE, _curve([1.0, 1.0], [0.24, 0.24, 0.245]), 0.24, None, 0.3)
    assert "0.24 before the first step, at best 0.24 after it" in found
    assert not findings(MAE, _curve([1.0, 1.0], [0.24, 0.239, 0.245]), 0.239, None, 0.3)
    assert not findings(MAE, [{"step": 0, "val_mae": 0.24}], 0.24, None, 0.3)  # distill.steps = 0


def test_it_knows_which_way_is_better():
    falling = [5.0, 4.0, 3.0, 2.0, 1.0]
    rows = _rows(falling, [0.7, 0.8, 0.9, 0.85, 0.8], "val_top1")
    assert findings(TOP1, rows, 0.9, None, 1.0)
    assert not findings(TOP1, _rows(falling, [0.1, 0.2, 0.3, 0.4, 0.5], "val_top1"), 0.5, 0.6, 1.0)


def test_a_teacher_worse_than_its_student():
    assert not findings(MAE, [], 8.0, 7.0, 1.0)
    (found,) = findings(MAE, [], 7.0, 8.0, 1.0)
    assert found.startswith("the teacher is worse than its student: validation mae 8 against 7")
    (found,) = findings(TOP1, [], 0.8, 0.7, 1.0)
    assert "top1 0.7 against 0.8" in found
