"""The Python example of the README: a verified bundle, and cache hits the second time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdcompile import api

ROOT = Path(__file__).parents[2]
STAGES = ["teacher", "search", "distill", "export", "calibrate", "compile", "verify", "bundle"]


@pytest.mark.slow
def test_it_builds_a_verified_bundle_and_then_everything_is_a_cache_hit(tmp_path):
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    for ran in (STAGES, []):
        found = subprocess.run(
            [sys.executable, "-"], input=example, cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        assert found.stdout.splitlines()[-1] == f"passed dist/bright {ran}"
    bundle = api.load_bundle(tmp_path / "dist" / "bright")
    gates = {gate.name: gate.verdict for gate in bundle.report().gates}
    assert gates == {"accuracy": "passed", "parity": "passed"}
    check = api.check_bundle(bundle)
    assert (check.verdict, check.exit_code) == ("passed", 0)
    assert check.parity["pooled_sqnr_db"] >= check.parity["min_sqnr_db"]
