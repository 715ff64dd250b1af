"""The store: whole entries or none, made once, found by content."""

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import filelock
import pytest

from kdcompile.core import files
from kdcompile.core.disk import disk_error
from kdcompile.core.errors import KDError
from kdcompile.core.files import (
    Hasher,
    is_sealed,
    replacing,
    scratch,
    seal,
    sweep_files,
    write_text,
)
from kdcompile.core.locks import if_free, locked
from kdcompile.core.store import Store, digest

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


def _edit(path):
    (path / "sub" / "file.txt").chmod(0o644)
    (path / "sub" / "file.txt").write_text("other")


def _edit_and_put_the_time_back(path):
    file = path / "sub" / "file.txt"
    times = file.stat()
    file.chmod(0o644)
    file.write_text("y")  # as long as it was
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _rewrite(change):
    def spoil(path):
        record = path / "artifact.json"
        record.chmod(0o644)
        record.write_bytes(change(record.read_bytes()))

    return spoil


SPOILT = {
    "a file edited": (_edit, "sub/file.txt is not as it was written"),
    "its time put back": (_edit_and_put_the_time_back, "sub/file.txt is not as it was written"),
    "a file removed": (lambda path: (path / "sub" / "file.txt").unlink(), "file.txt is missing"),
    "no record": (lambda path: (path / "artifact.json").unlink(), "artifact.json is missing"),
    "a torn record": (_rewrite(lambda b: b[: len(b) // 2]), "artifact.json cannot be read"),
    "a record of zeros": (_rewrite(lambda b: bytes(len(b))), "artifact.json cannot be read"),
    "an empty record": (_rewrite(lambda b: b""), "artifact.json cannot be read"),
    "a record of another form": (_rewrite(lambda b: b"[1]"), "artifact.json cannot be read"),
    "a number edited": (_rewrite(lambda b: b.replace(b"42", b"43")), "is not as it was written"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_entry_is_not_found_made_again_and_said(tmp_path, caplog, name):
    spoil, why = SPOILT[name]
    store = Store(tmp_path)
    spoil(store.make("stage", KEY, _build()).path)
    store = Store(tmp_path)  # the next command's
    assert store.find("stage", KEY) is None
    assert store.make("stage", KEY, _build("new")).file("sub/file.txt").read_text() == "new"
    assert "stage: the store's entry is damaged and is made again" in caplog.text
    assert why in caplog.text
    assert store.find("stage", KEY).meta == {"answer": 42}


class _RustError(Exception):
    """Stands for safetensors' error, which has the system's words and no number."""


FULL = {
    "write": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/where/it/was"),
    "file size": OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    "safetensors": _RustError("Error while serializing: I/O error: x (os error 28)"),
    "torch": RuntimeError("PytorchStreamWriter failed: No space left on device"),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path, name):
    store, error = Store(tmp_path), FULL[name]
    kept = store.make("stage", OTHER, _build())

    def broken(folder):
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(KDError) as caught:
        store.make("stage", KEY, broken)
    assert caught.value.code == "disk-full"
    assert caught.value.where
    assert [p.name for p in (tmp_path / "stage").iterdir()] == [kept.path.name]
    assert store.find("stage", OTHER) is not None
    assert store.make("stage", KEY, _build()).meta == {"answer": 42}


BROKEN = {"fsync": os, "rename": os, "replace": os, "copyfile": shutil, "unlink": os}


@pytest.mark.parametrize("call", [*BROKEN, "write"])
def test_a_disk_that_fails_is_said_with_its_place(tmp_path, monkeypatch, call):
    def fail(*args, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # no file is named

    def build(folder):
        write_text(folder / "a.txt", "a")
        shutil.copyfile(folder / "a.txt", folder / "b.txt")
        (folder / "b.txt").unlink()
        return {}

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(Path, "write_text", fail)
        else:
            patch.setattr(BROKEN[call], call, fail)
        with pytest.raises(KDError) as caught:
            Store(tmp_path).make("stage", KEY, build)
    assert caught.value.code == "disk-failed"
    assert str(tmp_path) in caught.value.where
    assert "Input/output error" in caught.value.message
    assert "dmesg" in caught.value.fix
    assert Store(tmp_path).make("stage", KEY, build).meta == {}


@pytest.mark.parametrize("lasting", [False, True])
def test_an_entry_that_cannot_be_read_back_is_the_disks_fault(tmp_path, monkeypatch, lasting):
    looked, look = [], Path.stat

    def fail(path, **options):
        if path.name == "file.txt" and path.parent.parent.name == KEY[:24]:
            looked.append(path)
            if lasting or len(looked) == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return look(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", fail)
        with pytest.raises(KDError) as caught:
            Store(tmp_path).make("stage", KEY, _build())
    assert looked
    assert caught.value.code == "disk-failed"
    assert "cannot be read back" in caught.value.message
    assert Store(tmp_path).make("stage", KEY, _build()).meta == {"answer": 42}


def test_a_read_only_disk_under_safetensors_is_said():
    error = _RustError("Error while serializing: I/O error: Read-only file system (os error 30)")
    found = disk_error(error)
    assert (found.code, found.message.endswith("Read-only file system")) == ("not-permitted", True)


def test_a_file_that_could_not_be_written_is_named(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"a\.json"):
        write_text(tmp_path / "a.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_an_error_of_a_library_is_said(tmp_path):
    def broken(folder):
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise RuntimeError("cannot serialise") from error

    with pytest.raises(KDError) as caught:
        Store(tmp_path).make("stage", KEY, broken)
    assert caught.value.code == "disk-full"


def test_other_errors_are_not_taken_for_the_disks(tmp_path):
    def broken(folder):
        raise ValueError("28")

    with pytest.raises(ValueError, match="28"):
        Store(tmp_path).make("stage", KEY, broken)
    assert list((tmp_path / "stage").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EROFS, "store-readonly"), (errno.ENOSPC, "disk-full")]
)
def test_no_folder_can_be_made(tmp_path, monkeypatch, number, code):
    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", refuse)
    store = Store(tmp_path / "store")
    for ask in (lambda: store.make("stage", KEY, _build()), lambda: store.work("stage", KEY)):
        with pytest.raises(KDError) as caught:
            ask()
        assert caught.value.code == code
    store.hasher.file(Path(__file__))
    store.save_hashes()  # what can be done without is done without
    store.sweep()


def test_what_killed_processes_left_is_swept(tmp_path):
    store = Store(tmp_path)
    made = store.make("stage", KEY, _build())
    store.work("stage", KEY)  # of a finished step
    going_on = store.work("stage", OTHER)
    (going_on / "checkpoint.pt").write_text("worth an hour")
    half = made.path.with_name(f".{OTHER[:24]}.making")
    half.mkdir()
    (tmp_path / ".hashes.json.1.tmp").write_text("{")
    locks = tmp_path / "locks"
    for name in ("export-1", "export-2"):
        (locks / f"{name}.owner").write_text("process 1")
    with locked(locks / "export-2", "makes export"):
        store.sweep()
        assert [path.name for path in locks.glob("*.owner")] == ["export-2.owner"]
    store.hasher.file(Path(__file__))
    store.save_hashes()
    assert not half.exists()
    assert [p.name for p in (tmp_path / "work").iterdir()] == [going_on.name]
    assert list(tmp_path.glob(".*")) == []
    assert store.find("stage", KEY) is not None


def test_what_another_build_makes_is_neither_swept_nor_pruned(tmp_path):
    seen = []

    def build(folder):
        Store(tmp_path).sweep()
        with pytest.raises(KDError) as caught:
            Store(tmp_path).prune([])
        seen.extend([folder.is_dir(), caught.value])
        return _build()(folder)

    Store(tmp_path).make("stage", KEY, build)
    there, error = seen
    assert there
    assert error.code == "store-busy"
    assert f"process {os.getpid()}" in error.message
    Store(tmp_path).prune([])  # the fix: wait for it
    assert Store(tmp_path).find("stage", KEY) is None


def test_who_waits_says_for_whom(tmp_path, caplog):
    waiting, threads = threading.Event(), []

    class Listener(logging.Handler):
        def emit(self, record):
            if "waiting for" in record.getMessage():
                waiting.set()

    def build(folder):
        second = threading.Thread(target=Store(tmp_path).make, args=("stage", KEY, None))
        threads.append(second)
        second.start()
        assert waiting.wait(60)
        return _build()(folder)

    listener = Listener()
    logging.getLogger("kdcompile").addHandler(listener)
    try:
        Store(tmp_path).make("stage", KEY, build)
        threads[0].join()
    finally:
        logging.getLogger("kdcompile").removeHandler(listener)
    assert f"waiting for process {os.getpid()} on" in caplog.text
    assert "makes stage" in caplog.text
    assert list((tmp_path / "locks").glob("*.owner")) == []


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
    for spoilt in (
        "{torn",
        "[]",
        "",
        "\0\0",
        json.dumps({str(path): [1]}),
        json.dumps({str(path): 1}),
    ):
        cache.write_text(spoilt)
        assert Hasher(cache).file(path) != value


def test_a_sealed_file_is_known_again(tmp_path):
    path = tmp_path / "f"
    path.write_text("one")
    assert not is_sealed(path)
    seal(path)
    assert is_sealed(path)
    path.write_text("two")
    assert not is_sealed(path)
    path.write_text("one")
    (tmp_path / "f.sha256").write_bytes(b"\xff")
    assert not is_sealed(path)


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
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused_and_not_waited_for(number, tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(number, os.strerror(number))

    def never(lock, *asked, **options):
        raise AssertionError("filelock would wait for ever here")

    Store(tmp_path).make("stage", OTHER, _build())  # its locks stay there
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(filelock.FileLock, "acquire", never)
    with pytest.raises(KDError) as error:
        Store(tmp_path).make("stage", KEY, _build())
    assert (error.value.code, error.value.where) == ("store-locks", str(tmp_path / "locks"))
    assert os.strerror(number) in error.value.message
    assert "local disk" in error.value.fix
    with pytest.raises(KDError), if_free(tmp_path / "locks" / f"stage-{OTHER[:24]}"):
        raise AssertionError("it is not free")
    Store(tmp_path).save_hashes()  # only a slower start


def test_another_error_of_a_lock_is_no_lack_of_locks(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(KDError) as error:
        Store(tmp_path).make("stage", KEY, _build())
    assert error.value.code == "disk-failed"


KILLED = """
import os, signal, sys
from pathlib import Path
from kdcompile.core.files import replacing
writing = [replacing(Path(name)) for name in sys.argv[1:]]
for one in writing:
    one.__enter__().write_text("half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_files_of_killed_processes_are_swept_and_no_others(tmp_path):
    store, work = Store(tmp_path / "store"), tmp_path / "store/work/distill-1/deep"
    work.mkdir(parents=True)
    names = [store.root / "images.json", store.root / "splits.json", work / "a\nb.pt"]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, names)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = [path for path in store.root.rglob("*.tmp") if path.read_text() == "half"]
    assert len(left) == 3
    (tmp_path / "aim").write_text("mine")
    users = [store.root / name for name in (".notes.tmp", ".a.b.tmp", "a.0123456789abcdef.tmp")]
    for path in users:
        path.write_text("mine")
    link = store.root / ".images.json.0123456789abcdef.tmp"
    link.symlink_to(tmp_path / "aim")
    with replacing(store.root / "images.json") as going_on:
        store.sweep()
        assert going_on.exists()
        assert not any(path.exists() for path in left)
        going_on.write_text("whole")
    assert (store.root / "images.json").read_text() == "whole"
    assert link.is_symlink()
    assert all(path.read_text() == "mine" for path in users)


def test_where_no_system_tells_who_has_a_file_it_is_old_before_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "folder_if_free", lambda path: nullcontext(None))
    path = tmp_path / ".a.0123456789abcdef.tmp"
    path.write_text("half")
    sweep_files(tmp_path)
    assert path.exists()
    os.utime(path, (0, time.time() - files.ABANDONED_S - 60))
    sweep_files(tmp_path)
    assert not path.exists()


def test_a_temporary_file_is_swept_before_it_is_held_and_made_anew(tmp_path, monkeypatch):
    held = files.folder_if_free
    taken = []

    def late(path):
        if not taken:
            taken.append(path)
            path.unlink()
        return held(path)

    monkeypatch.setattr(files, "folder_if_free", late)
    with replacing(tmp_path / "a") as temporary:
        assert temporary != taken[0]
        temporary.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


LEFT = """
import os, signal
from kdcompile.core.files import scratch
work = scratch()
(work.__enter__() / "network.onnx").write_text("half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_scratch_folders_of_killed_processes_are_swept_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LEFT], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    (tmp_path / "kdcompile-notes").mkdir()
    files._swept.add(tmp_path)  # the store itself does it
    with scratch() as going_on:
        Store(tmp_path / "store").sweep()
        assert (left.exists(), going_on.is_dir()) == (False, True)
    assert [path.name for path in tmp_path.iterdir()] == ["kdcompile-notes"]


def test_temporary_folders_lie_below_the_store_and_its_next_command_sweeps_them(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "_places", [])
    monkeypatch.setattr(files, "_swept", set())
    store = Store(tmp_path / "store")
    script = LEFT.replace("work = ", f"scratch_below(Path({str(store.temporary)!r}))\nwork = ")
    script = f"from kdcompile.core.files import scratch_below\nfrom pathlib import Path\n{script}"
    subprocess.run([sys.executable, "-c", script], check=False)
    (left,) = store.temporary.iterdir()
    files.scratch_below(store.temporary)
    with scratch() as first:
        assert [path.name for path in store.temporary.iterdir()] == [first.name] != [left.name]
        assert store.prune(()) == []  # of another process that cleans the store
        assert first.is_dir()


def test_a_store_that_takes_nothing_leaves_temporary_folders_where_the_system_has_them(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(files, "_places", [Path(os.devnull) / "tmp"])
    with scratch() as place:
        assert place.parent == tmp_path


def test_the_first_file_of_a_process_sweeps_what_a_killed_one_left_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_swept", set())
    left = tmp_path / f".a.png.{'0' * 16}.tmp"
    left.write_text("half")
    with replacing(tmp_path / "b.png") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]
