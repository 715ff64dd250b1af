"""A bundle is in its place whatever happens: killed, torn, two at once, no room."""

import errno
import os
import threading

import pytest
from command_line import contents

from kdcompile.bundle import manifest, swap
from kdcompile.core.errors import KDError
from kdcompile.core.locks import folder_if_free
from kdcompile.core.report import Report
from kdcompile.core.store import Store
from kdcompile.passes.bundle import install

KEY, OTHER = "a" * 64, "b" * 64


def _artifact(root, key=KEY, text="one"):
    """An entry that is a bundle as far as its manifest says."""

    def build(folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "f").write_text(text)
        (folder / "model.onnx").write_text(text)
        (folder / "preprocess.json").write_text("{}")
        choice = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1.20"}
        report = Report("crowd", "cpu", "passed", 0, (), (), {})
        manifest.write_manifest(folder, report, "counting", choice)
        return {}

    return Store(root).make("bundle", key, build)


def _place(tmp_path):
    return tmp_path / "dist" / "b"


@pytest.mark.parametrize("exchanging", [True, False])
def test_one_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchanging):
    if not exchanging:  # as on another system than Linux
        monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    for text in ("old", "new"):
        fresh = tmp_path / "scratch" / "new"
        fresh.mkdir(parents=True, exist_ok=True)
        (fresh / "f").write_text(text)
        swap.swap(fresh, tmp_path / "place")
        assert (tmp_path / "place" / "f").read_text() == text


def test_a_second_rename_that_fails_puts_the_old_back(tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "f").write_text("old")
    with pytest.raises(OSError, match="No such"):
        swap._rename_twice(tmp_path / "scratch", tmp_path / "place")
    assert (tmp_path / "place" / "f").read_text() == "old"


def test_leftovers_of_killed_installs_are_removed_and_a_living_one_stays(tmp_path):
    place = _place(tmp_path)
    names = (".b.kdcompile-dead", ".b.kdcompile-living", ".b.mine")
    dead, living, users = (place.with_name(name) for name in names)
    for folder in (dead, living, users):
        (folder / "new").mkdir(parents=True)
    with folder_if_free(living) as held:
        assert held
        install(_artifact(tmp_path / "store"), place)
    assert not dead.exists()
    assert living.is_dir()
    assert users.is_dir()
    assert manifest.is_intact(place)


def test_many_installs_at_once_to_one_place(tmp_path):
    artifacts = [
        _artifact(tmp_path / "store", key, text) for key, text in ((KEY, "1"), (OTHER, "2"))
    ]
    start, failed = threading.Barrier(8), []

    def one(number):
        try:
            start.wait()
            for turn in range(40):
                install(artifacts[(number + turn) % 2], _place(tmp_path))
        except Exception as error:  # told by the test, not by the thread
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [repr(error.__cause__ or error) for error in failed] == []
    assert manifest.is_intact(_place(tmp_path))
    assert [p.name for p in _place(tmp_path).parent.iterdir()] == ["b"]


@pytest.mark.parametrize("torn", ["half", "zeros", "empty"])
@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "sub/f"])
def test_a_bundle_torn_by_a_power_cut_is_replaced(tmp_path, torn, name):
    artifact = _artifact(tmp_path / "store")
    place = install(artifact, _place(tmp_path))
    before, content = contents(place), (place / name).read_bytes()
    torn_to = {"half": content[: len(content) // 2], "zeros": bytes(len(content)), "empty": b""}
    (place / name).write_bytes(torn_to[torn])
    assert contents(install(artifact, place)) == before


def test_a_folder_of_the_users_is_not_taken_for_a_torn_bundle(tmp_path):
    artifact = _artifact(tmp_path / "store")
    place = install(artifact, _place(tmp_path))
    (place / "manifest.json").write_text("{")
    (place / "thesis.tex").write_text("three years")
    with pytest.raises(KDError) as caught:
        install(artifact, place)
    assert caught.value.code == "output-not-bundle"
    assert "thesis.tex" in caught.value.message
    (place / "thesis.tex").rename(tmp_path / "thesis.tex")  # the fix: move it away
    assert manifest.is_intact(install(artifact, place))


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk-full"), (errno.EROFS, "output-unwritable")]
)
@pytest.mark.parametrize("call", ["fsync", "mkdir"])
def test_a_disk_that_takes_no_bundle(tmp_path, monkeypatch, number, code, call):
    old = _artifact(tmp_path / "store")
    new = _artifact(tmp_path / "store", OTHER, "two")
    place = install(old, _place(tmp_path))
    before = contents(place)

    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(KDError) as caught:
            install(new, place)
    assert caught.value.code == code
    assert contents(place) == before
    assert [p.name for p in place.parent.iterdir()] == ["b"]
    assert contents(install(new, place)) != before
