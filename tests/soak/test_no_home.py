"""Commands of a user whom the system does not know and who has no HOME, as in a container.

`unshare` gives the process such a user id; it may read and write what the test may.
"""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from killed_builds import tiny_spec
from PIL import Image
from soak_results import told

pytestmark = pytest.mark.soak
USER = 54_321
BUNDLE = "dist/tiny-jetson"
COMMANDS = {  # with their exit codes: twelve photos decide no accuracy
    ("doctor",): 0,
    ("plan", "tiny"): 0,
    ("build", "tiny"): 5,
    ("verify", BUNDLE): 5,
    ("run", BUNDLE, "photo.png", "-o", "drawn"): 0,
    ("report", BUNDLE): 0,
    ("bench", BUNDLE, "--seconds", "0.2"): 1,
}


def test_no_command_needs_a_home(tmp_path):
    as_nobody = ["unshare", "-U", f"--map-user={USER}", "--"]
    if shutil.which("unshare") is None or subprocess.run([*as_nobody, "true"]).returncode:
        pytest.skip("there is no unshare here that gives another user id")
    tiny_spec(tmp_path)
    (tmp_path / "tmp").mkdir()
    Image.fromarray(np.full((16, 16), 99, np.uint8)).save(tmp_path / "photo.png")
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
    for words, code in COMMANDS.items():
        line = [*as_nobody, sys.executable, "-P", "-m", "kdcompile", *words]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (words, done.stderr)
        assert "Traceback" not in done.stderr
        if code == 1:  # the worker's folder is to be named
            assert "error[work-folder]" in done.stderr
            assert "KDCOMPILE_CACHE" in done.stderr
    assert (tmp_path / "drawn").is_dir()
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"tiny", "tmp", "photo.png", "dist", "drawn"}, "no folder called ~"
    left = [p.name for p in (tmp_path / "tmp").iterdir() if not p.name.startswith("torchinductor_")]
    assert left == []
    told("no-home", f"{len(COMMANDS)} commands: passed; `bench` says that it needs KDCOMPILE_CACHE")
