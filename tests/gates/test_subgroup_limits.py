"""A part fails by its corrected bound alone, and a reason names no more parts than can be read."""

import numpy as np
import pytest

from kdcompile.gates.subgroups import Part, StrataGate, judge_all, judge_parts, strata
from kdcompile.stats.noninferiority import Decision, bounds
from kdcompile.tasks.metric import TOP1


def parts_of(margin):
    """Three classes of 60 images; of the first the student alone has 9 wrong."""
    teacher, student = np.zeros(180), np.zeros(180)
    student[:9] = 1
    groups = [({"class": str(i)}, np.arange(60 * i, 60 * (i + 1))) for i in range(3)]
    return judge_parts(groups, TOP1, teacher, student, margin, 0), (teacher[:60], student[:60])


def test_a_part_fails_where_the_bound_for_all_parts_is_over_the_margin():
    _, pair = parts_of(0.05)
    low, _ = bounds(TOP1, *pair, 0, 1 - 0.1 / 3)
    alone, _ = bounds(TOP1, *pair, 0)
    assert low < alone
    at, below = (parts_of(margin)[0][0].decision for margin in (low, np.nextafter(low, 0)))
    assert (at.verdict, below.verdict) == ("inconclusive", "failed")
    assert at.reason.endswith("; not so with 3 parts looked at")
    assert "looked at" not in below.reason
    assert "looked at" not in parts_of(0.3)[0][0].decision.reason


@pytest.mark.parametrize(("count", "rest"), [(1, ""), (3, ""), (4, "; and 1 more")])
def test_a_reason_names_three_parts(count, rest):
    bad = Decision("failed", "worse", 1.0, 2.0, 0.5, 1.5)
    good = Decision("passed", "as good", 1.0, 1.0, 0.0, 0.1)
    found = [Part(f"part {i}", 9, bad if i < count else good) for i in range(5)]
    told = "; ".join(f"part {i}: worse" for i in range(min(count, 3)))
    assert judge_all(found, None) == ("failed", f"{count} of 5 parts failed: {told}{rest}")
    assert judge_all(found[4:], None)[0] == "passed"


def test_a_part_that_fails_comes_before_one_that_is_not_decided():
    found = [Part(v, 9, Decision(v, "", 1.0, 1.0, None, None)) for v in ("inconclusive", "failed")]
    assert judge_all(found, None)[0] == "failed"
    assert judge_all(found, ["cat"])[0] == "failed"


def test_the_threshold_of_an_error_is_a_share(make_context):
    true = np.linspace(10, 99, 30)
    result = strata(StrataGate(margin="20%"), make_context("counting", true, true + 1, true + 1))
    assert result.threshold == "mae of every part within 20% of the teacher's, at 95 %"
    assert result.observed == "mae 1 against 1 in the worst of 3 parts, 10 to 37.6207"
