"""The limits of what a board's record may hold, at their edges, and what its errors say."""

import pytest
from played_board import NANO, block, record

from kdcompile.core.errors import KDError
from kdcompile.gates.board_record import BoardPower, read_record

DIGEST = "0" * 64


def refused(found):
    """The error that a record is refused with; None where it is taken."""
    try:
        read_record(found, "device.json")
    except KDError as error:
        return error
    return None


def with_blocks(values):
    latency = {name: block(1.0) | {"blocks": values} for name in ("int8", "fp16")}
    return {"latency": {"graph": latency}}


def with_times(**times):
    return {"latency": {"graph": {"int8": block(1.0) | times}}}


def with_test(**test):
    return {"test": {"digest": DIGEST, "n": 1, "seed": 0} | test}


def with_predictions(value):
    return {"candidates": [record(DIGEST)["candidates"][1] | {"predictions": [value]}]}


def with_decode(ms):
    frame = {"precision": "int8", "blocks": [1.0] * 6, "images": 1, "sizes": "8 x 8"}
    return {"frame": frame | {"parts": {"decode": ms}}}


@pytest.mark.parametrize(
    ("taken", "not_taken"),
    [
        ({"format": 1}, {"format": 2}),
        ({"why": "x" * 10_000}, {"why": "x" * 10_001}),
        (with_blocks([1.0] * 10_000), with_blocks([1.0] * 10_001)),
        (with_blocks([1.0] * 6), with_blocks([1.0] * 5)),
        (with_times(p50_ms=0.5), with_times(p50_ms=0.0)),
        (with_times(p50_ms=999_999_999.0), with_times(p50_ms=1e9)),
        (with_decode(0.0), with_decode(-0.1)),
        (with_decode(999_999_999.0), with_decode(1e9)),
        (with_test(n=1_000_000), with_test(n=1_000_001)),
        (with_predictions(1e12), with_predictions(1.1e12)),
        (with_predictions(-1e12), with_predictions(-1.1e12)),
    ],
    ids=lambda change: "-".join(change),
)
def test_a_value_at_its_limit_is_taken_and_one_beyond_it_is_not(taken, not_taken):
    assert refused(record(DIGEST) | taken) is None
    assert refused(record(DIGEST) | not_taken) is not None


@pytest.mark.parametrize(
    ("found", "code"),
    [(2, "device-version"), ("2", "device-invalid"), (None, "device-invalid")],
)
def test_only_a_number_is_another_format(found, code):
    assert refused(record(DIGEST) | {"format": found}).code == code
    assert refused([found]).code == "device-invalid"


def test_the_first_error_is_told_and_how_many_more_there_are():
    one = refused(record(DIGEST) | {"references": 0})
    assert one.message.startswith("references: ")
    assert "more" not in one.message
    assert "(and 1 more)" in refused(record(DIGEST) | {"references": 0, "shape": []}).message
    assert refused([]).message.startswith("the file: ")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"chosen": "bf16"}, "0 candidates are the chosen bf16"),
        ({"candidates": record(DIGEST)["candidates"][1:] * 2}, "2 candidates are the chosen int8"),
        ({"judged_mode": "device"}, "the chosen int8 was not timed"),
        ({"usage": {"absent": "no sensor"}}, None),
        ({"latency": {"graph": {"int8": block(1.0)}, "device": {"a": block(1.0), "b": block(1.0)
          | {"blocks": [1.0] * 6}}}}, "different numbers of blocks in mode device"),
    ],
)  # fmt: skip
def test_what_is_chosen_was_built_once_and_timed(change, text):
    error = refused(record(DIGEST) | change)
    assert error is None if text is None else text in error.message


@pytest.mark.parametrize("lacking", ["engine", "build", "sqnr_db", "max_rel_error"])
def test_what_is_chosen_was_built_and_compared(lacking):
    found = record(DIGEST)
    del found["candidates"][1][lacking]
    assert "was not built or not compared" in refused(found).message


def test_a_rail_may_rest_and_a_counter_of_energy_never_falls():
    def power(unit, *values):
        samples = [[i / 50, {"GPU": value}] for i, value in enumerate(values)]
        return BoardPower.model_validate({
            "source": "NVML", "unit": unit, "mode": "graph", "graph": True,
            "idle": {"samples": samples[:1]},
            "busy": {"samples": samples[1:], "seconds": 1.0, "inferences": 9},
        })  # fmt: skip

    assert power("mJ", 0.0, 0.0, 0.5, 0.5).unit == "mJ"
    assert power("mW", 9.0, 5.0, 0.0, 0.5).unit == "mW"
    for unit, values in (("mJ", (9.0, 5.0)), ("mW", (9.0, -0.5)), ("mJ", (-0.5, 5.0))):
        with pytest.raises(ValueError, match="counter of energy fell"):
            power(unit, *values)


def test_the_report_is_told_of_the_board_and_of_its_choice():
    told = read_record(record(DIGEST), "device.json").told()
    assert (told["module"], told["chosen"], told["judged_mode"]) == (
        NANO["module"], "int8", "graph",
    )  # fmt: skip
    assert [row["precision"] for row in told["candidates"]] == ["fp16", "int8"]
    found = read_record(record(DIGEST) | {"latency": {"graph": {"int8": block(1.0)}}}, "")
    assert found.winner.precision == "int8"
    assert (set(found.times("graph")), found.times("end_to_end")) == ({"int8"}, {})
