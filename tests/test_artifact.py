"""The store: whole entries or none, made once, found by content."""

import json
import threading
import time

import pytest

from kdcompile.artifact import Hasher, Store, digest, replacing, write_text
from kdcompile.errors import KDError

KEY, OTHER = "a" * 64, "b" * 64


def _build(content="x"):
    def build(folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "file.txt").write_text(content)
        return {"answer": 42}

    return build


def test_made_once_then_found(tmp_path):
    store = Store(tmp_path)
    assert store.find("stage", KEY) is None
    made = store.make("stage", KEY, _build())
    assert made.meta == {"answer": 42}
    assert made.file("sub/file.txt").read_text() == "x"
    again = store.make("stage", KEY, _build("never built"))
    assert again.files == made.files
    with pytest.raises(KeyError, match="has no"):
        made.file("absent")


def test_a_build_that_fails_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def broken(folder):
        (folder / "half").write_text("half")
        raise KDError("broken", "on purpose")

    with pytest.raises(KDError):
        store.make("stage", KEY, broken)
    assert store.find("stage", KEY) is None
    assert store.make("stage", KEY, _build()).meta == {"answer": 42}


@pytest.mark.parametrize("spoil", ["edit", "remove", "record"])
def test_a_spoilt_entry_is_not_found_and_made_again(tmp_path, spoil):
    store = Store(tmp_path)
    path = store.make("stage", KEY, _build()).path
    if spoil == "edit":
        (path / "sub" / "file.txt").chmod(0o644)
        (path / "sub" / "file.txt").write_text("other")
    elif spoil == "remove":
        (path / "sub" / "file.txt").unlink()
    else:
        (path / "artifact.json").chmod(0o644)
        (path / "artifact.json").write_text('{"key"')
    assert store.find("stage", KEY) is None
    assert store.make("stage", KEY, _build("new")).file("sub/file.txt").read_text() == "new"


def test_two_builds_of_one_key_build_once(tmp_path):
    built = []

    def slow(folder):
        built.append(folder)
        time.sleep(0.2)
        return _build()(folder)

    threads = [
        threading.Thread(target=Store(tmp_path).make, args=("stage", KEY, slow)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KDError) as error:
        Store(tmp_path / "file").make("stage", KEY, _build())
    assert error.value.code == "store-readonly"


def test_prune_keeps_what_is_named(tmp_path):
    store = Store(tmp_path)
    kept = store.make("stage", KEY, _build())
    gone = store.make("stage", OTHER, _build())
    store.work("stage", OTHER)
    removed = store.prune([kept])
    assert gone.path in removed
    assert len(removed) == 2
    assert store.find("stage", KEY) is not None


def test_hasher_follows_content(tmp_path):
    path, cache = tmp_path / "f", tmp_path / "cache.json"
    path.write_text("one")
    first = Hasher(cache)
    value = first.file(path)
    first.save()
    assert Hasher(cache).file(path) == value
    path.write_text("two!")
    assert Hasher(cache).file(path) != value
    cache.write_text("{torn")
    assert Hasher(cache).file(path) != value


def test_digest_ignores_key_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_write_text_replaces_whole(tmp_path):
    write_text(tmp_path / "f", "old")
    write_text(tmp_path / "f", json.dumps("new"))
    assert (tmp_path / "f").read_text() == '"new"'
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")

    def torn():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        torn()
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
