"""The Python example of the README: a verified bundle, and cache hits the second time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdcompile import api

pytestmark = pytest.mark.usefixtures("drawn")

ROOT = Path(__file__).parents[2]
STAGES = ["teacher", "search", "distill", "export", "calibrate", "compile", "verify", "bundle"]


@pytest.mark.slow
def test_it_builds_a_verified_bundle_and_then_everything_is_a_cache_hit(
    tmp_path, monkeypatch, capsys
):
    """The second time in another process, which must find the same keys."""
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines()[-1] == f"passed bright {STAGES}"
    again = subprocess.run(
        [sys.executable, "-"], input=example, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == "passed bright []"
    bundle = api.load_bundle(tmp_path / "bright")
    gates = {gate.name: gate.verdict for gate in bundle.report().gates}
    assert gates == {"accuracy": "passed", "parity": "passed"}
    check = api.check_bundle(bundle)
    assert (check.verdict, check.exit_code) == ("passed", 0)
    assert check.parity["pooled_sqnr_db"] >= check.parity["min_sqnr_db"]
