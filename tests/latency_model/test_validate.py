"""The model against the fixtures, and the reference networks' kernels against their files."""

import json
import math
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner
from documents import check_document

from kdcompile.cli.targets import targets as command
from kdcompile.cli.terminal import to_json
from kdcompile.core.errors import KDError
from kdcompile.latency_model import validate as module
from kdcompile.latency_model.observations import observations
from kdcompile.latency_model.parameters import efficiencies_of, fit, priors
from kdcompile.latency_model.predict import NINETY, estimate, ratio_factor
from kdcompile.latency_model.reference_kernels import key_of, reference_gmac, reference_kernels
from kdcompile.latency_model.validate import Validation, validate
from kdcompile.targets import load
from kdcompile.targets.fixtures import load_fixtures

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@cache
def validation(without="network") -> Validation:
    return validate(without)


def test_every_usable_fixture_of_a_gpu_is_there() -> None:
    rows = {row.name: row for row in validation().rows}
    usable = [f for f in load_fixtures() if f.usable and f.target != "cpu"]
    held = [f for f in usable if f.held_out]
    assert {f.name for f in held if not f.secondary} == {r.name for r in validation().held}
    assert {f.name for f in held if f.secondary} == {r.name for r in validation().secondary}
    assert len(validation().secondary) >= 15
    wanted = [f for f in usable if not f.held_out]
    assert set(rows) == {f.name for f in wanted}
    assert len(rows) >= 10
    for fixture in wanted:
        row = rows[fixture.name]
        assert row.measured_ms == fixture.measured_ms
        assert row.error == pytest.approx(row.predicted_ms / row.measured_ms - 1)
        assert row.inside == (row.low_ms <= row.measured_ms <= row.high_ms)


def test_it_is_as_good_as_documented() -> None:
    goals = validation().goals
    missed = {name for name, met in goals.items() if not met}
    assert missed == {"coverage", "ratio_median", "ratio_worst"}
    assert validation().coverage < 0.98  # one row of 38 more than the goal allows
    modules = validation("module")  # no goal of its own; not to get worse
    assert modules.median_error < 0.12
    assert modules.worst_error < 0.30
    assert modules.coverage > 0.9


def test_a_ratio_is_of_two_networks_on_one_device_and_fitted_without_both() -> None:
    known = {o.name: o for o in observations("gpu")}
    found = validation().ratios
    assert len(found) >= 26
    for ratio in found:
        one, other = known[ratio.slower], known[ratio.faster]
        assert ratio.measured == pytest.approx(one.ms / other.ms)
        assert ratio.measured >= 1
        assert one.target.full_name == other.target.full_name
        assert (one.precision, one.batch) == (other.precision, other.batch)
        assert one.network.split(" v")[0] != other.network.split(" v")[0]
        assert ratio.inside == (ratio.low <= ratio.measured <= ratio.high)
    pair = next(r for r in found if r.slower == "h100-csrnet-b1-fp16")
    others = fit([o for o in known.values() if "CSRNet" not in o.network], priors("gpu"))
    again = module._ratio(known[pair.slower], known[pair.faster], others)
    assert again.predicted == pytest.approx(pair.predicted, rel=1e-6)
    errors = {r.slower: abs(r.error) for r in found}
    assert max(errors.values()) < 0.60  # missed by far, and not to get worse
    assert max(e for name, e in errors.items() if "h100" not in name) < 0.42


def test_the_ratio_of_a_network_to_itself_has_only_the_models_own_error() -> None:
    known = {o.name: o for o in observations("gpu")}
    nano = known["orin-nano-8gb-resnet18-b1-fp16"]
    kernels, shipped = nano.kernels, efficiencies_of(nano.target)
    own = math.exp(NINETY * shipped.residual)
    assert ratio_factor(kernels, kernels, nano.target) == pytest.approx(own)
    wide = known["orin-nano-8gb-resnet50-v1-b1-fp16"].kernels
    together = ratio_factor(wide, kernels, nano.target)
    assert own < together
    alone = [estimate(each, nano.target, "fp16") for each in (wide, kernels)]
    apart = math.hypot(*(math.log(each.high_ms / each.ms) for each in alone))
    assert math.log(together) < 0.9 * apart


def test_a_fixture_is_predicted_without_its_network() -> None:
    known = observations("gpu")
    row = next(r for r in validation().rows if r.network == "SSD-ResNet34")
    others = fit([o for o in known if o.network != "SSD-ResNet34"], priors("gpu"))
    own = next(o for o in known if o.network == "SSD-ResNet34")
    assert module._row(own, others).predicted_ms == pytest.approx(row.predicted_ms, rel=1e-6)
    doubled = replace(own, ms=2 * own.ms)
    assert module._row(doubled, others).predicted_ms == pytest.approx(row.predicted_ms, rel=1e-6)


def test_the_package_holds_the_fit_of_today() -> None:
    fitted, packaged = fit(observations("gpu"), priors("gpu")), efficiencies_of(load("h100"))
    for name, value in fitted.values.items():
        assert packaged.values[name] == pytest.approx(value, rel=0.02), (
            f"{name}: run benchmarks/fit_latency.py --fit-only"
        )
    assert packaged.residual == pytest.approx(fitted.residual, rel=0.02)


def test_the_report_says_what_rests_on_nothing(monkeypatch) -> None:
    monkeypatch.setattr(module, "validate", validation)
    runner = CliRunner()
    text = runner.invoke(command, ["validate"]).output
    assert "jetson-orin-nano-4gb: no fixture that can be used" in text
    assert "no Jetson has a fixture at bf16: predictions at it are unvalidated" in text
    assert "RetinaNet is not rebuilt exactly: how boxes are decoded" in text
    assert "median absolute error" in text
    assert "(goal at most 10%: " in text
    data = json.loads(runner.invoke(command, ["validate", "--json"]).output)
    check_document("targets validate", data)
    assert len(data["fixtures"]) == len(validation().rows)
    assert {"name", "predicted_ms", "low_ms", "high_ms", "measured_ms"} <= set(data["fixtures"][0])
    assert set(data["goals"]) == set(module.GOALS)
    assert data["unvalidated"]
    assert [line.partition(" is ")[0] for line in data["inexact"]] == [
        "RetinaNet", "SSD-MobileNet-v1", "SSD-ResNet34", "OWL-ViT-B/32", "ResNet-18", "ResNet-50",
    ]  # fmt: skip
    assert len(data["secondary"]) == len(validation().secondary)


def test_a_goal_that_is_missed_is_said_to_be() -> None:
    row = validation().rows[0]
    bad = module.Row(**{**vars(row), "error": 0.5, "inside": False})
    pair = replace(validation().ratios[0], error=0.5, inside=False)
    found = Validation((bad,), (), ratios=(pair,))
    assert not any(found.goals.values())
    assert found.text().count("missed") == 6
    assert "outside" in found.text()


def test_what_is_held_out_is_predicted_as_shipped_and_moves_nothing() -> None:
    held = observations("gpu", "held out")
    assert not {o.name for o in held} & {o.name for o in observations("gpu")}
    for o, row in zip(held, validation().held, strict=True):
        shipped = efficiencies_of(o.target)
        assert row.predicted_ms == pytest.approx(module._row(o, shipped).predicted_ms)
        assert abs(row.error) < 0.30
        assert row.inside
    assert {row.name for row in validation().apart} == {o.name for o in held}
    assert "held out, predicted as shipped" in validation().text()
    assert len(to_json(validation())["held_out"]) == len(held) >= 7


def test_reports_of_others_are_predicted_and_never_fitted_on() -> None:
    reports = {o.name: o for o in observations("gpu", "secondary")}
    assert not set(reports) & {o.name for o in observations("gpu")}
    rows = {row.name: row for row in validation().secondary}
    jetsons = [row for name, row in rows.items() if "yolo11" in name and "orin" in name]
    assert len(jetsons) == 18
    assert all(abs(row.error) < 0.15 and row.inside for row in jetsons)
    assert "secondary, predicted as shipped" in validation().text()
    cards = [row for row in rows.values() if not row.target.startswith("jetson")]
    assert len(cards) == 5
    assert all(abs(row.error) < 0.32 for row in cards)  # 28 to 77 % with a Jetson's launches


def test_an_image_is_priced_as_it_was_handed_over() -> None:
    known = {o.name: list(o.kernels) for o in observations("gpu")}
    copy, reformat, first = known["xavier-nx-resnet50-b1-int8"][:3]
    pixels = 3 * 224 * 224
    assert (copy.kind, copy.read_bytes, copy.written_bytes) == ("copy", pixels, pixels)
    assert (reformat.kind, reformat.read_bytes, first.kind) == ("reformat", pixels, "conv")
    assert set(copy.writes) == set(reformat.reads)
    assert [k.kind for k in known["xavier-nx-ssd-mobilenet-v1-b1-int8"][:2]] == ["copy", "conv"]
    assert [k.kind for k in known["orin-nx-16gb-resnet50-b1-int8"][:2]] == ["reformat", "conv"]
    floats = known["orin-nano-8gb-resnet18-b1-int8"][0]
    assert (floats.kind, floats.read_bytes) == ("reformat", 4 * pixels)


def test_a_fixture_is_held_against_as_it_was_enqueued() -> None:
    told = {f.name: f.graph for f in load_fixtures()}
    for o in observations("gpu"):
        assert o.graph == told[o.name]
    h100 = next(o for o in observations("gpu") if o.name == "h100-csrnet-quarter-b1-int8")
    assert not h100.graph
    graph = replace(h100, graph=True)
    fitted = efficiencies_of(h100.target)
    assert module._row(graph, fitted).predicted_ms < 0.95 * module._row(h100, fitted).predicted_ms


def test_the_document_has_the_tables_of_the_code(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import latency_tables

    text = latency_tables.DOCS.read_text(encoding="utf-8")
    made = latency_tables.sections(validation(), validation("module"))
    now = latency_tables.rewritten(text, made)
    assert set(made) == {"validation", "ratios", "held", "secondary", "module", "family"}
    said, found = (re.split(r"([+-]?\d+(?:\.\d+)?)", each) for each in (text, now))
    why = "run benchmarks/latency_tables.py"
    assert said[::2] == found[::2], why  # every word
    for old, new in zip(said[1::2], found[1::2], strict=True):  # and number, but for rounding
        decimals = len(new.partition(".")[2])
        assert float(old) == pytest.approx(float(new), rel=0.01, abs=2 * 10**-decimals), why
    with pytest.raises(ValueError, match="section family"):
        latency_tables.rewritten(text.replace("begin family", "begin"), made)
    stage = {"block": "conv", "width": 24, "depth": 1, "stride": 2, "down": "pool", "dilation": 1}
    student = {"family": "staged", "stages": [stage] * 2, "in_channels": 3, "out_channels": 1,
               "head": "dense", "output_stride": 4, "input_scale": 1.0, "seed": 0}  # fmt: skip
    monkeypatch.setattr(latency_tables, "SEARCHED", tmp_path / "searched.json")
    assert set(latency_tables.networks()) == {"CSRNet", "CSRNet-1/4"}
    latency_tables.SEARCHED.write_text(json.dumps({"architecture": student}))
    kernels = latency_tables.networks()["searched"]("int8")
    assert kernels[1].input_precision == "int8"
    monkeypatch.delitem(sys.modules, "latency_tables")


def test_a_network_that_is_not_kept_is_refused() -> None:
    with pytest.raises(KDError) as caught:
        reference_kernels("LeNet", (1, 1, 28, 28), "fp16")
    assert caught.value.code == "reference-unknown"
    assert "fit_latency.py" in caught.value.fix
    with pytest.raises(KDError):
        reference_gmac("LeNet", (1, 1, 28, 28))


def test_multiply_adds_are_those_of_the_fixtures() -> None:
    for fixture in load_fixtures():
        if fixture.usable and fixture.gmac:
            found = reference_gmac(fixture.network, fixture.shape)
            assert found == pytest.approx(fixture.gmac, rel=0.005)


@pytest.mark.parametrize(
    "network", ["CSRNet-1/4", pytest.param("SSD-MobileNet-v1", marks=pytest.mark.slow)]
)
def test_the_kept_kernels_are_those_of_the_rebuilt_networks(network, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fit_latency

    rebuilt = fit_latency.tables([network])
    assert rebuilt
    fixtures = [f for f in load_fixtures() if f.usable and f.network == network]
    for fixture in fixtures:
        kept = reference_kernels(network, fixture.shape, fixture.precision)
        assert (
            fit_latency.compact(kept) == rebuilt[key_of(network, fixture.shape, fixture.precision)]
        )
    for name in [
        n for n in sys.modules if n.startswith(("reference_", "fit_latency", "latency_tables"))
    ]:
        monkeypatch.delitem(sys.modules, name)
