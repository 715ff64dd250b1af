"""The `[distill]` section: lengths, stages, and what starts a student."""

import pytest
from tiny_training import SPEC

from kdcompile.config.distill import INHERITED_RATE, RATE, Distill, Ramp
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.distill.schedule import stage_plans, stage_steps


@pytest.fixture
def load(tmp_path):
    def loaded(more="", *sets):
        (tmp_path / "kdcompile.toml").write_text(SPEC.replace("[distill]", "[distill]\n" + more))
        return load_spec(tmp_path / "kdcompile.toml", sets)

    return loaded


@pytest.mark.parametrize(
    ("sets", "rate"),
    [
        ([], INHERITED_RATE),
        (["student.family=search", "student.budget.speedup=2.0"], INHERITED_RATE),
        (["student.init=random"], RATE),
        (["student.init=file", "student.weights=w.pt"], RATE),
        (["student.family=model.py:student"], RATE),
        (["distill.lr=0.001"], 1e-3),
        (["distill.lr=0.05"], 0.05),
        (["student.init=random", "distill.lr=0.05"], 0.05),
    ],
)
def test_the_rate_follows_from_the_start_unless_it_is_named(tmp_path, sets, rate):
    assert INHERITED_RATE < RATE
    (tmp_path / "kdcompile.toml").write_text(SPEC.replace("lr = 1e-2\n", ""))
    spec = load_spec(tmp_path / "kdcompile.toml", sets)
    assert spec.distill.lr == rate
    assert stage_plans(spec.distill)[0].options.lr == rate
    assert spec.only(["distill"]).distill.lr == rate


def test_a_stage_has_the_rate_that_it_names(tmp_path):
    stages = """
[[distill.stages]]
name = "one"
steps = 2
[[distill.stages]]
name = "two"
steps = 2
lr = 0.5
"""
    (tmp_path / "kdcompile.toml").write_text(SPEC.replace("lr = 1e-2\n", "") + stages)
    spec = load_spec(tmp_path / "kdcompile.toml")
    assert [plan.options.lr for plan in stage_plans(spec.distill)] == [INHERITED_RATE, 0.5]


@pytest.mark.parametrize("length", ["steps = 30", "epochs = 2.0", "minutes = 5"])
@pytest.mark.parametrize("other", ["steps=7", "epochs=1.5", "minutes=3"])
def test_a_length_on_the_command_line_replaces_the_files(load, length, other):
    name, _, value = other.partition("=")
    distill = load(length, f"distill.{other}").distill
    given = {n: getattr(distill, n) for n in ("steps", "epochs", "minutes")}
    assert {n: v for n, v in given.items() if v is not None} == {name: float(value)}


@pytest.mark.parametrize(
    ("stages", "fragment"),
    [
        ([{"name": "a", "share": 0.5}, {"name": "b", "share": 0.4}], "shares that sum to 1"),
        ([{"name": "a", "share": 0.5}, {"name": "b", "steps": 5}], "steps, all of them"),
        ([{"name": "a"}], "steps, all of them"),
        ([{"name": "a", "share": 0.5}, {"name": "a", "share": 0.5}], "a name of its own"),
        ([{"name": "a", "share": 1.0, "scale": (2.0, 1.0)}], "low <= high"),
    ],
)
def test_stages_that_cannot_be(stages, fragment):
    with pytest.raises(ValueError, match=fragment):
        Distill(stages=stages)
    with pytest.raises(ValueError, match="whole length"):
        Distill(steps=3, stages=[{"name": "a", "steps": 5}])


def test_unknown_keys_of_a_stage_are_named(load):
    with pytest.raises(KDError) as error:
        load('stages = [{ name = "a", share = 1.0, lrr = 0.1 }]')
    assert error.value.code == "spec-invalid"
    assert "lrr" in error.value.message


def test_a_stage_takes_what_it_does_not_name_from_the_section():
    options = Distill(
        lr=0.1, batch=3, weights={"soft": 2.0},
        stages=[
            {"name": "a", "share": 0.25, "blocks": True, "lr": 0.5},
            {"name": "b", "share": 0.75, "batch": 7, "weights": {"hard": Ramp(start=0, end=1)}},
        ],
    )  # fmt: skip
    first, second = stage_plans(options)
    assert (first.options.lr, first.options.batch, first.blocks) == (0.5, 3, True)
    assert (second.options.lr, second.options.batch, second.blocks) == (0.1, 7, False)
    assert first.options.weights == {"soft": 2.0}
    assert second.options.weights == {"hard": Ramp(start=0, end=1)}
    assert first.options.stages == []


def _steps(options, n_train=10, world=1, seconds=lambda _: 0.5):
    return stage_steps(stage_plans(options), options, n_train, world, seconds)


def test_lengths():
    halves = [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5, "batch": 2}]
    assert _steps(Distill(epochs=2, batch=4)) == [5]
    assert _steps(Distill(), n_train=16) == [100]
    assert _steps(Distill(epochs=2, batch=4), world=2) == [3]
    assert _steps(Distill(steps=9, stages=halves)) == [4, 4]
    assert _steps(Distill(epochs=4, batch=4, stages=halves)) == [5, 10]
    assert _steps(Distill(minutes=1, stages=halves)) == [60, 60]
    slow = {"a": 1.0, "b": 0.1}
    assert _steps(Distill(minutes=1, stages=halves), seconds=lambda p: slow[p.name]) == [30, 300]
    assert _steps(Distill(stages=[{"name": "a", "steps": 3}, {"name": "b", "steps": 4}])) == [3, 4]
    assert _steps(Distill(steps=0)) == [0]
