"""A build whose stages only write files, for tests of keys and reasons."""

import shutil

import pytest
from written_build import plan_of, write_folder, write_stage

from kdcompile.passes.stages import Stage


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A folder with a spec and its data, not built."""
    folder = tmp_path_factory.mktemp("written")
    write_folder(folder)
    return folder


@pytest.fixture(scope="session")
def _built(written, tmp_path_factory):
    """The same, built; so that the tests need not hash kdcompile's own source each."""
    folder = tmp_path_factory.mktemp("built") / "here"
    shutil.copytree(written, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "load", lambda stage: write_stage)
        plan_of(folder).make("bundle")
    return folder


@pytest.fixture
def folder_built(_built, tmp_path, monkeypatch):
    """A folder that is built, and whose stages write."""
    monkeypatch.setattr(Stage, "load", lambda stage: write_stage)
    shutil.copytree(_built, tmp_path / "here")
    return tmp_path / "here"
