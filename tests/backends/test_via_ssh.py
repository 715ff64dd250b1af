"""Boards over SSH, against a real server on the loopback; ONNX Runtime plays the engine."""

import json
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sshd import command_line, descendants, running_sshd

from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.latency.frame import measure_frame
from kdcompile.latency.frame_sample import Shipped, pictures_of
from kdcompile.latency.settings import Effort
from kdcompile.remote import client, ssh
from kdcompile.remote.errors import not_started
from kdcompile.remote.open import open_place

BACKEND = "onnxruntime"
MIB = 1 << 20
AWKWARD = "a \"b\" 'c'; touch MARK $(touch MARK) [1]*?.onnx"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_sshd(tmp_path_factory.mktemp("sshd")) as made:
        yield made


@pytest.fixture
def board(server, monkeypatch, tmp_path):
    monkeypatch.setenv("KDCOMPILE_SSH_CONFIG", str(server.config))
    monkeypatch.chdir(tmp_path)
    return server


@pytest.fixture
def sftp(monkeypatch, tmp_path):
    """`sftp` as the PATH has it, noted in a log, and at a speed where one is written."""
    folder, log, speed = tmp_path / "bin", tmp_path / "sftp.log", tmp_path / "speed"
    folder.mkdir()
    log.write_text("")
    wrapper = folder / "sftp"
    wrapper.write_text(
        "#!/bin/bash\n"
        f'echo "args $*" >> {log}\n'
        f"limit=(); [ -f {speed} ] && limit=(-l $(cat {speed}))\n"
        f'exec {shutil.which("sftp")} "${{limit[@]}}" "$@" < <(tee -a {log})\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log, speed


def refused(via, backend=BACKEND):
    with pytest.raises(KDError) as error:
        open_place(via, backend).close()
    assert error.value.fix
    return error.value


def file_of(path, size, seed=0):
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


def test_round_trip(board, onnx_files, tmp_path):
    image = np.random.default_rng(3).standard_normal((1, 3, 16, 24)).astype(np.float32)
    student = tmp_path / AWKWARD.replace("/", "")
    shutil.copyfile(onnx_files()["fp32"], student)
    with open_place(board.via(), BACKEND) as place:
        assert place.label == board.via().partition("?")[0]
        assert place.about["backend"] == BACKEND
        assert place.work == str(board.home / ".cache" / "kdcompile")
        there = place.path("student.engine")
        built = place.call("build", onnx=place.put(student), engine=there, precision="fp32")
        assert built["bytes"] == student.stat().st_size
        place.call("load", path=there, name="student")
        outputs = place.run({"image": image}, "student")
        np.testing.assert_allclose(outputs["density"], open_session(student)(image), rtol=1e-5)
        timed = place.time({"image": image}, "student", iterations=3, warmup=1)
        assert timed["wall"]["n"] == 3
        back = tmp_path / f"back {AWKWARD}"
        place.get(there, back)
        assert back.read_bytes() == student.read_bytes()
        assert list(Path(place.work).glob("run-*"))
    assert not list(Path(place.work).glob("run-*")), "inputs and outputs are removed"
    assert not list(tmp_path.rglob("MARK"))
    assert not list(board.home.rglob("MARK"))


def test_a_longer_file_than_the_board_said_is_not_copied(board, tmp_path, monkeypatch):
    local = file_of(tmp_path / "one", 300_000, seed=1)
    with open_place(board.via(), BACKEND) as place:
        there = place.put(local)
        place._fetch(there, tmp_path / "two", 300_000)
        assert (tmp_path / "two").read_bytes() == local.read_bytes()
        say = place.call
        less = {"exists": True, "bytes": 1000, "sha256": "0" * 64}
        monkeypatch.setattr(place, "call", lambda op, **v: less if op == "stat" else say(op, **v))
        with pytest.raises(KDError) as error:
            place.get(there, tmp_path / "three")
        assert (error.value.code, "more than 1000 bytes" in error.value.message) == (
            "board-answer",
            True,
        )
    assert all(path.stat().st_size <= 2000 for path in tmp_path.glob(".three*"))


def test_a_file_is_copied_once(board, sftp, tmp_path):
    log, _ = sftp
    local = file_of(tmp_path / "one", 1000, seed=1)
    with open_place(board.via(), BACKEND) as place:
        there = place.put(local)
        assert Path(there).read_bytes() == local.read_bytes()
        copied = log.read_text()
        assert "put local" in copied
        assert place.put(shutil.copyfile(local, tmp_path / "two")) == there
    with open_place(board.via(), BACKEND) as place:
        assert place.put(local) == there
        assert log.read_text() == copied
        Path(there).write_bytes(b"damaged")
        assert place.put(local) == there
        assert Path(there).read_bytes() == local.read_bytes()


def interrupt(action, part, stop):
    """Start a copy, stop it once a part has arrived, and give its error."""
    with ThreadPoolExecutor(1) as pool:
        copy = pool.submit(action)
        while True:
            found = list(part[0].glob(part[1]))
            if (found and found[0].stat().st_size) or copy.done():
                break
            time.sleep(0.005)
        stop()
        error = copy.exception()
    assert isinstance(error, KDError), error
    return error, found[0].stat().st_size


def test_put_goes_on_after_the_board_was_lost(board, sftp, tmp_path):
    log, speed = sftp
    local = file_of(tmp_path / "big", 4 * MIB, seed=2)
    speed.write_text("800")  # kbit/s: 40 seconds for the whole
    place = open_place(board.via(), BACKEND)
    blobs = Path(place.work) / "blobs"
    lost, arrived = interrupt(lambda: place.put(local), (blobs, "*.part"), board.kill_connections)
    assert (lost.code, lost.where) == ("board-lost", place.label)
    assert "same command again" in lost.fix
    assert 0 < arrived < local.stat().st_size
    with pytest.raises(KDError, match="broke"):
        place.call("hello")
    place.close()
    speed.unlink()
    with open_place(board.via(), BACKEND) as again:
        there = again.put(local)
    assert "reput local" in log.read_text()
    assert Path(there).read_bytes() == local.read_bytes()
    assert not list(blobs.glob("*.part"))


def test_get_goes_on_after_sftp_was_stopped(board, sftp, tmp_path):
    log, speed = sftp
    local = tmp_path / "engine"
    local.write_bytes(b"old")
    with open_place(board.via(), BACKEND) as place:
        there = file_of(Path(place.path("big.engine")), 4 * MIB, seed=3)
        speed.write_text("800")

        def stop():
            (pid,) = (p for p in descendants(os.getpid()) if b"-l\x00800" in command_line(p))
            os.kill(pid, 9)

        stopped, arrived = interrupt(
            lambda: place.get(str(there), local), (tmp_path, ".engine.*.part"), stop
        )
        assert stopped.code == "copy-failed"
        assert 0 < arrived < 4 * MIB
        assert local.read_bytes() == b"old"
        speed.unlink()
        place.get(str(there), local)
    assert "reget" in log.read_text()
    assert local.read_bytes() == there.read_bytes()
    assert not list(tmp_path.glob(".engine*"))


def test_a_damaged_part_is_dropped(board, tmp_path):
    local = file_of(tmp_path / "file", 2000, seed=4)
    with open_place(board.via(), BACKEND) as place:
        sha256 = client.file_sha256(local)
        part = Path(place.work) / "blobs" / f"{sha256}.part"
        part.write_bytes(b"x" * 1000)
        with pytest.raises(KDError) as error:
            place.put(local)
        assert error.value.code == "copy-damaged"
        part.write_bytes(b"y" * 3000)
        assert Path(place.put(local)).read_bytes() == local.read_bytes()
        with pytest.raises(KDError) as error:
            place.get(place.path("nothing"), tmp_path / "nothing")
        assert error.value.code == "file-absent"


def test_a_worker_that_is_killed_there_is_no_lost_board(board):
    with open_place(board.via(), BACKEND) as place:
        assert board.kill_workers() == 1
        with pytest.raises(KDError) as error:
            place.call("hello")
        assert error.value.code == "worker-died"


def test_a_proxy_that_does_not_start_is_unreachable_also_where_ssh_says_nothing_itself():
    """In one of five runs the client ends before it has a word for it."""
    lines = ["/bin/sh: 1: exec: no-such-program: not found"]
    assert not_started("b", "b", "python3", 255, lines).code == "ssh-unreachable"
    assert not_started("b", "b", "python3", 255, ["what is this"]).code == "ssh-failed"


@pytest.mark.parametrize(
    ("changes", "code", "fragment"),
    [
        ({"known": "no_hosts"}, "host-key", "is not known"),
        ({"known": "changed_hosts"}, "host-key", "another host key"),
        (
            {"known": "no_hosts", "extra": "  StrictHostKeyChecking no\n"},
            "host-key",
            "is not known",
        ),
        ({"key": "stranger_key"}, "ssh-refused", "refuses the login"),
        ({"extra": "  ProxyCommand no-such-program\n"}, "ssh-unreachable", "cannot be reached"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_refusals_say_what_to_do_and_nothing_private(
    board, monkeypatch, changes, code, fragment, caplog, capfd
):
    config = board.client("changed_config", **changes)
    monkeypatch.setenv("KDCOMPILE_SSH_CONFIG", str(config))
    with caplog.at_level(0):
        error = refused(board.via())
    assert error.code == code
    assert fragment in error.message
    assert f"ssh -p {board.port} " in error.fix or f"-copy-id -p {board.port} " in error.fix
    said = "".join((str(error), caplog.text, *capfd.readouterr()))
    for secret in (str(board.folder), "user_key", "stranger_key", "changed_config", "HOME="):
        assert secret not in said


def test_nobody_listens(board):
    error = refused("ssh://someone@127.0.0.1:1")
    assert error.code == "ssh-unreachable"


def test_no_python_there(board):
    error = refused(board.via(python="/opt/no-such/python3"))
    assert isinstance(error, ToolMissingError)
    assert error.code == "python-missing"
    assert "/opt/no-such/python3" in error.message
    assert f"{board.via().partition('?')[0]}?python=" in error.fix


def test_no_tensorrt_there(board, monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('no libnvinfer here')")
    extra = f"  SetEnv PYTHONPATH={tmp_path}\n"
    config = board.client("without_tensorrt", extra=extra)
    monkeypatch.setenv("KDCOMPILE_SSH_CONFIG", str(config))
    error = refused(board.via(), "tensorrt")
    assert isinstance(error, ToolMissingError)
    assert (error.code, error.exit_code) == ("tensorrt-missing", 4)
    assert "python3-libnvinfer" in error.fix


def test_no_openssh_here(board, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(board.via())
    assert isinstance(error, ToolMissingError)
    assert error.fix == "sudo apt install openssh-client"


def test_no_sftp_there(tmp_path, monkeypatch):
    with running_sshd(tmp_path / "bare", sftp="") as bare:
        monkeypatch.setenv("KDCOMPILE_SSH_CONFIG", str(bare.config))
        with (
            open_place(bare.via(), BACKEND) as place,
            pytest.raises(ToolMissingError) as error,
        ):
            place.put(file_of(tmp_path / "file", 10))
    assert error.value.code == "sftp-missing"


def test_a_copy_that_cannot_fit_is_refused_before_it_starts(board, sftp, monkeypatch, tmp_path):
    monkeypatch.setattr(client, "RESERVE_MB", 1e9)
    with open_place(board.via(), BACKEND) as place:
        with pytest.raises(KDError) as error:
            place.put(file_of(tmp_path / "file", 100, seed=5))
        assert error.value.code == "board-disk-full"
        assert "1000000000 MiB are needed" in error.value.message
    assert "put" not in sftp[0].read_text()


def test_a_disk_that_fills_up_meanwhile(board, monkeypatch, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount program")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system of 3 MiB can be mounted: {mounted.stderr.strip()}")
    try:
        config = board.client("small_disk", extra=f"  SetEnv KDCOMPILE_CACHE={disk}\n")
        monkeypatch.setenv("KDCOMPILE_SSH_CONFIG", str(config))
        monkeypatch.setattr(ssh.SshPlace, "_check_room", lambda self, size: None)
        local = file_of(tmp_path / "big", 4 * MIB, seed=6)
        with open_place(board.via(), BACKEND) as place:
            with pytest.raises(KDError) as error:
                place.put(local)
            assert error.value.code == "board-disk-full"
            assert "free some there" in error.value.fix
            (part,) = (disk / "blobs").glob("*.part")
            assert local.read_bytes().startswith(part.read_bytes())
            subprocess.run(["mount", "-o", "remount,size=6m", disk], check=True)
            assert Path(place.put(local)).read_bytes() == local.read_bytes()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_whole_frames_are_timed_there_and_no_image_stays(board, onnx_files, tmp_path):
    constants = Preprocess(3, (0.5,) * 3, (0.2,) * 3, (16, 24), (16, 24)).to_json()
    (tmp_path / "preprocess.json").write_text(json.dumps(constants))
    files = {"model.onnx": onnx_files()["fp32"], "preprocess.json": tmp_path / "preprocess.json"}
    picture = pictures_of([Photo("a", array=np.full((30, 40, 3), 90, np.uint8))])
    shipped = Shipped("counting", None, files, "fp32")
    found = measure_frame(shipped, picture, board.via(), Effort(processes=1, blocks=4, seconds=0.5))
    assert found.ms > found.parts["decode"] > 0
    blobs = board.home / ".cache/kdcompile/blobs"
    assert not [path for path in blobs.iterdir() if b"photos/" in path.read_bytes()]
