"""Specs that must be refused: the file, its keys and values, and the code that it names."""

import os
from pathlib import Path

from bad_inputs import SPEC, BadInput, project

SPEC_FILE = "kdcompile.toml"
PLAN, DISTILL = ("plan",), ("distill",)


def _spoilt(old: str, new: str):
    """The project with `new` for `old` in its spec."""
    return lambda folder: project(folder, spec=_changed(old, new))


def _changed(old: str, new: str) -> str:
    assert SPEC.count(old) == 1, old
    return SPEC.replace(old, new)


def _recipe(name: str):
    return _spoilt('recipe = "none"', f'recipe = "{name}"')


def _good(folder: Path) -> None:
    """Write the spec as it should be."""
    (folder / SPEC_FILE).write_text(SPEC)


def _called(*words: str):
    """A fix that calls the command differently."""
    return lambda folder: words


def _renamed(folder: Path) -> None:
    project(folder)
    (folder / SPEC_FILE).rename(folder / "crowd.toml")
    (folder / "other.toml").write_text((folder / "crowd.toml").read_text())
    (folder / "ruff.toml").write_text("line-length = 100\n")


def _bytes(content: bytes):
    return lambda folder: (project(folder), (folder / SPEC_FILE).write_bytes(content))


CASES = [
    BadInput(
        "input-of-a-million-squared", _spoilt("[1, 3, 16, 16]", "[1, 3, 1000000, 1000000]"), PLAN,
        "spec-invalid", _good, says=("export.shape", "more than 268435456 pixels"),
    ),
    BadInput(
        "input-of-64-bits", _spoilt("[1, 3, 16, 16]", f"[1, 3, 16, {1 << 63}]"), PLAN,
        "spec-invalid", _good, says=("export.shape", "more than 268435456 pixels"),
    ),
    BadInput(
        "batch-of-64-bits",
        _spoilt("[1, 3, 16, 16]", "{ min = [1, 3, 16, 16], opt = [1, 3, 16, 16], "
                f"max = [{1 << 40}, 3, 16, 16] }}"),
        PLAN, "spec-invalid", _good, says=("export.shape.max", "more than 268435456 pixels"),
    ),
    BadInput(
        "learning-rate-without-measure", project, (*PLAN, "--set", "distill.lr=1e300"),
        "spec-invalid", _called(*PLAN, "--set", "distill.lr=0.01"), says=("distill.lr", "1000"),
    ),
    BadInput(
        "key-of-ten-thousand-parts", project, (*PLAN, "--set", ".".join("a" * 10_000) + "=1"),
        "set-syntax", _called(*PLAN, "--set", "distill.lr=0.01"),
        says=("is not key=value", "such as --set distill.steps=60"),
    ),
    BadInput(
        "no-spec", lambda folder: None, PLAN, "spec-missing",
        _called("init", "--example", "digits", "."),
        says=("there is no kdcompile.toml here", "kdcompile init --example digits"),
    ),
    BadInput(
        "no-such-spec", project, ("plan", "gone.toml"), "spec-missing", _called("plan"),
        says=("gone.toml does not exist",),
    ),
    BadInput(
        "several-specs", _renamed, PLAN, "spec-ambiguous", _called("plan", "crowd.toml"),
        says=("crowd.toml and other.toml may be meant", "kdcompile plan crowd.toml"),
    ),
    BadInput(
        "no-toml", _spoilt('target = "cpu"', "target = cpu"), PLAN, "spec-syntax", _good,
        says=("line 2", "strings need quotes"),
    ),
    BadInput(
        "toml-not-utf8", _bytes(SPEC.encode("utf-16")), PLAN, "spec-syntax", _good,
        says=("UTF-8",),
    ),
    BadInput(
        "toml-nested-too-deep", _bytes(f"target = {'[' * 5000}".encode()), PLAN, "spec-syntax",
        _good, says=("nested too deep",),
    ),
    BadInput(
        "toml-endless-number", _bytes(f"seed = {'9' * 5000}".encode()), PLAN, "spec-syntax", _good,
        says=("integer",),
    ),
    BadInput(
        "unknown-key", _spoilt("steps = 1", "stepz = 1"), PLAN, "spec-invalid", _good,
        says=("unknown key 'distill.stepz' (did you mean 'steps'?)", "use one of", "steps"),
    ),
    BadInput(
        "unknown-section", _spoilt("[distill]", "[distil]"), PLAN, "spec-invalid", _good,
        says=("(did you mean 'distill'?)",),
    ),
    BadInput(
        "unknown-key-of-a-stage",
        _spoilt("[export]", '[[distill.stages]]\nname = "a"\nsteps = 1\nrecip = "none"\n[export]'),
        PLAN, "spec-invalid", _good, says=("(did you mean 'recipe'?)",),
    ),
    BadInput(
        "missing-key", _spoilt('weights = "w.safetensors"\n', ""), PLAN, "spec-invalid", _good,
        says=("teacher: weights is missing", "add weights, the file"),
    ),
    BadInput(
        "missing-section",
        _bytes(b'[teacher]\nmodel = "model.py:build"\nweights = "w.safetensors"\n'),
        PLAN, "spec-invalid", _good, says=("data is missing", "add data"),
    ),
    BadInput(
        "text-for-a-number", _spoilt("steps = 1", 'steps = "many"'), PLAN, "spec-invalid", _good,
        says=("distill.steps", "got 'many'", "set distill.steps to a whole number"),
    ),
    BadInput(
        "number-for-text", _spoilt('target = "cpu"', "target = 3"), PLAN, "spec-invalid", _good,
        says=("got 3", "a string in quotes"),
    ),
    BadInput(
        "number-for-a-section", _spoilt("[distill]", "[quantize.cache]"), PLAN, "spec-invalid",
        _good, says=("quantize.cache", "a path in quotes"),
    ),
    BadInput(
        "text-for-a-section", _spoilt("budget = { width = 1.0 }", 'budget = "small"'), PLAN,
        "spec-invalid", _good, says=("write it as a section, [student.budget]",),
    ),
    BadInput(
        "unknown-choice", _spoilt("images = 4", 'calibrator = "entropi"'), PLAN, "spec-invalid",
        _good, says=("use one of entropy, minmax", "(did you mean 'entropy'?)"),
    ),
    BadInput(
        "unknown-task", _spoilt("[data]", '[task]\nkind = "pose"\n[data]'), PLAN,
        "spec-invalid", _good,
        says=("fix:   use one of classification, counting, detection, generic, regression",),
    ),
    BadInput(
        "infinite-number", _spoilt("steps = 1", "steps = 1\nlr = inf"), PLAN, "spec-invalid",
        _good, says=("distill.lr", "a finite number"),
    ),
    BadInput(
        "number-that-is-none", _spoilt("std = [1.0,", "std = [nan,"), PLAN, "spec-invalid", _good,
        says=("data.std.0", "a finite number"),
    ),
    BadInput(
        "negative-seed", _spoilt('target = "cpu"', 'target = "cpu"\nseed = -1'), PLAN,
        "spec-invalid", _good, says=("seed", "greater than or equal to 0"),
    ),
    BadInput(
        "null-in-a-path", _spoilt('root = "data"', r'root = "da\u0000ta"'), PLAN, "spec-invalid",
        _good, says=("a null character", "take out"),
    ),
    BadInput(
        "two-budgets", _spoilt("{ width = 1.0 }", "{ width = 1.0, macs = 9 }"), PLAN,
        "spec-invalid", _good, says=("name exactly one of speedup, latency_ms, macs, width",),
    ),
    BadInput(
        "files-outside-the-root", _spoilt("[student]", 'files = ["../*"]\n[student]'), PLAN,
        "spec-invalid", _good, says=("patterns under root",),
    ),
    BadInput(
        "set-without-value", project, ("plan", "--set", "distill.steps"), "set-syntax",
        _called("plan", "--set", "distill.steps=60"), says=("--set distill.steps=60",),
    ),
    BadInput(
        "set-below-a-value", project, ("plan", "--set", "seed=0", "--set", "seed.x=1"),
        "set-syntax", _called("plan", "--set", "seed=0"), says=("'seed' is not a section",),
    ),
    BadInput(
        "unknown-target", project, ("plan", "--target", "cpuu"), "target-unknown",
        _called("plan", "--target", "cpu"), says=("(did you mean 'cpu'?)",),
    ),
    BadInput(
        "unknown-option", project, ("plan", "--targt", "cpu"), "",
        _called("plan", "--target", "cpu"), exit=2, says=("No such option", "--target"),
    ),
    BadInput(
        "unknown-command", project, ("paln",), "", _called("plan"), exit=2,
        says=("No such command 'paln'",),
    ),
]  # fmt: skip


def _outside(folder: Path, name: str, *, link: bool = False) -> None:
    """The project in a folder below, with its code beside that folder."""
    below = folder / "crowd"
    below.mkdir()
    project(below, spec=_changed("model.py:build", name))
    (below / "model.py").rename(folder / "outside.py")
    if link:
        (below / "linked.py").symlink_to(folder / "outside.py")


def _absolute(folder: Path) -> None:
    _outside(folder, f"{folder}/outside.py:build")


def _copied(folder: Path) -> None:
    """Copy the file into the spec's folder."""
    below = folder / "crowd"
    (below / "linked.py").unlink(missing_ok=True)
    (below / "model.py").write_text((folder / "outside.py").read_text())
    _good(below)


def _code(text: str):
    return lambda folder: (project(folder), (folder / "model.py").write_text(text))


def _mended(folder: Path) -> None:
    from bad_inputs import MODEL

    (folder / "model.py").write_text(MODEL)


def _in_a_folder(folder: Path) -> None:
    """Code in a folder below the spec's, which is not there."""
    project(folder, spec=_changed("model.py:build", "nets/model.py:build"))


BELOW = ("plan", "crowd")
CASES += [
    BadInput(
        "code-above", lambda folder: _outside(folder, "../outside.py:build"), BELOW,
        "factory-outside", _copied, says=("outside the spec's folder", "copy the file into"),
    ),
    BadInput("code-by-absolute-path", _absolute, BELOW, "factory-outside", _copied),
    BadInput(
        "code-by-a-link", lambda folder: _outside(folder, "linked.py:build", link=True), BELOW,
        "factory-outside", _copied, says=(f"{os.sep}outside.py",),
    ),
    BadInput(
        "code-that-is-not-there", _in_a_folder, PLAN, "factory-missing", _good,
        says=("there is no nets/model.py (did you mean 'model.py'?)",),
    ),
    BadInput(
        "code-without-a-function", _spoilt("model.py:build", "model.py"), PLAN, "factory-syntax",
        _good, says=('write it as "model.py:build"',),
    ),
    BadInput(
        "unknown-function", _spoilt("model.py:build", "model.py:built"), PLAN, "factory-missing",
        _good, says=("has no function 'built'",),
    ),
    BadInput(
        "package-that-is-not-installed", _spoilt("model.py:build", "no_such.nets:build"), PLAN,
        "factory-missing", _good, says=("no installed module 'no_such.nets'",),
    ),
    BadInput(
        "code-that-does-not-parse", _code("def build(:\n"), PLAN, "factory-broken", _mended,
        says=("SyntaxError", "kdcompile --debug"),
    ),
    BadInput(
        "code-that-leaves", _code("import sys\nsys.exit(0)\n"), PLAN, "factory-broken", _mended,
        says=("SystemExit",),
    ),
    BadInput(
        "crop-far-larger-than-the-photos", _spoilt("crop = 16", "crop = 512"), PLAN,
        "crop-larger", _good, says=("a crop of 512", "16 x 16", "set distill.crop to 16"),
    ),
    BadInput(
        "no-such-recipe", _recipe("sktt"), DISTILL, "recipe-unknown", _good,
        says=("(did you mean 'skt'?)", "kdcompile recipes"),
    ),
    BadInput(
        "recipe-of-another-task", _recipe("dist"), PLAN, "recipe-task", _good,
        says=("is for classification, not counting: its loss correlates",),
    ),
    BadInput(
        "recipe-without-its-second-teacher", _recipe("mixture"), PLAN, "recipe-needs", _good,
        says=("at least one more teacher", "[[teachers]]"),
    ),
    BadInput(
        "recipe-without-a-deployed-student", _recipe("partitioned"), PLAN, "recipe-needs", _good,
        says=("the student that is deployed now", 'student.init = "file"'),
    ),
    BadInput(
        "recipes-that-cannot-be-joined", _recipe("kd+kd"), PLAN, "recipe-combine", _good,
        says=("named twice", "leave one out"),
    ),
]  # fmt: skip
