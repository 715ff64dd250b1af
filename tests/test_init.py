"""`kdcompile init` writes examples and a template that loads, and overwrites nothing."""

import json
import re
import tomllib
from pathlib import Path
from typing import get_origin

import pytest

import kdcompile.examples
from kdcompile.config.distill import NO_EFFECT
from kdcompile.config.gates import Gates, sections
from kdcompile.config.load import load_spec
from kdcompile.config.spec import Spec
from kdcompile.config.template import example_names, init_example, init_template
from kdcompile.core.errors import KDError


def test_digits_is_copied_whole(tmp_path):
    written = init_example("digits", tmp_path / "new")
    assert sorted(written) == sorted(p for p in (tmp_path / "new").rglob("*") if p.is_file())
    names = {path.name for path in written}
    assert "kdcompile.toml" in names
    assert "__init__.py" not in names
    assert not any("__pycache__" in path.parts for path in written)
    source = Path(next(iter(kdcompile.examples.__path__)), "digits")
    for path in written:
        assert path.read_bytes() == (source / path.relative_to(tmp_path / "new")).read_bytes()


@pytest.mark.parametrize("name", example_names())
def test_every_example_loads(name, tmp_path):
    init_example(name, tmp_path)
    specs = sorted(tmp_path.glob("*.toml"))
    assert specs
    for path in specs:
        assert load_spec(path).folder == tmp_path


def test_unknown_example_names_the_nearest(tmp_path):
    with pytest.raises(KDError) as caught:
        init_example("digit", tmp_path)
    assert caught.value.code == "example-unknown"
    assert "did you mean 'digits'" in caught.value.message


def test_existing_file_stops_everything(tmp_path):
    (tmp_path / "kdcompile.toml").write_text("mine")
    for write in (lambda: init_example("digits", tmp_path), lambda: init_template(tmp_path)):
        with pytest.raises(KDError) as caught:
            write()
        assert caught.value.code == "init-exists"
        assert "kdcompile.toml" in caught.value.message
    assert [p.name for p in tmp_path.iterdir()] == ["kdcompile.toml"]
    assert (tmp_path / "kdcompile.toml").read_text() == "mine"


def test_an_example_of_which_some_files_are_there_is_completed(tmp_path):
    """As a killed `init` leaves it; with all there, or another in a file's place, it is refused."""
    whole = init_example("digits", tmp_path)
    content = {path: path.read_bytes() for path in whole}
    for path in whole[1:3]:
        path.unlink()
    assert init_example("digits", tmp_path) == whole
    assert {path: path.read_bytes() for path in whole} == content
    with pytest.raises(KDError, match="is there already"):
        init_example("digits", tmp_path)
    whole[0].unlink()
    whole[1].write_bytes(b"mine")
    with pytest.raises(KDError, match=f"{whole[1].name} is there already"):
        init_example("digits", tmp_path)
    assert whole[1].read_bytes() == b"mine"
    assert not whole[0].exists()


def test_a_stopped_init_leaves_no_file(tmp_path, monkeypatch):
    def stop(place):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdcompile.core.files.sync_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        init_example("digits", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_link_to_nowhere_is_not_followed(tmp_path):
    (tmp_path / "kdcompile.toml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KDError, match="not overwritten"):
        init_template(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KDError) as caught:
        init_template(tmp_path / "file")
    assert caught.value.code == "output-unwritable"


def test_template_is_the_defaults_said_aloud(tmp_path):
    (path,) = init_template(tmp_path)
    spec = load_spec(path)
    plain = Spec(teacher=spec.teacher, data={"format": "points-jsonl", "root": tmp_path / "data"})
    assert spec.model_dump() == plain.model_dump()


def test_template_shows_every_section_and_field(tmp_path):
    (path,) = init_template(tmp_path)
    text = path.read_text()
    for name, field in Spec.model_fields.items():
        kind = sections(()) if field.annotation is Gates else field.annotation
        section = getattr(kind, "model_fields", None)
        many = get_origin(field.annotation) is list  # of sections, as a comment
        assert (f"\n# [[{name}]]" if many else f"\n[{name}]" if section else f"\n{name} =") in text
        for key in (key for key in section or () if key not in NO_EFFECT):
            assert f"{key} =" in text or f"[[{name}.{key}]]" in text, f"{name}.{key}"


def test_the_fields_to_change_for_classes_are_named_and_suffice(tmp_path):
    """With the values that an example of classes has there, the template is a spec of classes."""
    (path,) = init_template(tmp_path)
    text = path.read_text()
    told = re.search(r"For classes or values change: (.*?)\.(?: |$)", text.replace("\n#", ""), re.S)
    fields = [name.split(".") for name in re.split(r",\s+", told[1])]
    init_example("cifar10", tmp_path / "classes")
    classes = load_spec(tmp_path / "classes" / "kdcompile.toml")
    given = tomllib.loads((tmp_path / "classes" / "kdcompile.toml").read_text())
    sets = [f"{s}.{key}={json.dumps(given[s][key])}" for s, key in fields]
    spec = load_spec(path, sets)
    for section, key in fields:
        assert getattr(getattr(spec, section), key) == getattr(getattr(classes, section), key)
    assert spec.distill.crop <= min(spec.export.profile[1][2:])
    # what only the length and the strength of the training, or the target, need is left
    sections = {"task": {}, "data": {"root"}, "export": {}}
    for section, own in sections.items():
        pairs = (getattr(s, section).model_dump(exclude={*own}) for s in (spec, classes))
        assert next(pairs) == next(pairs), section


def test_commented_alternatives_of_the_template_are_valid(tmp_path):
    (path,) = init_template(tmp_path)
    text = path.read_text()
    replaced = "shape = [1, 3, 576, 768]"
    text = text.replace(replaced, f"# {replaced}").replace("# shape = {", "shape = {")
    for key in ("max_test", "steps", "weights = { soft", "speedup", "size_mb"):
        assert f"# {key}" in text
        text = text.replace(f"# {key}", key)
    begin, end = text.index("# [[distill.stages]]"), text.index("\n[export]")
    text = text[:begin] + re.sub(r"(?m)^# ", "", text[begin:end]) + text[end:]
    text = text.replace("steps = 6000", "# steps = 6000")
    path.write_text(text)
    spec = load_spec(path)
    assert [stage.name for stage in spec.distill.stages] == ["blocks", "polish"]
    assert spec.distill.stages[0].blocks
    assert spec.export.is_dynamic
    assert spec.gates.speedup is not None
    assert spec.distill.weights == {"soft": 0.5}
