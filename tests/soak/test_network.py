"""`build`, `verify`, `bench` and `run` open no socket, and write only where they say they do.

Python's own audit events tell it of every Python process of theirs, `strace` also of libraries.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs import project
from soak_results import told, words

from kdcompile.core.optional import NO_TELEMETRY

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

os.write(LOG, b"begun /dev/null\\n")
sys.addaudithook(told)
"""
SOCKET = re.compile(r"\b(?:socket|connect|sendto|sendmsg)\(.*(?:AF_INET|AF_NETLINK|AF_PACKET)")


# each with what it may write, beside ~/.cache/kdcompile and temporary files; in this order
COMMANDS = {
    "build": (("build", "crowd", "-o", "out"), ("crowd/.kdcompile", "out")),
    "verify": (("verify", "out"), ()),
    "bench": (("bench", "out"), ()),
    "run": (("run", "out", "photo.png", "-o", "shown"), ("shown",)),
}


def prepare(folder):
    """A small project, a photo, and the hook that every Python process loads."""
    (folder / "hook").mkdir()
    (folder / "hook/sitecustomize.py").write_text(HOOK)
    for name in ("crowd", "home/.cache", "tmp"):
        (folder / name).mkdir(parents=True)
    project(folder / "crowd")
    shutil.rmtree(folder / "crowd/.kdcompile", ignore_errors=True)
    photo = next(path for path in sorted((folder / "crowd").rglob("*.png")))
    shutil.copyfile(photo, folder / "photo.png")


def tried(folder, name):
    """Run a command; the audit events of its processes, and the lines of strace, if it is there."""
    names = "TORCHINDUCTOR_CACHE_DIR MPLCONFIGDIR CI KDCOMPILE_CACHE XDG_CACHE_HOME XDG_CONFIG_HOME"
    quiet = {*names.split(), *NO_TELEMETRY}
    audit, traced = folder / f"audit-{name}.txt", folder / f"trace-{name}.txt"
    environment = {k: v for k, v in os.environ.items() if k not in quiet} | {
        "PYTHONPATH": str(folder / "hook"), "AUDIT_LOG": str(audit),
        "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=network", "-o", traced]
    words = [sys.executable, "-m", "kdcompile", *COMMANDS[name][0]]
    has_strace = shutil.which("strace") is not None
    done = subprocess.run(
        [*(trace if has_strace else ()), *words], cwd=folder, env=environment, check=False
    )
    assert done.returncode in (0, 3, 5), "it did what it had to, whatever the gates say"
    lines = traced.read_text(errors="replace").splitlines() if has_strace else []
    return audit.read_text().splitlines(), lines


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    prepare(folder)
    return folder, {name: tried(folder, name) for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_socket_is_opened(events, name):
    audit, trace = events[1][name]
    assert any(line.startswith("begun ") for line in audit)  # the hook is there
    assert [line for line in audit if line.startswith("socket.")] == []
    assert [line for line in trace if SOCKET.search(line)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_it_writes_only_where_it_says(events, name):
    folder, audit = events[0], events[1][name][0]
    allowed = [folder / place for place in (*COMMANDS[name][1], "home/.cache/kdcompile", "tmp")]
    paths = {Path(line.partition(" ")[2]) for line in audit if not line.startswith("socket.")}
    # a bundle is written whole before it takes its place
    beside = {p for p in paths if str(p).startswith(f"{folder}/.out.kdcompile-")}
    if name == "build":
        assert any(path.name == "manifest.json" for path in beside)
    outside = {p for p in paths - beside if not any(p.is_relative_to(a) for a in allowed)}
    # /proc/self/clear_refs restarts the count of a process's peak memory
    assert {p for p in outside if not re.match(r"/dev/|/proc/\d+/clear_refs$", str(p))} == set()


def test_nothing_is_left_elsewhere(events):
    folder = events[0]
    left = list((folder / "tmp").iterdir())
    assert [p.name for p in left if not p.name.startswith("torchinductor_")] == []  # of PyTorch
    left = {p.relative_to(folder) for p in (folder / "home").rglob("*") if p.is_file()}
    assert {p for p in left if not p.is_relative_to("home/.cache/kdcompile")} == set()
    changes = {name: len(audit) for name, (audit, _) in events[1].items()}
    traced = sum(len(lines) for _, lines in events[1].values())
    told("no-network", f"{words(changes)} changes of files, {traced} calls by strace, no socket")
