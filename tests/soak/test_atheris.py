"""Ten minutes of fuzzing that is led by the branches of the parsers themselves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from parsers import PARSERS

DRIVER = Path(__file__).parents[1] / "fuzz" / "drive.py"
SECONDS = 600


@pytest.mark.soak
def test_no_parser_crashes(tmp_path):
    pytest.importorskip("atheris", reason="atheris has no wheel for this system: pip install it")
    command = [sys.executable, DRIVER, str(SECONDS // len(PARSERS)), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    runs = [int(n) for n in re.findall(r"number_of_executed_units: (\d+)", done.stderr)]
    sys.stdout.write(f"atheris: {len(runs)} parsers, {sum(runs)} inputs, {done.stdout.strip()}\n")
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(runs) == len(PARSERS)
    assert min(runs) > 100
