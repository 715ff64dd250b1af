"""What the report warns of."""

from kdcompile.data.metric import MAE, TOP1
from kdcompile.distill.findings import findings


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
