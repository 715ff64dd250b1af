"""The mixed candidate of a build: by the played engines' profiles, else by the sheet's peaks."""

import onnx
import played_tensorrt
import pytest
from computing_tensorrt import typical
from near_place import NearGpu
from onnx_graphs import chain, residual
from small_build import SmallBuild

from kdcompile import targets
from kdcompile.backends import engine, mixed_residuals
from kdcompile.backends.mixed_residuals import most_that_pass, weigh
from kdcompile.calib.sensitivity import Outcome
from kdcompile.core.errors import KDError
from kdcompile.passes import compile

VERSION = "8.6.1"
TARGET = targets.load("h100").with_backend(VERSION)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setattr(compile, "compile_check", lambda *values: [])
    monkeypatch.setattr(played_tensorrt, "REPLAY_MS", 0.0)
    monkeypatch.setattr(engine, "pace", lambda *values, **named: engine.Pace(3, 2, 1))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Builds of a network with an outlier, and without one."""
    found = {}
    for outlier in (None, 2):
        found[outlier] = SmallBuild(tmp_path_factory.mktemp("build"), chain(4, outlier=outlier))
        found[outlier].run("calibrate", TARGET)
    return found


@pytest.fixture
def compiled(tmp_path, monkeypatch, calibrated):
    """`compiled(sets, outlier, on_board, scene's settings...)` -> (choice, plan or None)."""

    def make(sets=(), outlier=None, on_board=True, **settings):
        def change(scene):
            for name, value in settings.items():
                setattr(scene, name, value)

        place = NearGpu(VERSION, tmp_path / "there", change)
        with place.installed(monkeypatch):
            board = place.board(TARGET) if on_board else None
            found = calibrated[outlier].run("compile", TARGET, board, sets)
        plan = found.json("mixed.json") if "mixed.json" in found.files else None
        return found.json("choice.json"), plan

    return make


def sqnr_of(choice, precision):
    return next(c["sqnr_db"] for c in choice["candidates"] if c["precision"] == precision)


def test_int8_that_is_not_faster_is_not_mixed(compiled):
    choice, plan = compiled(costs=lambda name, kind: 3.0)
    assert choice["refused"]["mixed"].startswith("mixed is fp16: no layer is worth int8")
    assert plan["quantised"] == []
    assert plan["reasons"]["c0"] == (
        "int8 is not faster there: 3 ms against 3 ms in fp16 (measured)"
    )
    assert choice["precision"] == "fp32"  # all are level: the widest


def test_a_layer_that_is_slower_in_int8_stays_in_fp16(compiled):
    def costs(name, kind):
        return 9.0 if (name, kind) == ("c3", "int8") else typical(name, kind)

    choice, plan = compiled(costs=costs)
    assert plan["quantised"] == ["c0", "c1", "c2"]
    assert plan["reasons"]["c3"].startswith("int8 is not faster there: 9 ms against 2 ms")
    latency = {c["precision"]: c["latency_ms"] for c in choice["candidates"]}
    # c0 to c2 in int8, c3 and out in fp16
    assert (latency["mixed"], latency["fp16"]) == (7.0, 10.0)
    assert plan["latency_ms"] == pytest.approx(5.0, abs=1e-4)  # of layers that may be quantised
    assert latency["int8"] > latency["fp16"]
    assert choice["precision"] == "mixed"


def test_an_outlier_layer_is_reverted_for_accuracy(compiled):
    choice, plan = compiled(sets=["gates.parity.min_sqnr_db=22.0"], outlier=2)
    assert sqnr_of(choice, "int8") < 22
    assert "c2" not in plan["quantised"]
    assert plan["quantised"]
    assert plan["reasons"]["c2"].startswith("reverted for accuracy")
    assert plan["steps"][0]["layers"] == ["c0", "c1", "c2", "c3"]
    assert plan["steps"][-1]["passed"] is True
    assert sqnr_of(choice, "mixed") >= 22
    rows = {c["precision"]: c for c in choice["candidates"]}
    assert rows["mixed"]["passed"]
    assert not rows["int8"]["passed"]


def test_no_limit_reverts_nothing(compiled):
    _, plan = compiled(sets=["gates.parity.min_sqnr_db=0.0"], outlier=2)
    assert plan["quantised"] == ["c0", "c1", "c2", "c3"]
    assert plan["reverted"] == []


def test_a_limit_that_nothing_keeps_leaves_no_int8(compiled):
    choice, plan = compiled(sets=["gates.parity.min_sqnr_db=90.0"])
    assert plan["quantised"] == []
    assert choice["refused"]["mixed"] == plan["summary"]
    assert all(why.startswith("reverted for accuracy") for why in plan["reasons"].values())


def test_recasting_that_costs_more_than_int8_saves_leaves_no_int8(compiled):
    _, plan = compiled(reformat_ms=50.0)
    assert plan["quantised"] == []
    assert all("saves no more than changing precision" in why for why in plan["reasons"].values())


def test_a_layer_that_no_profile_shows_is_planned_by_the_sheet(compiled):
    choice, plan = compiled(hidden={"c1"})
    assert plan["basis"] == "predicted"
    assert "(predicted)" in plan["summary"]
    # engines are still timed, whatever the plan was made of
    assert {c["evidence"] for c in choice["candidates"]} == {"device"}


def test_without_a_board_the_plan_is_predicted(compiled):
    _, plan = compiled(on_board=False)
    assert plan["basis"] == "predicted"


def test_int8_that_is_not_ready_is_the_reason(compiled):
    def refuses(plan):
        return "no implementation" if "int8" in {kind for _, kind in plan.layers} else None

    choice, plan = compiled(refuses=refuses)
    assert plan is None
    assert choice["refused"]["mixed"] == "it needs int8, fp16 and the layers' sensitivity"


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A build of a network with two residual blocks."""
    made = SmallBuild(tmp_path_factory.mktemp("blocks"), residual())
    made.run("calibrate", TARGET)
    return made


def decided(blocks, sets=(), ratio=0.5, monkeypatch=None):
    """The plan, the choice and the artifact of a build; with `monkeypatch` pairs cost so much."""
    if monkeypatch is not None:

        def price(path, precision, **of):
            ms = 2 * ratio if has_pairs(onnx.load(path)) else 2.0
            return {"ms": ms, "low_ms": ms, "high_ms": ms, "validated": True}

        monkeypatch.setattr(compile, "file_estimate", price)
    found = blocks.run("compile", TARGET, None, sets)
    return found.json("mixed.json"), found.json("choice.json"), found


def has_pairs(model):
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    sums = [n for n in model.graph.node if n.op_type == "Add"]
    return all("DequantizeLinear" in [made[name] for name in n.input] for n in sums)


def test_pairs_on_residual_branches_are_a_candidate_priced_by_the_model(blocks):
    plan, _, found = decided(blocks, sets=["quantize.precision=mixed"])
    told = plan["residuals"]
    assert (len(told["branches"]), told["basis"]) == (2, "predicted")
    assert told["kept"] is (told["ratio"] < 1) is True
    assert plan["summary"].endswith(told["why"])
    assert has_pairs(onnx.load(found.file("model.onnx")))


@pytest.mark.parametrize(("ratio", "kept"), [(0.99, True), (1.0, False)])
def test_pairs_that_are_predicted_no_faster_are_left_out(blocks, monkeypatch, ratio, kept):
    asked = ["quantize.precision=mixed"]
    plan, choice, found = decided(blocks, asked, ratio, monkeypatch)
    assert (plan["residuals"]["kept"], plan["residuals"]["ratio"]) == (kept, ratio)
    assert has_pairs(onnx.load(found.file("model.onnx"))) is kept
    latency = {c["precision"]: c["latency_ms"] for c in choice["candidates"]}
    assert latency["mixed"] == 2 * ratio if kept else 2.0
    assert latency["int8"] == 2.0  # whose file has no pairs on its sums


def test_the_most_harmless_branches_that_keep_the_limits_take_pairs():
    damage = {"a": 3.0, "b": 1.0, "c": 9.0, "d": 2.0}
    branches = {name: f"{name}.other" for name in damage}

    def taken(allowed):
        rules = (
            lambda taken: Outcome(
                metric=sum(damage[n] for n in taken), sqnr_db=-max(map(damage.get, taken))
            ),
            lambda outcome: outcome.metric <= allowed,
        )
        return most_that_pass(branches, lambda some: some, rules)

    assert [*taken(15)] == ["a", "b", "c", "d"]
    assert [*taken(14)] == ["b", "d", "a"]
    assert [*taken(6)] == ["b", "d", "a"]
    assert [*taken(5.9)] == ["b", "d"]
    assert [*taken(1)] == ["b"]
    assert taken(0.9) == {}
    assert taken(3) == {"b": "b.other", "d": "d.other"}


@pytest.fixture
def on_device(tmp_path, monkeypatch, blocks):
    """`on_device()`: a build of the blocks where the played device times both networks."""

    def make():
        place = NearGpu(VERSION, tmp_path / "there", lambda scene: None)
        with place.installed(monkeypatch):
            return blocks.run("compile", TARGET, place.board(TARGET), ["quantize.precision=mixed"])

    return make


def test_a_device_that_is_as_fast_without_them_keeps_none(on_device, monkeypatch):
    monkeypatch.setattr(
        compile, "file_estimate", lambda *values, **named: pytest.fail("it is measured")
    )
    found = on_device()
    told = found.json("mixed.json")["residuals"]
    assert (told["basis"], told["kept"], told["ratio"]) == ("measured", False, pytest.approx(1))
    assert not has_pairs(onnx.load(found.file("model.onnx")))


@pytest.mark.parametrize(("ratio", "kept"), [(0.979, True), (0.98, False)])
def test_a_device_has_to_be_faster_by_more_than_a_tie(on_device, monkeypatch, ratio, kept):
    monkeypatch.setattr(mixed_residuals, "_timed", lambda *values: ratio)
    found = on_device()
    told = found.json("mixed.json")["residuals"]
    assert (told["basis"], told["kept"]) == ("measured", kept)
    assert has_pairs(onnx.load(found.file("model.onnx"))) is kept


def test_pairs_that_break_the_limits_or_are_refused_are_left_out(on_device, monkeypatch):
    def refused(*values):
        raise KDError("build-failed", "no tactic", where="there", fix="none")

    monkeypatch.setattr(mixed_residuals, "_timed", refused)
    found = on_device()
    told = found.json("mixed.json")["residuals"]
    assert (told["basis"], told["kept"], told["ratio"]) == ("refused", False, None)
    assert told["why"].endswith("are refused: no tactic")
    never = (lambda model: Outcome(0.0, 0.0)), (lambda outcome: False)
    wanted = weigh(None, {}, {"sum": "x"}, lambda some: None, never, None, None)
    assert (wanted.basis, wanted.kept) == ("accuracy", False)
