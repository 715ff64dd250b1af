"""What a change runs again and what not, and what `plan` says of it.

The stages here only write files; `test_build.py` has a real build.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from written_build import paint, paint_file, plan_of, to_do

from kdcompile.config.distill import INHERITED_RATE
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.passes import keys
from kdcompile.passes import manager as plan_module


@pytest.fixture
def folder(folder_built):
    return folder_built


def _append(*names):
    def change(folder, monkeypatch):
        path = folder.joinpath(*names)
        path.write_text(path.read_text() + "\n# more\n")

    return change


def _paint(number):
    return lambda folder, monkeypatch: paint(folder, number)


def _annotate(number):
    def change(folder, monkeypatch):
        path = folder / "data" / "annotations.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[number]["points"].append([3.0, 3.0])
        path.write_text("\n".join(map(json.dumps, rows)))

    return change


def _reverse(folder, monkeypatch):
    path = folder / "data" / "train.txt"
    path.write_text("\n".join(reversed(path.read_text().split())))


def _drop(folder, monkeypatch):
    path = folder / "data" / "train.txt"
    path.write_text("\n".join(path.read_text().split()[1:]))


def _install(library):
    def change(folder, monkeypatch):
        real = keys.version
        monkeypatch.setattr(keys, "version", lambda n: "99.0" if n == library else real(n))

    return change


def _target_value(folder, monkeypatch):
    real = plan_module.resolve_target
    monkeypatch.setattr(
        plan_module, "resolve_target", lambda name: replace(real(name), memory_gb=3.0)
    )


def _own_code(file):
    """Another version of a file of kdcompile."""

    def change(folder, monkeypatch):
        real = keys.source_key

        def found(module, version):
            files = real(module, version)
            return {name: sha if name != file else "0" * 64 for name, sha in files.items()}

        monkeypatch.setattr(keys, "source_key", found)

    return change


LAST = ("verify", "bundle")
FROM_COMPILE = ("compile", *LAST)
FROM_EXPORT = ("export", "calibrate", *FROM_COMPILE)
TRAINED = ("teacher", "distill", *FROM_EXPORT)
# change: (what changes, the steps that run again and no others, a step and why it does)
CHANGES = {
    "the teacher's source": (
        _append("model.py"), ("search", *TRAINED), "distill", "teacher: model.py changed",
    ),
    "a module that the factory imports": (
        _append("blocks", "wide.py"), ("search", *TRAINED), "teacher",
        "teacher: blocks/wide.py changed",
    ),
    "the teacher's weights": (
        _append("w.safetensors"), ("search", *TRAINED), "distill", "teacher: weights changed",
    ),
    "a training image": (_paint(1), TRAINED, "distill", "data: images/001.png changed"),
    "a validation image": (_paint(5), TRAINED, "export", "data: images/005.png changed"),
    "a test image": (_paint(7), LAST, "verify", "data: images/007.png changed"),
    "an annotation of a training image": (
        _annotate(2), TRAINED, "teacher", "data: annotation of images/002.png changed",
    ),
    "an annotation of a test image": (
        _annotate(8), LAST, "verify", "data: annotation of images/008.png changed",
    ),
    "an image less to train on": (
        _drop, TRAINED, "distill", "data: images/000.png is no longer in train",
    ),
    "the order of a split": (_reverse, TRAINED, "distill", "data: train is in another order"),
    "the library of statistics": (
        _install("scipy"), ("search", *TRAINED), "verify",
        f"libraries: scipy {keys.version('scipy')} -> 99.0",
    ),
    "the library of charts": (
        _install("matplotlib"), ("search", "bundle"), "bundle",
        f"libraries: matplotlib {keys.version('matplotlib')} -> 99.0",
    ),
    "the library of training": (
        _install("torch"), ("search", *TRAINED), "distill",
        f"libraries: torch {keys.version('torch')} -> 99.0",
    ),
    "a value of the target": (
        _target_value, ("search", *FROM_EXPORT), "export", "target: memory_gb 8 -> 3.0",
    ),
    "the code of the stage that bundles": (
        _own_code("bundle/render.py"), ("bundle",), "bundle",
        "kdcompile: bundle/render.py changed",
    ),
    "the code of the stage that judges": (
        _own_code("gates/accuracy.py"), LAST, "verify", "kdcompile: gates/accuracy.py changed",
    ),
    "the code of the stage that exports": (
        _own_code("export/onnx_file.py"), ("search", *FROM_EXPORT), "export",
        "kdcompile: export/onnx_file.py changed",
    ),
    "the code of the stage that trains": (
        _own_code("distill/train.py"), ("search", "distill", *FROM_EXPORT), "distill",
        "kdcompile: distill/train.py changed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_runs_again_what_depends_on_it(folder, monkeypatch, name):
    change, again, step, why = CHANGES[name]
    change(folder, monkeypatch)
    plan = plan_of(folder)
    searches = "search" in to_do(plan)
    plan.make("search")  # as `plan` does, where that takes no training
    found = to_do(plan)
    assert {*found, *(["search"] if searches else [])} == set(again)
    assert why in found[step]
    assert all(found.values())


# setting: the step that it concerns and why
SETTINGS = {
    "distill.lr=0.5": ("distill", f"spec: distill.lr {INHERITED_RATE} -> 0.5"),
    "seed=3": ("distill", "spec: seed 0 -> 3"),
    "data.max_test=2": ("verify", "spec: data.max_test none -> 2"),
    "target=jetson@15W": ("compile", "target: jetson-orin-nano-8gb"),
    "target=cpu": ("compile", "target: jetson"),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_a_setting_is_named_with_both_values(folder, change):
    step, why = SETTINGS[change]
    told = to_do(plan_of(folder, change))[step]
    assert any(reason.startswith(why) for reason in told), told


def test_nothing_is_due_to_a_time(folder):
    for path in folder.rglob("*"):
        if path.is_file() and ".kdcompile" not in path.parts:
            path.touch()
    assert to_do(plan_of(folder)) == {}


def test_a_pool_of_unlabelled_photos_is_read_where_it_trains(folder):
    off = "distill.unlabelled=0.0"
    before = to_do(plan_of(folder, off))
    assert to_do(plan_of(folder, off, "data.unlabelled=nowhere")) == before
    paint_file(folder / "data" / "images" / "099.png", 77)
    assert to_do(plan_of(folder, off, "data.unlabelled=images")) == before
    told = to_do(plan_of(folder, "data.unlabelled=images"))
    assert told["distill"] == ["data: unlabelled is read now"]
    assert "teacher" not in told


@pytest.fixture
def detector(folder):
    """A spec whose head has anchors, and a decoder and a loss of the user's."""
    np.savez(folder / "anchors.npz", anchors=np.ones((2, 4)))
    (folder / "own.py").write_text("def decode(outputs, plane):\n    return [], [], []\n")
    (folder / "loss.py").write_text("def loss(output, boxes):\n    return output.sum()\n")
    path = folder / "kdcompile.toml"
    task = (
        '[task]\nkind = "detection"\ndecode = "own.py:decode"\nloss = "loss.py:loss"\n'
        'head = { anchors = "anchors.npz" }\n'
    )
    path.write_text(path.read_text().replace("[teacher]", f"{task}[teacher]", 1))
    plan_of(folder).make("bundle")
    assert to_do(plan_of(folder)) == {}
    return folder


@pytest.mark.parametrize(
    ("file", "reason"),
    [("anchors.npz", "task: anchors changed"), ("own.py", "task: own.py changed"),
     ("loss.py", "task: loss.py changed")],
)  # fmt: skip
def test_what_a_head_is_read_with_runs_the_build_again(detector, file, reason, monkeypatch):
    if file == "anchors.npz":
        np.savez(detector / file, anchors=np.full((2, 4), 3.0))
    else:
        _append(file)(detector, monkeypatch)
    found = to_do(plan_of(detector))
    assert "teacher" in found
    assert any(reason in why for why in found["distill"]), found["distill"]


def test_anchors_lie_beside_the_spec_wherever_it_is_read_from(detector, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path.parent)
    spec = load_spec(detector / "kdcompile.toml")
    assert spec.task.head.anchors == detector / "anchors.npz"
    (detector / "anchors.npz").rename(detector / "other.npz")
    assert to_do(plan_of(detector, f"task.head.anchors={detector / 'other.npz'}")) == {}
    with pytest.raises(KDError) as caught:
        plan_of(detector)
    assert caught.value.code == "anchors-missing"
    assert "--set task.head.anchors=PATH" in caught.value.fix
