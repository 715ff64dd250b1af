"""Places of this machine, the grammar of `--via`, and a worker's process that misbehaves."""

import io
import os
import signal
import sys
import threading
import time
from pathlib import Path
from queue import Empty

import numpy as np
import pytest
from hostile_place import HELLO, Clock, reply

from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.remote import bootstrap, client
from kdcompile.remote.agent.errors import FIXES
from kdcompile.remote.agent.messages import read
from kdcompile.remote.archive import packed
from kdcompile.remote.bootstrap import HUNG_UP
from kdcompile.remote.errors import TOOLS, worker_error
from kdcompile.remote.open import open_place
from kdcompile.remote.process import Answers, Gone, WorkerProcess
from kdcompile.remote.ssh import parse_ssh

BACKEND = "onnxruntime"


@pytest.fixture(autouse=True)
def _work(monkeypatch, tmp_path):
    monkeypatch.setenv("KDCOMPILE_CACHE", str(tmp_path / "work"))


def failure(action, *values, **options):
    with pytest.raises(KDError) as error:
        action(*values, **options)
    assert error.value.fix
    return error.value


def agent_is(monkeypatch, source):
    """The agent is a program of this source."""
    made = packed({"__main__.py": source.decode()})
    monkeypatch.setattr(client, "agent_zip", lambda: made)


@pytest.mark.parametrize("via", [None, f"python:{sys.executable}"])
def test_round_trip(via, onnx_files, tmp_path):
    image = np.random.default_rng(3).standard_normal((1, 3, 16, 24)).astype(np.float32)
    student = onnx_files()["fp32"]
    with open_place(via, BACKEND) as place:
        assert place.label == (via or "this machine")
        assert Path(place.work) == tmp_path / "work"
        there = place.put(student)
        assert place.put(student) == there
        engine = place.path("student.engine")
        place.call("build", onnx=there, engine=engine, precision="fp32")
        place.call("load", path=engine)
        outputs = place.run({"image": image})
        np.testing.assert_allclose(outputs["density"], open_session(student)(image), rtol=1e-5)
        assert place.time({"image": image}, iterations=3)["wall"]["n"] == 3
        place.get(engine, tmp_path / "back")
        error = failure(place.call, "run", inputs="x", outputs="y", name="other")
        assert (error.code, error.where) == ("not-loaded", place.label)
    assert (tmp_path / "back").read_bytes() == student.read_bytes()
    assert not list((tmp_path / "work").glob("run-*"))
    assert threading.active_count() == 1
    assert (tmp_path / "work").stat().st_mode & 0o077 == 0


def test_put_outlives_the_file_and_mends_a_damaged_copy(tmp_path):
    local = tmp_path / "file"
    local.write_bytes(b"content")
    with open_place(None, BACKEND) as place:
        there = Path(place.put(local))
        there.write_bytes(b"damaged")
        assert place.put(local) == str(there)
        local.unlink()
        assert there.read_bytes() == b"content"
        assert failure(place.get, place.path("no"), local).code == "file-absent"


def test_a_full_disk_is_noticed_before(monkeypatch, tmp_path):
    monkeypatch.setattr(client, "RESERVE_MB", 1e9)
    (tmp_path / "file").write_bytes(b"content")
    with open_place(None, BACKEND) as place:
        error = failure(place.put, tmp_path / "file")
    assert error.code == "board-disk-full"
    assert "MiB are free" in error.message


def test_only_plain_names_are_in_the_work_folder():
    with open_place(None, BACKEND) as place:
        for name in ("", "..", ".hidden", "-flag", "a/b", "a b", "a;b", "$(b)", "a\nb", "a'b"):
            assert failure(place.path, name).code == "via-path"


def test_a_worker_that_dies_says_its_last_words(monkeypatch):
    dies = b"import os, sys; sys.stderr.write('out of memory\\n'); sys.stderr.flush(); os.abort()"
    agent_is(monkeypatch, dies)
    error = failure(open_place, None, BACKEND)
    assert error.code == "worker-died"
    assert "by signal 6: " in error.message
    assert "out of memory" in error.message


def test_a_worker_that_is_silent_is_stopped(monkeypatch):
    slow = b"import sys, time\nsys.stdin.buffer.read(1); time.sleep(60)"
    agent_is(monkeypatch, slow)
    monkeypatch.setattr(client, "TIMEOUT_S", 0.2)
    error = failure(open_place, None, BACKEND)
    assert error.code == "worker-timeout"
    assert "hello in 0.2 s" in error.message


SLOW = b"""
import sys, time
sys.stdin.buffer.read(1)
sys.stdout.buffer.write(%r)
sys.stdout.flush()
time.sleep(600)
""" % reply(HELLO, 1)
INTERRUPTS = b"""
import os, signal, sys, time
sys.stdin.buffer.read1(1000)
sys.stdout.buffer.write(%r)
sys.stdout.flush()
sys.stdin.buffer.read1(1000)
os.kill(os.getppid(), signal.SIGALRM)
time.sleep(600)
""" % reply(HELLO, 1)


def test_an_interruption_ends_the_worker(monkeypatch):
    """It comes while the request is under way: the worker itself sends it when it has read that."""
    agent_is(monkeypatch, INTERRUPTS)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with open_place(None, BACKEND) as place:
            with pytest.raises(KeyboardInterrupt):
                place.call("build")
            assert failure(place.call, "hello").code == "worker-stopped"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_no_wait_for_an_answer_is_long():
    """A signal that comes just before a wait is handled after it, so Ctrl-C would be lost in it."""
    clock, waits = Clock(), []

    def get(timeout):
        waits.append(timeout)
        clock.now += timeout
        raise Empty

    answers = Answers(clock)
    answers._waiting.get = get
    with pytest.raises(TimeoutError):
        answers.next(1, 60.2)
    assert sum(waits) == pytest.approx(60.2)
    assert max(waits) <= 1.0


def test_a_busy_worker_ends_with_its_connection(monkeypatch):
    agent_is(monkeypatch, SLOW)
    process = WorkerProcess([sys.executable, *client.boot_command(BACKEND)])
    process.send(client.boot_source())
    assert process.answer(20)["ok"]["work"]
    process.send(client.agent_zip())
    assert process.ask({"op": "hello"}, 20) == {"id": 1, "ok": HELLO}
    process.close()
    with pytest.raises(Gone) as gone:
        process.answer(20)
    assert gone.value.status == HUNG_UP


def test_modules_of_the_current_folder_are_not_imported(monkeypatch, tmp_path):
    for name in ("json", "numpy", "select"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    with open_place(None, BACKEND) as place:
        assert place.about["numpy"] == np.__version__


def test_after_a_death_every_call_says_so(monkeypatch):
    agent_is(monkeypatch, SLOW)  # it never answers a second time
    with open_place(None, BACKEND) as place:
        assert failure(place.call, "build", timeout_s=0.05).code == "worker-timeout"
        assert failure(place.call, "hello").code == "worker-timeout"


@pytest.mark.parametrize("path", ["no/such/python", "text", "program", "nonesuch-python"])
def test_no_such_interpreter(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("text")
    (tmp_path / "program").write_text("text")
    (tmp_path / "program").chmod(0o755)
    given = f"./{path}" if (tmp_path / path).exists() else path
    assert failure(open_place, f"python:{given}", BACKEND).code == "via-python"


@pytest.mark.parametrize(
    ("text", "said"),
    [("exit 0", "ended with status 0"), ("echo 'bad option -c' >&2; exit 2", ": bad option -c")],
)
def test_a_program_that_is_no_python(text, said, tmp_path):
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    error = failure(open_place, f"python:{program}", BACKEND)
    assert error.code == "via-python"
    assert said in error.message
    assert "path of an interpreter" in error.fix


def test_a_python_that_is_too_old(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 6, 9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error = failure(open_place, None, BACKEND)
    assert isinstance(error, ToolMissingError)
    assert (error.code, "3.6.9" in error.message) == ("python-old", True)


def test_a_user_without_a_home_is_told_so_and_gets_no_folder_called_tilde(
    monkeypatch, tmp_path, capfdbinary
):
    monkeypatch.delenv("KDCOMPILE_CACHE")
    monkeypatch.setattr(bootstrap.os.path, "expanduser", lambda path: path)  # as it then does
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leave:
        bootstrap.main()
    told = read(io.BytesIO(capfdbinary.readouterr().out))["error"]
    assert (leave.value.code, told["code"]) == (4, "work-folder")
    assert "KDCOMPILE_CACHE" in told["fix"]
    assert list(tmp_path.iterdir()) == []


def test_inputs_of_sessions_that_were_killed_go_after_a_day(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    kept = ["run-young-in.npz", "student.engine", "run-old.txt"]
    for name in (*kept, "run-old-in.npz", "run-old-out.npz"):
        Path(name).write_text("x")
        if "young" not in name:
            day_ago = time.time() - 86_400
            os.utime(name, (day_ago - 60, day_ago - 60))
    bootstrap.sweep()
    assert sorted(os.listdir()) == sorted(kept)


def test_a_work_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDCOMPILE_CACHE", str(tmp_path / "file" / "work"))
    assert failure(open_place, None, BACKEND).code == "work-folder"


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
def test_an_absent_backend_is_an_absent_tool(backend, monkeypatch, tmp_path):
    (tmp_path / f"{backend}.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error = failure(open_place, None, backend)
    assert isinstance(error, ToolMissingError)
    assert (error.code, error.where) == (f"{backend}-missing", "this machine")


def test_absent_tools_are_codes_of_the_worker():
    assert TOOLS - {"backend-missing", "python-old"} <= set(FIXES)
    assert {code for code in FIXES if code.endswith("-missing")} - TOOLS <= {
        "input-missing",
        "profile-missing",
    }


def test_a_full_disk_under_the_worker_is_named():
    error = worker_error({"code": "file", "message": "No space left on device: e", "fix": ""}, "x")
    assert (error.code, error.where) == ("board-disk-full", "x")
    assert "free some there" in error.fix
    other = worker_error({"code": "file", "message": "No such file: e", "fix": "look"}, "x")
    assert (other.code, other.fix) == ("file", "look")


def test_what_stands_before_the_first_answer_is_skipped():
    begin = "import sys; w = sys.stdout.buffer.write; w(b'Welcome\\n{}\\0kd\\0'); "
    process = WorkerProcess([sys.executable, "-c", f"{begin}w({reply({}, None)!r})"])
    assert process.answer(20) == {"id": None, "ok": {}}
    with pytest.raises(Gone) as gone:
        process.answer(20)
    assert gone.value.status == 0
    process.close()


def test_standard_error_is_kept_within_bounds():
    code = "import sys\nfor i in range(9999): sys.stderr.write(str(i) * 1000 + '\\n')\nsys.exit(3)"
    process = WorkerProcess([sys.executable, "-c", code])
    with pytest.raises(Gone) as gone:
        process.answer(20)
    assert gone.value.status == 3
    assert len(gone.value.lines) == 20
    assert gone.value.lines[-1] == ("9998" * 1000)[:500]
    process.close()


def test_addresses():
    found = parse_ssh("ssh://me@jetson-1.lan:2222?python=/opt/py/bin/python3.10")
    assert (found.user, found.host, found.port) == ("me", "jetson-1.lan", 2222)
    assert found.python == "/opt/py/bin/python3.10"
    assert found.label == "ssh://me@jetson-1.lan:2222"
    assert found.destination == "-p 2222 me@jetson-1.lan"
    plain = parse_ssh("ssh://board")
    assert (plain.user, plain.port, plain.python) == (None, None, "python3")
    assert (plain.label, plain.destination) == ("ssh://board", "board")
    six = parse_ssh("ssh://[fe80::1%eth0]:22")
    assert (six.host, six.label) == ("fe80::1%eth0", "ssh://[fe80::1%eth0]:22")


@pytest.mark.parametrize(
    "via",
    [
        "",
        "python:",
        "docker:x",
        "ssh:board",
        "ssh://",
        "ssh:// board",
        "ssh://board/home",
        "ssh://board#x",
        "ssh://board:0",
        "ssh://board:99999",
        "ssh://board:22:22",
        "ssh://board:2x",
        "ssh://-oProxyCommand=touch${IFS}MARK",
        "ssh://-oProxyCommand=id@board",
        "ssh://a;touch MARK;@board",
        "ssh://board;touch MARK",
        "ssh://$(touch MARK)",
        "ssh://`touch MARK`",
        "ssh://bo'ard",
        'ssh://bo"ard',
        "ssh://board\nHost",
        "ssh://me@you@board",
        "ssh://board?python=-c",
        "ssh://board?python=python3;touch MARK",
        "ssh://board?python=$(touch MARK)",
        "ssh://board?python=a b",
        "ssh://board?python=",
        "ssh://board?key=/k",
        "ssh://me:secret@board",
        "ssh://me:se@cret@board",
        "ssh://me:secret@@bo;ard",
        "ssh:me:secret@board",
        "ssh://[::1",
        "ssh://[board]",
    ],
)
def test_what_is_no_place_is_refused(via, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = failure(open_place, via, BACKEND)
    assert error.code == "via-invalid"
    assert "cret" not in str(error)
    assert list(tmp_path.iterdir()) == []
