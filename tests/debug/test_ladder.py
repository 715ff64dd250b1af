"""The judgement of one rung, and the rungs that a build has."""

import json

import numpy as np
import onnx
import pytest

from kdcompile.cli.terminal import to_json
from kdcompile.config.deploy import Compile
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.debug.distances import cosine, divergence
from kdcompile.debug.runners import OnnxSide, Side
from kdcompile.debug.show import parity
from kdcompile.debug.tolerance import NO_LIMIT, Tolerance
from kdcompile.debug.variant import Shipped, find_rung, last_rung, rounded_rung, settings_of
from kdcompile.debug.variants import Ladder, Rung, climb, judge
from kdcompile.onnx_graph.fp16 import to_fp16
from kdcompile.tasks.agreement import LIMIT_DB
from kdcompile.tasks.metric import MAE
from kdcompile.tasks.task import find_task

TASK = find_task("counting")


class Given(Side):
    """What it is told to give."""

    output = "density"

    def __init__(self, *outputs):
        self.outputs = list(outputs)

    def run(self, image, tensors=()):
        return {"density": self.outputs[int(image[0, 0, 0, 0])]}


def numbers(*factors):
    """The images' places, as images."""
    return [np.full((1, 1, 1, 1), place, np.float32) for place in range(len(factors))]


BASE = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)


def ladder_of(*outputs, kind="int8", tolerance=0.02, true=None, absent=()):
    rungs = [Rung("onnx", "", side=Given(BASE, 2 * BASE))]
    rungs += [Rung(f"r{i}", "", kind, Given(*given)) for i, given in enumerate(outputs)]
    rungs += [Rung(name, "", absent="why not") for name in absent]
    limit = Tolerance(tolerance, "given", 2)
    return Ladder(rungs, numbers(1, 2), TASK, MAE, true, limit, 20.0, "two images")


def one(*outputs, **more):
    return climb(ladder_of(outputs, **more))[1]


def test_equal_outputs_pass_with_the_best_numbers():
    step = one(BASE, 2 * BASE)
    assert (step.verdict, step.sqnr_db, step.cosine) == ("passed", LIMIT_DB, 1.0)
    assert (step.max_rel_error, step.noise, step.reason) == (0.0, 0.0, "")


def test_the_numbers_are_over_all_images():
    noisy = 2 * BASE
    noisy[0, 0, 0, 0] += 0.5
    step = one(BASE, noisy)
    both = np.concatenate([BASE, 2 * BASE])
    assert step.sqnr_db == pytest.approx(20 * np.log10(np.linalg.norm(both) / 0.5))
    assert step.max_rel_error == pytest.approx(0.5 / 32)
    assert step.errors[0] == 0.0


def test_an_image_of_nothing_has_no_scale_of_its_own():
    ladder = ladder_of((4 * BASE, 0 * BASE + 0.001))
    ladder.rungs[0] = Rung("onnx", "", side=Given(4 * BASE, 0 * BASE))
    step = climb(ladder)[1]
    assert step.sqnr_db > 60
    assert "dB" not in step.reason


def test_predictions_that_move_too_far_fail_a_rung_that_rounds():
    step = one(1.03 * BASE, 2.06 * BASE)
    assert step.verdict == "failed"
    assert "predictions move by 0.03, over 0.02" in step.reason


def test_noise_that_leaves_the_count_alone_is_limited_by_the_parity_gate():
    turned = BASE[..., ::-1, ::-1].copy()
    step = one(turned, 2 * turned)
    assert step.noise == 0
    assert step.verdict == "failed"
    assert "under the parity gate's 20" in step.reason


def test_a_rung_that_rounds_nothing_is_held_to_float32():
    near = BASE * np.float32(1 + 2e-3)
    assert one(near, 2 * near, kind="int8").verdict == "passed"
    step = one(near, 2 * near, kind="fp32")
    assert step.verdict == "failed"
    assert "it rounds nothing" in step.reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_fails(value):
    broken = BASE.copy()
    broken[0, 0, 0, 0] = value
    step = one(broken, 2 * BASE)
    assert step.verdict == "failed"
    assert "NaN or infinity" in step.reason
    assert (step.noise, step.sqnr_db) == (NO_LIMIT, -LIMIT_DB)
    json.dumps(to_json(step), allow_nan=False)


def test_another_shape_fails_and_says_so():
    step = one(BASE[..., :2], 2 * BASE)
    assert step.verdict == "failed"
    assert "[1, 1, 4, 2], not [1, 1, 4, 4]" in step.reason


def test_a_failed_rung_does_not_fail_the_next_and_an_absent_one_is_passed_over():
    off = [1.5 * BASE, 3 * BASE]
    ladder = ladder_of(off, off, absent=["engine"])
    steps = climb(ladder)
    assert [step.verdict for step in steps] == ["reference", "failed", "passed", "absent"]
    assert steps[2].against == "r0"
    text = "\n".join(parity(ladder).text())
    assert "engine: why not" in text
    assert "two images" in text


def test_the_metric_is_shown_where_the_truth_is_known():
    total = float(BASE.sum())
    steps = climb(ladder_of([BASE, 2 * BASE], true=[total + 1, 2 * total + 3]))
    assert [step.metric for step in steps] == pytest.approx([2.0, 2.0])


def test_divergence_and_cosine_of_the_odd_ones():
    zero, inf = np.zeros((2, 2), np.float32), np.full((2, 2), np.inf, np.float32)
    assert divergence(zero, zero) == 0.0
    assert divergence(zero, zero + 1) == np.inf
    assert divergence(inf, inf) == 0.0
    assert divergence(inf, zero) == np.inf
    assert divergence(BASE, BASE[..., :1]) == np.inf
    assert divergence(BASE, 1.1 * BASE) == pytest.approx(0.1, rel=1e-5)
    assert cosine(BASE, -BASE) == pytest.approx(-1)
    assert cosine(zero, zero) == 1.0
    assert cosine(zero, zero + 1) == 0.0


def test_a_rung_is_found_by_name_or_by_its_kind():
    ladder = ladder_of([BASE, BASE], [BASE, BASE], [BASE, BASE], absent=["engine"])
    assert find_rung(ladder, "r1") == 2
    assert find_rung(ladder, "rounded") == 3
    for name, code in (
        ("nine", "rung-unknown"),
        ("engine", "rung-absent"),
        ("onnx", "rung-absent"),
    ):
        with pytest.raises(KDError) as caught:
            find_rung(ladder, name)
        assert caught.value.code == code
        assert "r1" in caught.value.fix
    assert judge(ladder, ladder.rungs[1], ("onnx", [BASE]), [BASE]).verdict == "passed"


def test_the_rounded_rung_is_the_file_that_ships(faults, model, images, tmp_path):
    fp32, int8 = tmp_path / "student.onnx", tmp_path / "int8.onnx"
    onnx.save(model, fp32)
    onnx.save(faults.in_precision(model, "int8", images), int8)
    sha = file_sha256(fp32)

    def rung(precision, path):
        return rounded_rung(Shipped(precision, path, None, False), {"int8": int8}, sha)

    assert rung("fp32", fp32).side is None
    assert "rounds nothing" in rung("fp32", fp32).absent
    assert "bf16" in rung("bf16", fp32).absent
    assert len(rung("int8", int8).model.graph.node) > len(model.graph.node)
    # an engine that a flag quantised was built from the fp32 file: the rung is the precision's own
    assert rung("int8", fp32).model == rung("int8", int8).model
    assert rung("fp16", fp32).model == to_fp16(model)  # no file of it: made as export makes it


def test_what_a_cpu_ships_is_the_runtimes_own_form(model, images, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    shipped = Shipped("fp32", path, None, by_runtime=True)
    rung = last_rung(shipped, None, "none")
    assert rung.side.optimised
    found = rung.side.run(images[0])["density"]
    np.testing.assert_allclose(found, OnnxSide(model).run(images[0])["density"], atol=1e-5)
    elsewhere = Shipped("fp32", path, None, by_runtime=False)
    assert last_rung(elsewhere, None, "none").absent == "none"


def test_an_engine_is_searched_with_the_settings_of_its_record():
    asked = Compile(workspace_mb=77, optimization_level=2, dla=1, tf32=False)
    record = {**asked.model_dump(), "deterministic": "recorded", "precision": "int8"}
    assert settings_of(record) == asked
    assert settings_of({"precision": "int8"}) == Compile()


def test_what_is_no_number_in_both_is_inherited_and_what_is_only_here_is_not():
    broken, more = BASE.copy(), BASE.copy()
    broken[0, 0, 0, 0] = np.nan
    more[0, 0, 0, :2] = np.nan
    sound = 2 * BASE
    steps = climb(ladder_of([broken, sound], [broken, sound], [more, sound], [more, sound]))
    assert [step.inherits for step in steps] == [False, False, True, False, True]
    assert [step.verdict for step in steps[1:]] == ["failed"] * 4
    assert "where that of r0 does too" in steps[2].reason
