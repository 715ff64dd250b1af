"""--baseline BUNDLE: what it sets, and what is refused before any stage runs."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kdcompile.api import check_previous
from kdcompile.cli.options import previous_option, with_previous
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.gates import reference_bundle

SPEC = """
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "data.py:photos"
root = "."
mean = [0.0]
std = [1.0]
[export]
shape = [1, 1, 8, 8]
"""
DATA = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    array = np.full((8, 8, 1), len(split), np.uint8)
    array[0, 0] = ord(split[1])
    return [Photo(split, array=array)]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kdcompile.toml").write_text(SPEC)
    (tmp_path / "data.py").write_text(DATA)
    return tmp_path


def load(folder, *sets):
    return load_spec(folder / "kdcompile.toml", sets)


def test_the_option_is_a_field_of_the_spec_whatever_the_path(folder, monkeypatch):
    monkeypatch.chdir(folder)

    @click.command()
    @previous_option
    def command(baseline):
        click.echo(load(folder, *with_previous((), baseline)).gates.previous.bundle)

    for name in ('a "b"\\c', "dist/old"):
        found = CliRunner().invoke(command, ["--baseline", name])
        assert found.output.strip() == str((folder / name).resolve())
    assert with_previous(("seed=1",), None) == ("seed=1",)


def test_a_path_is_beside_the_spec_or_where_it_was_typed(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    spec = load(folder, 'gates.previous={ bundle = "../old" }')
    assert reference_bundle.earlier_folder(spec) == Path.cwd().parent / "old"
    with (folder / "kdcompile.toml").open("a") as file:
        file.write('[gates.previous]\nbundle = "../older"\n')
    assert reference_bundle.earlier_folder(load(folder)) == folder.parent / "older"


def test_no_earlier_bundle_is_named(folder):
    assert reference_bundle.earlier_folder(load(folder)) is None
    assert reference_bundle.earlier_folder(load(folder, 'gates.previous={ margin = "2%" }')) is None


def test_no_earlier_bundle_is_not_looked_for(folder):
    check_previous(load(folder, "data.format=absent.py:photos"))


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_that_is_no_bundle_is_refused_first(folder, made):
    if made:
        (folder / "old").mkdir()
    sets = with_previous((), folder / "old")
    with pytest.raises(KDError) as caught:
        check_previous(load(folder, *sets))
    assert caught.value.code == "bundle-missing"
    assert caught.value.fix
