"""A choice in sentences, an architecture in a line, and the table that a search prints."""

import json
from dataclasses import replace

import pytest

from kdcompile import targets
from kdcompile.config.spec import Budget
from kdcompile.core.files import write_json
from kdcompile.latency_model.breakdown import merge_by_resolution, stage_costs
from kdcompile.latency_model.correction import Correction
from kdcompile.latency_model.network_cost import NetworkCost
from kdcompile.latency_model.predict import Estimate, Part, estimate
from kdcompile.latency_model.workload import Kernel
from kdcompile.search.pareto import Point, front
from kdcompile.search.rationale import explain, neighbours, stage_records
from kdcompile.search.report import MARKS, ROWS, SearchResult, arch_string, lines
from kdcompile.search.spaces.staged_kernels import staged_kernels
from kdcompile.tasks.metric import MAE, TOP1

SHAPE = (1, 3, 96, 128)


def kernel(name, size, channels, window=3, dilation=1, kind="conv", macs=100):
    shape = (1, channels, *(size or ())) if not size or len(size) > 1 else (1, *size, channels)
    axes = 2 if window else 0
    return Kernel(
        name, kind, "fp16", "fp16", "fp16", macs, {"x": 1}, {name: 1}, 1, shape, 3, channels,
        (window,) * axes, (1,) * axes, (dilation,) * axes, 1, (name,),
    )  # fmt: skip


def priced(*rows):
    """Of (kernel, ms, bound)."""
    kernels = [row[0] for row in rows]
    parts = tuple(
        Part(k.name, k.kind, k.nodes, ms, bound, k.kind != "other") for k, ms, bound in rows
    )
    bounds = {name: sum(p.ms for p in parts if p.bound == name) for name in BOUNDS}
    ms = sum(bounds.values())
    latency = Estimate(ms, ms / 1.5, 1.5 * ms, False, "fp16", bounds, parts)
    return NetworkCost(kernels, latency, SHAPE)


BOUNDS = ("arithmetic", "memory", "launch")
FULL, HALF, EIGHTH = (96, 128), (48, 64), (12, 16)
STUDENT = priced(
    (kernel("conv1", FULL, 16), 0.61, "memory"),
    (kernel("pool", HALF, 16, 2, kind="pool", macs=0), 0.04, "memory"),
    (kernel("conv2", HALF, 32), 0.15, "arithmetic"),
    (kernel("conv3", EIGHTH, 64, dilation=2, kind="dilated"), 0.1, "launch"),
    (kernel("out", EIGHTH, 1, 1), 0.1, "launch"),
)
TEACHER = priced(
    (kernel("t1", FULL, 64), 2.0, "memory"),
    (kernel("t2", FULL, 64), 4.0, "arithmetic"),
    (kernel("t3", HALF, 32), 1.0, "arithmetic"),
    (kernel("t4", (24, 32), 128), 2.0, "arithmetic"),
    (kernel("t5", EIGHTH, 64, dilation=2, kind="dilated"), 0.9, "arithmetic"),
    (kernel("t6", EIGHTH, 1, 1), 0.1, "launch"),
)
STAGED = {
    "family": "staged",
    "input_scale": 0.5,
    "stages": [
        {"block": "conv", "width": 16, "depth": 2, "stride": 2, "down": "stride", "dilation": 1},
        {"block": "repvgg", "width": 32, "depth": 3, "stride": 2, "down": "pool", "dilation": 2},
        {"block": "separable", "width": 8, "depth": 1, "stride": 1, "down": "pool", "dilation": 1},
    ],
}


def point(latency, quality, sd=1.0, evidence="predicted", measured=None, architecture=None):
    width = round(latency.ms, 6)
    return Point(
        architecture or {"family": "shrink", "width": width}, latency, quality, sd, evidence,
        int(1e9 * latency.ms), 12345, measured,
    )  # fmt: skip


def at(ms, quality, **more):
    known = STUDENT.estimate
    factor = ms / known.ms
    parts = tuple(replace(p, ms=factor * p.ms) for p in known.parts)
    bounds = {name: factor * value for name, value in known.bounds.items()}
    low, high = factor * known.low_ms, factor * known.high_ms
    values = {"ms": ms, "low_ms": low, "high_ms": high, "bounds": bounds, "parts": parts}
    return point(replace(known, **values), quality, **more)


WHOLE = point(TEACHER.estimate, 70.0, 0.0, "measured")
CHOSEN = point(STUDENT.estimate, 75.0, architecture=STAGED)


def told(chosen=CHOSEN, points=None, budget=None, student=STUDENT, metric=MAE, whole=WHOLE):
    found = explain(
        chosen, points or [at(0.5, 90.0), chosen, at(1.5, 74.0)], budget or Budget(speedup=8.0),
        metric, (whole, TEACHER), student, "jetson-orin-nano-8gb@15W",
    )  # fmt: skip
    return "\n".join(found)


def test_stages_follow_the_size_of_the_maps():
    stages = STUDENT.stages()
    places = ["at full resolution", "at 1/2 resolution", "at 1/8 resolution, dilated by 2"]
    assert [stage.name for stage in stages] == places
    assert [stage.share for stage in stages] == pytest.approx([0.61, 0.19, 0.2])
    assert [stage.widths for stage in stages] == [(16,), (32,), (64, 1)]
    assert [stage.bound for stage in stages] == ["memory", "arithmetic", "launch"]
    assert sum(stage.ms for stage in stages) == pytest.approx(STUDENT.estimate.ms)


def test_a_windowed_kernel_without_dilation_ends_a_dilated_stage():
    found = priced(
        (kernel("a", EIGHTH, 8, dilation=2), 1.0, "memory"),
        (kernel("b", EIGHTH, 8, 0, macs=0, kind="pointwise"), 1.0, "memory"),
        (kernel("c", EIGHTH, 8), 1.0, "memory"),
        (kernel("d", None, 10, 0, kind="gemm"), 1.0, "launch"),
    )
    places = ["at 1/8 resolution, dilated by 2", "at 1/8 resolution", "the head"]
    assert [stage.name for stage in found.stages()] == places
    assert [stage.kernels for stage in found.stages()] == [2, 1, 1]


def test_what_computes_nothing_belongs_to_the_layer_after_it():
    bare = {"kind": "pool", "macs": 0}
    found = priced(
        (kernel("reformat", FULL, 3, 0, **bare), 1.0, "launch"),
        (kernel("a", HALF, 8), 1.0, "memory"),
        (kernel("pool", EIGHTH, 8, 2, **bare), 1.0, "memory"),
        (kernel("b", EIGHTH, 8, dilation=2), 1.0, "memory"),
        (kernel("resize", FULL, 8, 0, **bare), 1.0, "memory"),
    ).stages()
    names = ["at 1/2 resolution", "at 1/8 resolution, dilated by 2"]
    assert [stage.name for stage in found] == names
    assert [stage.kernels for stage in found] == [2, 3]
    assert found[0].bounds == {"launch": 1.0, "memory": 1.0}
    alone = priced((kernel("pool", HALF, 8, 2, **bare), 1.0, "memory")).stages()
    assert [stage.resolution for stage in alone] == ["at 1/2 resolution"]


@pytest.mark.parametrize(
    ("size", "resolution"),
    [((96, 128), "at full resolution"), ((72, 96), "at 72 x 96"), ((48, 64), "at 1/2 resolution"),
     ((13, 17), "at 13 x 17"), ((32, 43), "at 1/3 resolution"), ((197,), "on 197 tokens"),
     ((8, 96, 128), "at 8 x 96 x 128"), (None, "the head")],
)  # fmt: skip
def test_places(size, resolution):
    rows = priced((kernel("a", size, 8), 1.0, "memory"))
    assert rows.stages()[0].resolution == resolution


def test_a_decoder_at_the_same_size_is_one_place():
    rows = [(kernel(n, s, w), ms, "memory") for n, s, w, ms in
            (("a", FULL, 8, 1.0), ("b", HALF, 16, 2.0), ("c", FULL, 4, 3.0))]  # fmt: skip
    found = merge_by_resolution(priced(*rows).stages())
    assert list(found) == ["at full resolution", "at 1/2 resolution"]
    whole = found["at full resolution"]
    assert (whole.ms, whole.widths, whole.kernels) == (4.0, (8, 4), 2)
    assert whole.share == pytest.approx(4 / 6)
    assert whole.bounds == {"memory": 4.0}


def test_parts_must_be_those_of_the_kernels():
    with pytest.raises(ValueError, match="zip"):
        stage_costs(STUDENT.kernels[1:], STUDENT.estimate, SHAPE)


def test_the_sentences():
    text = told()
    for sentence in (
        "predicted 1 ms at fp16 on jetson-orin-nano-8gb@15W (90 % 0.667 to 1.5): 10 times faster "
        "than the teacher's 10 ms",
        "no measurement backs 1 ms: search with --measure on the device, or kdcompile targets "
        "calibrate jetson-orin-nano-8gb@15W",
        "expected mae 75, 90 % within 1.645 (teacher 70), from its multiply-adds",
        "stage 1 at full resolution costs 61%: memory-bound",
        "stage 3 at 1/8 resolution, dilated by 2 costs 20%: launch-bound",
        "5 kernels, 65% memory, 20% launch, 15% arithmetic; the costliest: conv1 (conv, 61%, "
        "memory-bound), conv2",
        "at full resolution the teacher takes 6 ms in 2 layers of 64 channels, the student 0.61 ms "
        "in 1 layer of 16 channels",
        "at 1/8 resolution the teacher takes 1 ms in 2 layers of up to 64 channels, the "
        "student 0.2 ms in 2 layers of up to 64 channels",
        "at 1/4 resolution the student computes nothing (teacher 2 ms, 20%)",
        "the next faster, width 1/2, saves 50% and is expected to lose 15 of mae\n",
        "the next slower, width 3/2, takes 1.5 ms, over the budget of 1.25 ms, and is expected to "
        "gain 1 of mae, less than the uncertainty",
    ):
        assert sentence in text + "\n", sentence
    assert "stage 2" not in text  # the two named make up 80 %


def test_a_calibrated_prediction_does_not_ask_for_calibration():
    known = replace(STUDENT, estimate=replace(STUDENT.estimate, calibrated=True))
    text = told(student=known)
    assert "no measurement backs 1 ms: search with --measure on the device\n" in text + "\n"
    assert "targets calibrate" not in text


def test_a_stage_of_two_bounds_says_both():
    mixed = priced((kernel("a", FULL, 8), 0.6, "memory"), (kernel("b", FULL, 8), 0.4, "arithmetic"))
    assert "memory-bound for 60% of it, arithmetic-bound for 40%" in told(student=mixed)


def test_what_the_model_does_not_know_is_named():
    strange = priced(
        (kernel("a", FULL, 8), 0.75, "memory"),
        (kernel("nms_0", FULL, 8, 0, kind="other", macs=0), 0.25, "memory"),
    )
    noted = replace(CHOSEN.latency, notes=("a note of its own",))
    text = told(replace(CHOSEN, latency=noted), student=strange)
    assert "no model of nms_0: counted as memory-bound, 25% of the latency" in text
    assert "of the prediction: a note of its own" in text
    assert "no model of" not in told()


def test_measured_and_validated_latencies_are_not_warned_about():
    measured = replace(CHOSEN, measured_ms=1.25)
    text = told(measured)
    assert "measured 1.25 ms: 8 times faster than the teacher's 10 ms" in text
    assert "no measurement" not in text
    beside = told(whole=replace(WHOLE, measured_ms=8.0))  # the others' times corrected this one
    assert "no measurement" not in beside
    assert "8 times faster than the teacher's 8 ms" in beside
    validated = replace(CHOSEN, latency=replace(CHOSEN.latency, validated=True))
    assert "no measurement" not in told(validated)


def test_a_student_that_is_slower_than_its_teacher_is_not_called_faster():
    assert "2 times slower than the teacher's 0.5 ms" in told(whole=replace(WHOLE, measured_ms=0.5))


def test_parts_follow_the_latency_that_was_measured():
    moved = STUDENT.at(2.0)
    assert moved.estimate.ms == 2.0
    assert [s.ms for s in moved.stages()] == pytest.approx([2 * s.ms for s in STUDENT.stages()])
    assert [s.share for s in moved.stages()] == [s.share for s in STUDENT.stages()]
    assert moved.estimate.high_ms / moved.estimate.low_ms == pytest.approx(1.5**2)


def test_a_staged_student_as_the_model_prices_it():
    architecture = STAGED | {
        "seed": 0, "in_channels": 3, "out_channels": 1, "head": "dense", "output_stride": 8,
        "input_scale": 1.0,
    }  # fmt: skip
    architecture["stages"] = [s | {"stride": 2} for s in STAGED["stages"]]
    target = targets.load("jetson-orin-nano-8gb@15W")
    kernels = staged_kernels(architecture, SHAPE, "fp16")
    student = NetworkCost(kernels, estimate(kernels, target, "fp16"), SHAPE)
    chosen = point(student.estimate, 75.0, architecture=architecture)
    text = told(chosen, [chosen], student=student)
    assert "stage 1 at 1/2 resolution costs" in text
    assert "at 1/8 resolution the teacher takes" in text
    assert "at full resolution the student computes nothing" in text
    assert "unvalidated" in text
    stages = student.stages()
    assert sum(stage.ms for stage in stages) == pytest.approx(student.estimate.ms)
    assert [stage.name for stage in stages] == [
        "at 1/2 resolution", "at 1/4 resolution, dilated by 2", "at 1/8 resolution",
    ]  # fmt: skip


def test_neighbours_of_a_budget_that_is_not_of_time():
    points = [at(0.5, 90.0), CHOSEN, at(2.0, 71.0)]
    found = neighbours(CHOSEN, points, Budget(macs=1.5e9), MAE, WHOLE)
    assert "needs 2e+09 MACs, over the budget, and is expected to gain 4 of mae" in found[1]
    within = neighbours(CHOSEN, points, Budget(macs=5e9), MAE, WHOLE)
    assert "takes 2 ms and is expected to gain 4 of mae" in within[1]
    assert neighbours(CHOSEN, [CHOSEN], Budget(macs=5e9), MAE, WHOLE) == [
        "it is the only point of the front"
    ]


def test_a_choice_beside_the_front_says_why():
    chosen = replace(CHOSEN, evidence="distilled")
    found = neighbours(chosen, [at(0.5, 70.0), at(2.0, 69.0)], Budget(macs=5e9), MAE, WHOLE)
    assert found[0] == "not on the front, but evaluated by a short distillation"
    assert "saves 50% and is expected to gain 5 of mae" in found[1]
    assert "takes 2 ms and is expected to gain 6 of mae" in found[2]


def test_rates_are_told_in_points():
    chosen = replace(CHOSEN, quality=0.91, quality_sd=0.02)
    text = told(chosen, [replace(at(0.5, 0.9)), chosen], metric=TOP1)
    assert "expected top1 91.00%, 90 % within 3.29 points" in text
    assert "to lose 1.00 points of top1, less than the uncertainty" in text


@pytest.mark.parametrize(
    ("architecture", "text"),
    [
        (STAGED, "x1/2 | 16x2 s2 conv | 32x3 p2 repvgg d2 | 8x1 separable"),
        (STAGED | {"input_scale": 1.0}, "16x2 s2 conv | 32x3 p2 repvgg d2 | 8x1 separable"),
        ({"family": "shrink", "width": 0.25}, "width 1/4"),
        ({"family": "shrink", "width": 0.333}, "width 1/3"),
        ({"family": "shrink", "width": 0.1234}, "width 0.123"),
        ({"family": "shrink", "width": 0.5, "dropped": ["a", "b"]}, "width 1/2, 2 dropped"),
        (
            {"family": "shrink", "width": 0.3, "dropped": ["c"],
             "modules": {"a": {"out_channels": 8}, "n": {"num_features": 8},
                         "b": {"out_channels": 8}, "c": {"out_channels": 16},
                         "d": {"out_features": 24}}},
            "width 0.3: 8x2 24, 1 dropped",
        ),
        (
            {"family": "shrink", "modules": {f"m{n}": {"out_channels": n} for n in range(1, 12)}},
            "widths: 1 2 3 4 5 6 7 8 9 10 ...",
        ),
        ({"family": "mine.py:net", "width": 1.0}, "mine.py:net"),
    ],
)  # fmt: skip
def test_short_names(architecture, text):
    assert arch_string(architecture) == text


def found_of(points, chosen, **more):
    values = {
        "target": "h100", "precision": "fp16", "metric": MAE, "budget": Budget(speedup=8.0),
        "teacher": WHOLE, "chosen": chosen, "points": points, "explanation": ["one", "two"],
        "stages": stage_records(STUDENT),
    }  # fmt: skip
    return SearchResult(**(values | more))


def test_the_record_and_its_table(tmp_path):
    points = [at(1.5, 74.0), CHOSEN, at(0.5, 90.0, measured=0.6), at(1.01, 75.2), at(9.0, 95.0)]
    found = found_of(points, CHOSEN, correction=Correction.of([(at(0.5, 90.0).latency, 0.6)]))
    write_json(tmp_path / "search.json", found.to_json())
    record = json.loads((tmp_path / "search.json").read_text())
    assert [p["on_front"] for p in record["points"]] == [True, True, False, True, False]
    assert [p["likely"] for p in record["points"]] == [True, True, True, True, False]
    assert record["points"][record["chosen"]]["architecture"] == STAGED
    assert [bool(p["latency"]["parts"]) for p in record["points"]] == [0, 1, 0, 0, 0]
    assert record["limit_ms"] == pytest.approx(1.25)
    assert record["correction"]["pairs"] == 1
    assert record["stages"][0]["place"] == "at full resolution"
    own = json.loads(json.dumps(CHOSEN.to_json()))
    assert record["points"][record["chosen"]].items() >= own.items()
    text = lines(record)
    assert text[0] == "search  h100 at fp16, budget speedup = 8, 5 students evaluated by mae"
    table = text[2:8]
    assert table[0].split() == ["latency", "ms", "90", "%", "expected,", *table[0].split()[5:]]
    assert table[1].startswith("*  0.6")
    assert "measured" in table[1]
    assert table[2].startswith(">  1 ")
    assert "0.667 to 1.5" in table[2]
    assert "75 +- 1.645  " in table[2]
    assert table[2].endswith("x1/2 | 16x2 s2 conv | 32x3 p2 repvgg d2 | 8x1 separable")
    assert table[3].startswith("~  1.01")
    assert table[5].endswith("the teacher")
    assert f"{MARKS}   (1 more in search.json)" in text
    assert text[-2:] == ["- one", "- two"]
    starts = {row.index(row.split("  ")[-1].strip()) for row in table}
    assert len(starts) == 1  # the columns are aligned


def test_only_some_of_many_likely_points_are_printed():
    points = [CHOSEN, *(at(1 + n / 1000, 75.1 + n / 1000) for n in range(1, 50))]
    assert front(points, MAE) == [CHOSEN]
    text = lines(found_of(points, CHOSEN).to_json())
    assert sum(line.startswith("~") for line in text) == ROWS
    assert f"({len(points) - ROWS - 1} more in search.json)" in "\n".join(text)
