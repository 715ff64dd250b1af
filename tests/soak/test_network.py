"""A build opens no socket, and writes only where it says: store, output folder, caches.

Python's own audit events tell it of every Python process of the build, `strace` also of libraries.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs import project

pytestmark = pytest.mark.soak

HOOK = """
import os, sys

LOG = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink",
           "os.truncate", "os.chmod", "os.utime"}

def told(event, args):
    path = None
    if event.startswith("socket.") and event != "socket.gethostname":
        path = event
    elif event == "open" and isinstance(args[0], (str, bytes)):
        flags = args[2] if isinstance(args[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            path = os.path.realpath(os.fsdecode(args[0]))
    elif event in CHANGES and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(args[0]))
        inside = event in ("os.remove", "os.rmdir") and args[-1] != -1  # of a folder that goes too
        if inside or event == "os.mkdir" and os.path.isdir(path):
            path = None
    if path is not None:
        os.write(LOG, (event + " " + path + "\\n").encode(errors="replace"))

sys.addaudithook(told)
"""
SOCKET = re.compile(r"\b(?:socket|connect|sendto|sendmsg)\(.*(?:AF_INET|AF_NETLINK|AF_PACKET)")


def built(folder):
    """Build a small project; the audit events of its processes, and the lines of strace, if any."""
    (folder / "hook").mkdir()
    (folder / "hook/sitecustomize.py").write_text(HOOK)
    for name in ("crowd", "home/.cache", "tmp"):
        (folder / name).mkdir(parents=True)
    project(folder / "crowd")
    shutil.rmtree(folder / "crowd/.kdcompile", ignore_errors=True)
    names = "TORCHINDUCTOR_CACHE_DIR MPLCONFIGDIR ORT_DISABLE_TELEMETRY CI KDCOMPILE_CACHE"
    quiet = {*names.split(), "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    environment = {k: v for k, v in os.environ.items() if k not in quiet} | {
        "PYTHONPATH": str(folder / "hook"), "AUDIT_LOG": str(folder / "audit.txt"),
        "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=network", "-o", "trace.txt"]
    words = [sys.executable, "-m", "kdcompile", "build", "crowd", "-o", "out"]
    has_strace = shutil.which("strace") is not None
    subprocess.run(
        [*(trace if has_strace else ()), *words], cwd=folder, env=environment, check=False
    )
    assert (folder / "out/manifest.json").is_file()
    lines = (folder / "trace.txt").read_text(errors="replace") if has_strace else ""
    return (folder / "audit.txt").read_text().splitlines(), lines.splitlines()


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    return folder, *built(folder)


def test_a_build_opens_no_socket(events):
    _, audit, trace = events
    assert [line for line in audit if line.startswith("socket.")] == []
    assert [line for line in trace if SOCKET.search(line)] == []


def test_a_build_writes_only_where_it_says(events):
    folder, audit, _ = events
    allowed = [
        folder / name for name in ("crowd/.kdcompile", "out", "home/.cache/kdcompile", "tmp")
    ]
    paths = {Path(line.partition(" ")[2]) for line in audit if not line.startswith("socket.")}
    # a bundle is written whole before it takes its place
    beside = {p for p in paths if str(p).startswith(f"{folder}/.out.kdcompile-")}
    assert any(path.name == "manifest.json" for path in beside)  # the hook is there
    outside = {p for p in paths - beside if not any(p.is_relative_to(a) for a in allowed)}
    assert {p for p in outside if not p.is_relative_to("/dev")} == set()
    left = list((folder / "tmp").iterdir())
    assert [p.name for p in left if not p.name.startswith("torchinductor_")] == []  # of PyTorch
    left = {p.relative_to(folder) for p in (folder / "home").rglob("*") if p.is_file()}
    assert {p for p in left if not p.is_relative_to("home/.cache/kdcompile")} == set()
