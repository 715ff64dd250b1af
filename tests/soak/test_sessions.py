"""Hundreds of sessions of `bench` in one process leave nothing behind in it or on the disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle
from soak_results import told

pytestmark = pytest.mark.soak
FIRST, SESSIONS, MOST_MB = 20, 200, 8
# what is there is looked at once the first sessions have filled what is kept on purpose
CHILD = """
import json, os, sys, threading
from pathlib import Path
from kdcompile.latency.benchmark import bench
from tree_memory import descendants

first, sessions, temporary = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

def seen():
    status = Path("/proc/self/status").read_text().split()
    return {
        "mb": int(status[status.index("VmRSS:") + 1]) / 1024,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "processes": len(descendants(os.getpid())),
        "files": sum(1 for _ in temporary.rglob("*")),
    }

looks = []
for number in range(sessions):
    assert bench("bundle", processes=1, builds=1, samples=20, seconds=0.05).samples.runs
    if number + 1 in (first, sessions):
        looks.append(seen())
print(json.dumps(looks))
"""


def test_two_hundred_sessions_leave_nothing_behind(tmp_path):
    tiny_bundle.copied(tmp_path)
    (tmp_path / "tmp").mkdir()
    support = Path(tiny_bundle.__file__).parent
    environment = os.environ | {
        "TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path), "PYTHONPATH": str(support),
    }  # fmt: skip
    words = [sys.executable, "-c", CHILD, str(FIRST), str(SESSIONS), str(tmp_path)]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, last = json.loads(done.stdout.splitlines()[-1])
    grown = last.pop("mb") - first.pop("mb")
    told("bench-sessions", f"{SESSIONS} sessions: {grown:+.1f} MB after the first {FIRST}, of at "
         f"most {MOST_MB}; then as before {last['descriptors']} descriptors, {last['threads']} "
         f"threads, {last['processes'] - 1} child processes and {last['files']} files")  # fmt: skip
    assert grown <= MOST_MB
    assert last == first
