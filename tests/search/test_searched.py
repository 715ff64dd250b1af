"""The stage `search` from the spec to its artifact, on a teacher of three convolutions."""

import json
import re

import pytest
from searching import LAYERS, searched
from staged_ground import write_build

from kdcompile.core.errors import KDError
from kdcompile.latency_model.network_cost import Network, params
from kdcompile.models.factory import load_teacher
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.models.weights import read_weights
from kdcompile.search.short_distillation import validation_errors
from kdcompile.search.spaces.pruned import LayerSpace
from kdcompile.tasks.task import task_of

FILES = {
    "architecture.json", "estimate.json", "operators.json", "explanation.json", "search.json",
    "front.svg", "front.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="module")
def staged(load):
    return searched(load)


@pytest.fixture(scope="module")
def layers(load):
    return searched(load, *LAYERS)


def _agrees(plan, artifact):
    """The artifact's architecture is the chosen point, and its estimate is of its own file."""
    architecture, record = artifact.json("architecture.json"), artifact.json("search.json")
    point = record["points"][record["chosen"]]
    assert point["architecture"] == architecture
    assert point["evidence"] == "distilled"
    estimate = artifact.json("estimate.json")
    student = student_from_architecture(load_teacher(plan.spec), architecture, plan.spec.folder)
    network = Network(student.eval(), plan.spec.export.profile[1])
    own = network.cost(plan.target, estimate["precision"])
    assert estimate["student"]["macs"] == sum(k.macs for k in own.kernels) == point["macs"]
    assert estimate["student"]["params"] == params(network.module) == point["params"]
    # an untrained student's biases are 0, and its file has none
    assert point["latency"]["ms"] == pytest.approx(own.estimate.ms, rel=1e-3)
    return architecture, record


def test_the_artifact_tells_one_story(staged):
    plan, artifact = staged
    assert set(artifact.files) == FILES | {"initial.safetensors"}
    architecture, record = _agrees(plan, artifact)
    assert architecture["family"] == "staged"
    assert artifact.meta["macs"] <= 30000
    assert record["measured"] is None
    assert record["explanation"] == artifact.json("explanation.json")
    assert sum(p["evidence"] == "distilled" for p in record["points"]) == 2
    assert not list(plan.store.root.glob("work/search*"))


def test_the_layers_of_the_teacher_are_a_space_too(layers):
    plan, artifact = layers
    assert set(artifact.files) == FILES
    architecture, record = _agrees(plan, artifact)
    assert architecture["family"] == "shrink"
    assert artifact.meta["macs"] <= 40000
    assert {p["architecture"]["family"] for p in record["points"]} == {"shrink"}
    made = plan.make("distill").json("result.json")
    assert made["inherit"]["layers"]  # it starts from the teacher's channels


@pytest.mark.parametrize(("macs", "family"), [(40_000, "shrink"), (3_000, "staged")])
def test_auto_takes_staged_students_only_where_layers_keep_no_budget(load, macs, family):
    budget = f"student.budget={{macs={macs}}}"
    _, artifact = searched(load, "search.space=auto", "search.finalists=0", budget)
    points = artifact.json("search.json")["points"]
    assert {p["architecture"]["family"] for p in points} == {family}


def test_finalists_are_shared_between_budgets(load, staged):
    plan, artifact = staged
    before = set(plan.store.root.glob("finalist/*"))
    _, other = searched(load, "student.budget={macs=30001}")
    assert other.key != artifact.key
    assert set(plan.store.root.glob("finalist/*")) == before != set()


def test_the_widest_uniform_student_is_a_finalist(layers):
    plan, artifact = layers
    points = artifact.json("search.json")["points"]
    teacher = load_teacher(plan.spec)
    tile = plan.target.channel_tile
    space = LayerSpace(teacher, plan.spec.export.profile[1], tile, plan.spec.seed)
    uniform = [a for a in space.uniform_students() if any(p["architecture"] == a for p in points)]
    distilled = [p["architecture"] for p in points if p["evidence"] == "distilled"]
    assert any(a in distilled for a in uniform)


def test_fields_of_earlier_versions_are_accepted_with_a_note(load, staged, caplog):
    old = [f"search.{field}=2" for field in ("blocks_trained", "block_steps", "jobs")]
    assert searched(load, *old)[1].key == staged[1].key  # they change no result
    with caplog.at_level("WARNING"):
        searched(load, *old, "search.finalists=1")
    for field in ("blocks_trained", "block_steps", "jobs"):
        assert f"search.{field} has no effect" in caplog.text


def test_a_staged_student_starts_from_its_short_distillation(staged):
    plan, artifact = staged
    made = plan.make("distill")
    rows = [json.loads(line) for line in made.file("metrics.jsonl").read_text().splitlines()]
    architecture = artifact.json("architecture.json")
    weights = read_weights(artifact.file("initial.safetensors"))[0]
    student = student_from_architecture(load_teacher(plan.spec), architecture, plan.spec.folder)
    student.load_state_dict(weights)
    assert rows[0]["val_mae"] == pytest.approx(
        task_of(plan.spec).metric(validation_errors(student.eval(), plan.spec))
    )
    assert made.json("architecture.json") == architecture
    learnt = read_weights(made.file("student.safetensors"))[0]
    assert learnt.keys() == weights.keys()


def test_a_staged_student_without_finalists_trains_from_random_weights(load, caplog):
    plan, artifact = searched(load, "search.finalists=0", "distill.steps=1")
    assert artifact.json("architecture.json")["family"] == "staged"
    assert "initial.safetensors" not in artifact.files
    assert plan.make("distill").path.is_dir()
    assert "starts from random weights; distill.lr is" in caplog.text


def test_a_random_start_brings_no_weights(load):
    plan, artifact = searched(load, "student.init=random")
    assert set(artifact.files) == FILES
    assert plan.make("distill").json("result.json")


def test_measured_students_are_timed_here(load, staged):
    _, artifact = searched(load, "search.measure=2", "student.budget={latency_ms=5}")
    record = artifact.json("search.json")
    timing = record["measured"]
    assert timing["label"]
    assert all(ms > 0 for ms in [timing["teacher_ms"], *timing["ms"]])
    assert sum(p["measured_ms"] is not None for p in record["points"]) == 2
    assert record["correction"]["pairs"] >= 2
    chosen, meta = record["points"][record["chosen"]], artifact.meta
    judged = chosen["measured_ms"] or chosen["latency"]["ms"]  # not what was predicted at first
    assert meta["latency_ms"] == judged
    assert meta["speedup"] == pytest.approx(timing["teacher_ms"] / judged)
    assert sum(stage["ms"] for stage in record["stages"]) == pytest.approx(judged)
    assert artifact.key != staged[1].key


@pytest.mark.parametrize("budget", ["macs=20", "latency_ms=0.00001"])
def test_a_budget_that_nothing_keeps(load, budget):
    with pytest.raises(KDError) as refused:
        searched(load, f"student.budget={{{budget}}}")
    assert refused.value.code == "budget-impossible"
    asked = re.search(r"budget = (\{ .* \})", refused.value.fix).group(1)
    _, artifact = searched(load, f"student.budget={asked}", "search.finalists=0")
    assert artifact.json("architecture.json")


def test_blocks_that_cannot_train_in_int8(load):
    with pytest.raises(KDError) as refused:
        searched(load, "quantize.qad=true", 'search.blocks=["repvgg"]')
    assert refused.value.code == "qad-repvgg"
    assert "quantize.qad = false" in refused.value.fix


@pytest.mark.parametrize(
    "last",
    ["12, 1, 1, padding=1)", "12, 1, 1), nn.Upsample(scale_factor=4)"],
    ids=["wider", "finer than the input"],
)
def test_a_teacher_whose_output_no_staged_student_has(tmp_path, last):
    load = write_build(tmp_path)
    model = tmp_path / "model.py"
    model.write_text(model.read_text().replace("12, 1, 1)", last))
    with pytest.raises(KDError) as refused:
        searched(load, "search.space=staged")
    assert refused.value.code == "staged-output"
    assert 'search.space = "layers"' in refused.value.fix


def test_a_teacher_without_stages(tmp_path):
    load = write_build(tmp_path)
    model = tmp_path / "model.py"
    flat = model.read_text().replace("nn.ReLU(), nn.MaxPool2d(2)", "nn.ReLU(), nn.Identity()")
    model.write_text(flat)
    with pytest.raises(KDError) as refused:
        searched(load, "search.space=staged")
    assert refused.value.code == "stages-unknown"
    assert 'search.space = "layers"' in refused.value.fix
    _, artifact = searched(
        load, "search.space=auto", "student.budget={macs=100000}", "search.finalists=0"
    )
    assert artifact.json("architecture.json")["family"] == "shrink"  # `auto` does as the fix says


def test_a_teacher_of_neither_space(tmp_path, monkeypatch):
    def unknown(*args, **more):
        raise KDError("template-unknown", "a tensor is not known", where="x", fix="-")

    load = write_build(tmp_path)
    model = tmp_path / "model.py"
    flat = model.read_text().replace("nn.ReLU(), nn.MaxPool2d(2)", "nn.ReLU(), nn.Identity()")
    model.write_text(flat)
    monkeypatch.setattr("kdcompile.search.driver.Template", unknown)
    with pytest.raises(KDError) as refused:
        searched(load, "search.space=auto")
    assert refused.value.code == "search-no-space"
    assert refused.value.fix == 'set student.family = "shrink"'
    shrunk = searched(load, "student.family=shrink", "student.budget={width=0.5}")[1]
    assert shrunk.json("architecture.json")["family"] == "shrink"
