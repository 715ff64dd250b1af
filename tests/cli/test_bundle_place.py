"""Whose bundle lies at a place: another spec's is never replaced, and a copy's has its own name."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_bundle
from bad_inputs import project
from command_line import CommandLine, contents, refusal

from kdcompile.bundle.form import sealed
from kdcompile.bundle.manifest import read_bundle
from kdcompile.bundle.place import spec_id
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.passes.bundle import install
from kdcompile.passes.manager import make_plan


@pytest.fixture(scope="module")
def made():
    """The plan of the tiny project and its bundle, as the store has it."""
    folder = tiny_bundle.built()
    plan = make_plan(load_spec(folder / "kdcompile.toml", target=tiny_bundle.TARGET))
    return plan, plan.make("bundle")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capsys)


def of_an_earlier_version(bundle):
    """The bundle as it is, with a manifest that does not say which spec it is of."""
    tiny_bundle.resealed(bundle)
    about = tiny_bundle.read(bundle)
    del about["spec"]
    write_json(bundle / "manifest.json", sealed(about))


def test_the_bundle_of_another_spec_of_this_name_stays(made, command, tmp_path):
    place = install(made[1], tmp_path / "dist/crowd-cpu", tmp_path / "a/crowd")
    before = contents(place)
    for name in ("a", "b"):
        (tmp_path / name / "crowd").mkdir(parents=True)
        project(tmp_path / name / "crowd")
    block = refusal(command("build", "b/crowd"), "output-other", "is of another spec", "-o")
    assert str(place) in block
    assert contents(place) == before
    assert not (tmp_path / "b/crowd/.kdcompile/export").exists(), "found out before the work"
    code, text = command("bundle", "b/crowd", "-o", "dist/crowd-cpu", "--set", "distill.steps=x")
    assert (code, "spec-invalid" in text) == (1, True)


def test_the_bundle_of_another_spec_is_replaced_by_force(made, command, tmp_path):
    place = install(made[1], tmp_path / "dist/x", tmp_path / "a")
    (place / "infer.py").write_text("changed")
    tiny_bundle.resealed(place)
    with pytest.raises(KDError, match="is of another spec") as caught:
        install(made[1], place, tmp_path / "b")
    assert "--force" in caught.value.fix
    install(made[1], place, tmp_path / "b", force=True)
    assert read_bundle(place).manifest["spec"] == spec_id(tmp_path / "b", place)
    assert "changed" not in (place / "infer.py").read_text()
    (place / "mine.txt").write_text("mine")  # what no build put there stays, by force too
    with pytest.raises(KDError, match=r"mine\.txt"):
        install(made[1], place, tmp_path / "a", force=True)
    assert command("bundle", "a", "--force")[0] == 2
    shutil.copytree(tiny_bundle.built(), tmp_path / "c", ignore=shutil.ignore_patterns("bundle"))
    (place / "mine.txt").unlink()
    words = ("c", "--target", tiny_bundle.TARGET, "-o", place)
    assert "output-other" in command("build", *words)[1]
    for name in ("build", "bundle"):
        install(made[1], place, tmp_path / "a", force=True)
        assert command(name, *words, "--force")[0] in (0, 3, 5)
        assert read_bundle(place).name == "c"


def test_the_same_spec_replaces_its_own(made, tmp_path):
    spec = tmp_path / "crowd"
    place = install(made[1], tmp_path / "dist/x", spec)
    assert read_bundle(place).manifest["spec"] == spec_id(spec, place)
    (place / "infer.py").write_text("changed")
    tiny_bundle.resealed(place)
    install(made[1], place, spec)
    assert "changed" not in (place / "infer.py").read_text()
    before = (place / "manifest.json").stat().st_ino
    install(made[1], place, spec)
    assert (place / "manifest.json").stat().st_ino == before, "the same is left alone"


def test_a_bundle_says_nothing_of_where_its_spec_lies(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    found = {spec_id(root / "crowd", root / "dist/crowd-cpu") for root in (one, two)}
    assert len(found) == 1, "alike in every checkout"
    assert spec_id(one / "b/crowd", one / "dist/crowd-cpu") not in found
    (tmp_path / "link").symlink_to("one")
    assert spec_id(tmp_path / "link/crowd", one / "dist/crowd-cpu") in found
    assert os.fspath(tmp_path) not in found.pop()


def test_one_of_an_earlier_version_is_replaced_by_its_own_spec_alone(made, tmp_path):
    plan, artifact = made
    place = install(artifact, tmp_path / "dist/x", plan.spec.folder)
    of_an_earlier_version(place)
    install(artifact, place, plan.spec.folder)  # the store has a bundle with this network
    assert "spec" in read_bundle(place).manifest
    (place / "model.onnx").write_bytes(b"of another build")
    of_an_earlier_version(place)
    before = contents(place)
    with pytest.raises(KDError, match="does not say which spec it is of") as caught:
        install(artifact, place, plan.spec.folder)
    assert (caught.value.code, "-o" in caught.value.fix) == ("output-other", True)
    assert contents(place) == before


def test_a_torn_manifest_is_mended_by_its_spec(made, tmp_path):
    place = install(made[1], tmp_path / "dist/x", tmp_path / "crowd")
    whole = (place / "manifest.json").read_bytes()
    (place / "manifest.json").write_bytes(whole[: len(whole) // 2])
    install(made[1], place, tmp_path / "crowd")
    assert (place / "manifest.json").read_bytes() == whole


def test_a_copied_project_makes_a_bundle_of_its_own_name(made, command, tmp_path):
    copy = tmp_path / "parking"
    leave = shutil.ignore_patterns("bundle.json", "locks")
    shutil.copytree(tiny_bundle.built(), copy, ignore=leave)
    shutil.rmtree(copy / "bundle")
    plan = make_plan(load_spec(copy / "kdcompile.toml", target=tiny_bundle.TARGET))
    assert set(made[0].found()) - set(plan.found()) == {"bundle"}, "all else is a hit"
    code, _ = command("build", "parking", "--target", tiny_bundle.TARGET)
    assert code in (0, 3, 5)
    bundle = read_bundle(Path("dist/parking-jetson"))
    assert (bundle.name, bundle.report().name) == ("parking", "parking")
    assert (bundle.folder / "triton/parking/config.pbtxt").is_file()
    assert (bundle.folder / "report.md").read_text().startswith("# parking for jetson")
    assert command.out.startswith("parking for jetson")
    command("verify", "parking", "--target", tiny_bundle.TARGET, "--json")
    assert json.loads(command.out)["name"] == "parking"


@pytest.mark.parametrize(
    ("stage", "output"),
    [
        ("distill", "crowd/w.safetensors"),
        ("distill", "link.safetensors"),
        ("search", "crowd/data/labels.json"),
        ("export", "crowd/kdcompile.toml"),
    ],
)
def test_no_stage_writes_over_what_it_reads(stage, output, command, tmp_path):
    (tmp_path / "crowd").mkdir()
    project(tmp_path / "crowd")
    (tmp_path / "crowd/data/labels.json").write_text("[]")
    (tmp_path / "link.safetensors").symlink_to("crowd/w.safetensors")

    def given(folder):
        return {k: v for k, v in contents(folder).items() if ".kdcompile" not in k}

    before = given(tmp_path)
    words = (stage, "crowd", "-o", output)
    refusal(command(*words), "output-input", "is read by the build", "another path")
    assert given(tmp_path) == before


def test_a_stage_writes_where_an_earlier_run_did(made, command, tmp_path):
    for _ in range(2):
        assert command("search", tiny_bundle.built(), "-o", "student.json") == (0, "")
    assert (tmp_path / "student.json").is_file()


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\tb", "a\u200bb", "a\udce9b"])
def test_a_name_that_no_bundle_may_have_is_refused_before_the_work(name, command, tmp_path):
    (tmp_path / name).mkdir()
    project(tmp_path / name)
    before = contents(tmp_path)
    for words in ("plan", "build"):
        refusal(command(words, name), "name-unprintable", "not printed", "another name")
    assert contents(tmp_path) == before
