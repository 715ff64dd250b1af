"""`kdcompile doctor --via`: what is looked at on a board, and what stops it."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from sshd import running_sshd

from kdcompile.cli import cli
from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.environment.doctor import exit_code
from kdcompile.environment.doctor_board import examine_board, jetpack_of

ORIN = {
    "python": "3.10.12",
    "numpy": "1.26.4",
    "backend": "tensorrt",
    "backend_version": "10.3.0",
    "platform": "linux aarch64",
    "module": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
    "power_mode": "NV Power Mode: MAXN_SUPER 0",
    "l4t": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
    "clocks": {"gpu": 1173000000, "emc": 3199000000},
    "memory_mb": {"total": 15656, "free": 12000},
    "disk_mb": 90000,
    "gpu": {"name": "Orin", "compute_capability": "8.7", "memory_mb": 15656},
}


def look(changes=(), backend="tensorrt"):
    about = {**ORIN, **dict(changes)}
    place = SimpleNamespace(label="ssh://me@orin", about=about, put=lambda local: f"/{local.name}")
    checks = examine_board(lambda: nullcontext(place), backend)
    for check in checks:
        assert check.fix or check.status in ("ok", "missing"), check
    return {check.name: check for check in checks}


def test_a_jetson():
    found = look()
    assert {check.status for check in found.values()} == {"ok"}
    assert list(found)[:5] == ["reachable", "copies", "python", "numpy", "tensorrt"]
    assert found["tensorrt"].detail == "10.3.0"
    assert found["GPU"].detail == "Orin, compute capability 8.7, 15656 MiB"
    assert found["JetPack"].detail == "JetPack 6.2 (L4T 36.4.3)"
    assert found["power mode"].detail == "NV Power Mode: MAXN_SUPER 0"
    assert found["clocks"].detail == "emc 3199 MHz, gpu 1173 MHz"
    assert found["memory"].detail == "12000 of 15656 MiB free"
    assert found["disk"].detail == "87.9 GiB free"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"power_mode": None}, "power mode"),
        ({"clocks": {}}, "clocks"),
        ({"memory_mb": {"total": 4000, "free": 300}}, "memory"),
        ({"memory_mb": {"total": None, "free": None}}, "memory"),
        ({"disk_mb": 100}, "disk"),
        ({"disk_mb": None}, "disk"),
        ({"l4t": "unreadable"}, "JetPack"),
    ],
)
def test_a_jetson_that_deserves_a_look(changes, name):
    found = look(changes)
    assert {check.name for check in found.values() if check.status == "warning"} == {name}


@pytest.mark.parametrize(("l4t", "how"), [(ORIN["l4t"], "jetson_clocks"), (None, "nvidia-smi")])
def test_how_clocks_are_fixed_is_of_the_machine(l4t, how):
    assert how in look({"clocks": {}, "l4t": l4t})["clocks"].fix


def test_a_board_that_takes_no_files_is_an_error():
    def refuse(local):
        raise KDError("sftp-missing", "it has no sftp", fix="sudo apt install openssh-sftp-server")

    place = SimpleNamespace(label="ssh://me@orin", about=ORIN, put=refuse)
    checks = examine_board(lambda: nullcontext(place), "tensorrt")
    (copies,) = (check for check in checks if check.name == "copies")
    assert (copies.status, copies.fix) == ("error", "sudo apt install openssh-sftp-server")
    assert exit_code(checks) == 4


def test_a_workstation_without_a_gpu():
    changes = {"module": None, "l4t": None, "power_mode": None, "clocks": {}, "gpu": None}
    found = look(changes, "onnxruntime")
    assert found["GPU"].status == "missing"
    assert {check.status for check in found.values()} == {"ok", "missing"}
    assert "not a Jetson" in found["module"].detail


@pytest.mark.parametrize(
    ("l4t", "words"),
    [
        ("35.3.1", "JetPack 5.1.1"),
        ("36.4.3", "JetPack 6.2"),
        ("36.4.7", "JetPack 6.2 or later"),
        ("32.7.4", "a JetPack that no target names"),
    ],
)
def test_jetpack_of_l4t(l4t, words):
    assert jetpack_of(l4t) == words


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("ssh-refused", ["reachable"]),
        ("python-old", ["reachable", "python"]),
        ("numpy-missing", ["reachable", "python", "numpy"]),
        ("tensorrt-missing", ["reachable", "python", "numpy", "tensorrt"]),
        ("cuda-missing", ["reachable", "python", "numpy", "tensorrt", "GPU"]),
    ],
)
def test_an_error_is_the_last_check(code, names):
    def fail():
        raise ToolMissingError(code, "why", fix="this")

    checks = examine_board(fail, "tensorrt")
    assert [check.name for check in checks] == names
    assert [check.status for check in checks] == ["ok"] * (len(names) - 1) + ["error"]
    assert (checks[-1].fix, exit_code(checks)) == ("this", 4)


def test_a_bad_place_is_no_finding():
    def fail():
        raise KDError("via-invalid", "why", fix="this")

    with pytest.raises(KDError):
        examine_board(fail, "tensorrt")


def test_backend_alone_is_a_usage_error():
    assert CliRunner().invoke(cli, ["doctor", "--backend", "onnxruntime"]).exit_code == 2


def test_over_ssh(tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('no libnvinfer here')")
    with running_sshd(tmp_path / "board") as board:
        extra = f"  SetEnv PYTHONPATH={tmp_path}\n"
        config = board.client("with_path", extra=extra)
        command = [sys.executable, "-m", "kdcompile", "doctor", "--json", "--via", board.via()]

        def doctor(*more):
            done = subprocess.run(
                [*command, *more],
                env={**os.environ, "KDCOMPILE_SSH_CONFIG": str(config)},
                capture_output=True,
                text=True,
            )
            return done.returncode, {c["name"]: c for c in json.loads(done.stdout)}, done.stderr

        status, checks, log = doctor()
        assert (status, log) == (4, "")
        assert checks["tensorrt"]["status"] == "error"
        assert "python3-libnvinfer" in checks["tensorrt"]["fix"]
        status, checks, log = doctor("--backend", "onnxruntime")
        assert (status, log) == (0, "")
        assert checks["reachable"]["detail"] == board.via().partition("?")[0]
        assert checks["GPU"]["status"] == "missing"
