"""What may be compared, and how what may not is refused."""

import pytest
from bench_samples import FACTS, MODE

from kdcompile.core.errors import KDError
from kdcompile.latency.compatibility import ABSENT, Difference, check_comparable, differing, record

HERE = record({"facts": FACTS, "state": {"temperature": 40}}, MODE)


def test_a_record_is_flat_and_leaves_out_what_passes():
    environment = {"facts": {"gpu": {"clock": 1000}, "cores": (0, 1)}, "state": {"load": 3}}
    assert record(environment, {"batch": 1}) == {
        "gpu.clock": 1000, "cores": [0, 1], "mode.batch": 1,
    }  # fmt: skip
    assert record({"cpu": "x"}, {}) == {"cpu": "x"}


def test_equal_records_have_no_difference():
    assert check_comparable(HERE, dict(HERE)) == ()


def test_every_difference_is_named_with_both_values():
    theirs = {**HERE, "cpu": "Other", "mode.batch": 8, "gpu": "Orin"}
    del theirs["usable_cores"]
    assert differing(theirs, HERE) == [
        Difference("cpu", "Other", "Test CPU"),
        Difference("gpu", "Orin", ABSENT),
        Difference("mode.batch", 8, 1),
        Difference("usable_cores", ABSENT, 2),
    ]
    with pytest.raises(KDError) as error:
        check_comparable(theirs, HERE, where="b.json")
    assert error.value.code == "baseline-foreign"
    assert error.value.exit_code == 1
    for text in ("cpu: Other -> Test CPU", "mode.batch: 8 -> 1", "gpu: Orin -> (absent)"):
        assert text in error.value.message
    assert "--allow cpu --allow gpu --allow mode.batch --allow usable_cores" in error.value.fix


def test_the_fix_works_and_the_differences_stay_known():
    theirs = {**HERE, "cpu": "Other", "mode.batch": 8}
    with pytest.raises(KDError) as error:
        check_comparable(theirs, HERE, ["cpu"])
    assert "cpu" not in error.value.message
    allowed = check_comparable(theirs, HERE, ["cpu", "mode.batch"])
    assert [str(found) for found in allowed] == ["cpu: Other -> Test CPU", "mode.batch: 8 -> 1"]


def test_an_allowed_key_that_does_not_differ_is_no_difference():
    assert check_comparable(HERE, HERE, ["cpu"]) == ()


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(KDError) as error:
        check_comparable(HERE, HERE, ["onnxruntime_versoin"])
    assert error.value.code == "allow-unknown"
    assert "did you mean 'onnxruntime_version'?" in error.value.message
    assert "mode.batch" in error.value.fix
