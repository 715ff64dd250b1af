"""The registry: plug-ins that are broken, double or of another type, and names that are unknown."""

import sys

import pytest
from plugin_site import install
from written_build import write_folder

from kdcompile import __version__
from kdcompile.config.gates import Gates, _sections
from kdcompile.config.load import load_spec
from kdcompile.core import plugins
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.distill.recipe import Recipe
from kdcompile.distill.registry import find_recipe, recipes
from kdcompile.passes.keys import key_parts
from kdcompile.targets import load
from kdcompile.tasks.task import Task, task_of

GATE = """
from kdcompile.config.gates import GateSpec
from kdcompile.gates.registry import gate

class Settings(GateSpec):
    most: int = 3

@gate("NAME", Settings, threshold=lambda settings, task: "few")
def mine(settings, context):
    raise AssertionError("nothing is measured here")
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that Python imports from; what it brings is forgotten after the test."""
    built_in = {kind: plugins.names(kind) for kind in plugins.BUILT_IN}
    assert all(built_in[kind] for kind in ("recipes", "tasks", "formats", "gates", "targets"))
    modules, known = set(sys.modules), dict(plugins._known)
    monkeypatch.syspath_prepend(tmp_path)

    def forget():
        plugins.entries.cache_clear()
        plugins._load.cache_clear()
        _sections.cache_clear()

    forget()
    yield tmp_path
    forget()
    plugins._known.clear()
    plugins._known.update(known)
    for name in set(sys.modules) - modules:
        if name.startswith("acme"):
            del sys.modules[name]


def refused(code, call):
    with pytest.raises(KDError) as error:
        call()
    assert error.value.code == code, error.value
    return error.value


@pytest.mark.parametrize(
    "text",
    ["import no_such_module", "raise SystemExit(3)", "def f(:", "1 / 0", "x = 1"],
    ids=["import", "exit", "syntax", "error", "attribute"],
)
def test_one_that_does_not_import_is_an_error_that_names_its_distribution(site, text):
    install(site, "acme-bad", "2.1", {"recipes": {"bad": "acme_bad:Bad"}}, {"acme_bad.py": text})
    error = refused("plugin-broken", lambda: find_recipe("bad"))
    assert "acme-bad 2.1" in error.message
    assert "pip uninstall acme-bad" in error.fix
    assert issubclass(find_recipe("kd"), Recipe), "the others are as they were"
    ((one, found),) = [(o, e) for o, e in plugins.listing("recipes") if o.name == "bad"]
    assert (one.distribution, one.version, found.code) == ("acme-bad", "2.1", "plugin-broken")


def test_a_name_of_a_built_in_one_is_refused_where_it_is_used(site):
    files = {"acme_gate.py": GATE.replace("NAME", "parity")}
    install(site, "acme-gate", "1.0", {"gates": {"parity": "acme_gate:mine"}}, files)
    error = refused("plugin-duplicate", Gates)
    assert f"kdcompile {__version__}" in error.message
    assert "acme-gate 1.0" in error.message
    assert "pip uninstall acme-gate" in error.fix


def test_a_name_of_two_distributions_is_refused(site):
    text = "from kdcompile.distill.recipe import Recipe\nclass One(Recipe): pass\n"
    for name in ("one", "two"):
        entries = {"recipes": {"same": f"acme_{name}:One"}}
        install(site, f"acme-{name}", "1.0", entries, {f"acme_{name}.py": text})
    message = refused("plugin-duplicate", lambda: find_recipe("same")).message
    assert "acme-one 1.0" in message
    assert "acme-two 1.0" in message


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        ("recipes", lambda folder: find_recipe("odd")),
        ("tasks", lambda folder: plugins.find("tasks", "odd", Task)),
        ("gates", lambda folder: Gates.model_validate({"odd": {}})),
        ("targets", lambda folder: load("odd")),
    ],
)
def test_an_object_of_another_type_is_refused(site, kind, use):
    install(
        site, "acme-odd", "1.0", {kind: {"odd": "acme_odd:thing"}}, {"acme_odd.py": "thing = 3"}
    )
    assert "acme-odd 1.0" in refused("plugin-invalid", lambda: use(site)).message
    write_folder(site / "spec")
    field = {"recipes": "distill.recipe", "tasks": "task.kind", "targets": "target"}.get(kind)
    spec = site / "spec" / "kdcompile.toml"
    if field is None:
        refused("plugin-invalid", lambda: load_spec(spec, ["gates.odd.max=1"]))
    else:
        load_spec(spec, [f"{field}=odd"])  # the plan refuses it


def test_a_target_whose_file_is_absent_is_refused(site):
    install(site, "acme-odd", "1.0", {"targets": {"odd": "acme_odd"}}, {"acme_odd.py": ""})
    assert "cannot be read" in refused("target-invalid", lambda: load("odd")).message


@pytest.mark.parametrize(
    ("set_", "near"),
    [
        ("task.kind=countin", "counting"), ("data.format=imagefolderr", "imagefolder"),
        ("quantize.calibrator=entropie", "entropy"), ("gates.speedupp.min=2", "speedup"),
        ("gates.mein.most=2", "mine"), ("gates.mine.mots=2", "most"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest_one(site, tmp_path, set_, near):
    files = {"acme_gate.py": GATE.replace("NAME", "mine")}
    install(site, "acme-gate", "1.0", {"gates": {"mine": "acme_gate:mine"}}, files)
    write_folder(tmp_path / "spec")
    path = tmp_path / "spec" / "kdcompile.toml"
    error = refused("spec-invalid", lambda: load_spec(path, [set_]))
    assert f"did you mean '{near}'" in error.message + error.fix


def test_a_gate_from_outside_is_in_the_keys_of_what_runs_it_alone(site, tmp_path):
    """And its section is validated by its own settings."""
    files = {"acme_gate.py": GATE.replace("NAME", "mine")}
    info = install(site, "acme-gate", "1.0", {"gates": {"mine": "acme_gate:mine"}}, files)
    write_folder(tmp_path / "spec")
    spec = load_spec(tmp_path / "spec" / "kdcompile.toml", ["gates.mine.required=false"])
    assert (spec.gates.mine.most, spec.gates.mine.required) == (3, False)
    parts = key_parts(spec, load("cpu"), Hasher(tmp_path / "hashes.json"))
    used = {name: part["plugins"] for name, part in parts.items() if "plugins" in part}
    assert used == {"verify": {"gate mine": "acme-gate 1.0"}}
    assert info.is_dir()


def test_code_that_is_imported_registers_by_a_call(site):
    class Mine(Recipe):
        about = find_recipe("kd").about

    assert plugins.register("recipes", "mine")(Mine) is Mine
    assert find_recipe("mine") is recipes()["mine"] is Mine
    found = plugins.plugin("recipes", "mine")
    assert (found.distribution, found.source) == ("", __name__)
    refused("plugin-duplicate", lambda: plugins.register("recipes", "mine")(Recipe))


TASK = """
from kdcompile.tasks.builtin import Regression

class Depth(Regression):
    kind = "depth"
    unit = "m"

def nothing():
    pass
"""


def test_a_task_may_be_a_class_in_a_file_next_to_the_spec(tmp_path):
    write_folder(tmp_path / "spec")
    path = tmp_path / "spec" / "kdcompile.toml"
    (tmp_path / "spec" / "task.py").write_text(TASK)
    spec = load_spec(path, ["task.kind=task.py:Depth"])
    task = task_of(spec)
    assert (task.kind, task.like, task.unit) == ("depth", "regression", "m")
    before = key_parts(spec, load("cpu"), Hasher(tmp_path / "hashes.json"))["teacher"]["spec"][
        "task"
    ]
    (tmp_path / "spec" / "task.py").write_text(TASK + "# changed\n")
    after = key_parts(spec, load("cpu"), Hasher(tmp_path / "hashes.json"))["teacher"]["spec"][
        "task"
    ]
    assert before["kind"] == after["kind"] == "task.py:Depth"
    assert before["files"]["task.py"] != after["files"]["task.py"]
    wrong = load_spec(path, ["task.kind=task.py:nothing"])
    refused("task-invalid", lambda: task_of(wrong))
    absent = load_spec(path, ["task.kind=task.py:Width"])
    refused("factory-missing", lambda: task_of(absent))
