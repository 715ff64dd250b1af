"""Ten minutes of fuzzing that is led by the branches of the parsers themselves."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from parsers import PARSERS
from soak_results import told

DRIVER = Path(__file__).parents[1] / "fuzz" / "drive.py"
SECONDS = 600


@pytest.mark.soak
def test_no_parser_crashes():
    pytest.importorskip("atheris", reason="atheris has no wheel for this system: pip install it")
    found = tempfile.mkdtemp(prefix="kdcompile-fuzz-")  # pytest would remove what is found
    command = [sys.executable, DRIVER, str(SECONDS // len(PARSERS)), found]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    runs = [int(n) for n in re.findall(r"number_of_executed_units: (\d+)", done.stderr)]
    if done.returncode != 0:
        traces = done.stderr.split("Uncaught Python exception")[1:]
        pytest.fail(f"the inputs are in {found}\n" + "\n".join(t[:2000] for t in traces))
    shutil.rmtree(found)
    assert len(runs) == len(PARSERS)
    assert min(runs) > 100
    told("atheris", f"{sum(runs):,} inputs of {len(runs)} readers: {done.stdout.strip()}")
