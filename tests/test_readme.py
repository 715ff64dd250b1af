"""The README's commands run as printed, and its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_digits import AT_64, few_photos

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
DOCUMENTS += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


BUILD = "kdcompile build crowd --target jetson\n"
# `make demo` runs it as it is; here a few steps show that it runs, and not how well or fast
QUICK = (
    *AT_64, "distill.steps=12", "distill.evaluations=1", "data.train=train:24", "data.val=val:8",
    "data.test=test:16", "gates.accuracy.required=false", "gates.speedup.required=false",
)  # fmt: skip


def test_commands_run_as_printed(tmp_path):
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    assert len(blocks) >= 2
    assert sum(block.count(BUILD) for block in blocks) == 1
    quick = BUILD.replace("\n", " ".join(["", *(f"--set {s}" for s in QUICK)]) + "\n")
    blocks = [block.replace(BUILD, quick) for block in blocks]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (tmp_path / "quick").mkdir()  # as in `_short_timings`, for the processes of the blocks
    (tmp_path / "quick" / "sitecustomize.py").write_text(
        "from kdcompile.core import measurement\nmeasurement.BLOCK_SECONDS = 0.02\n"
    )
    first, rest = blocks[0].split("\n", 1)  # `init`, whose project is then made small
    for block in (first, rest, *blocks[1:]):
        command = ["bash", "-euo", "pipefail", "-c", block]
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path / "quick")}
        found = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, f"{block}\n{found.stdout}\n{found.stderr}"
        if block == first:
            few_photos(tmp_path / "crowd")
    bundle = tmp_path / "dist" / "crowd-jetson"
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "README.md").read_text(), re.M)
    named = [n for cell in table for n in re.findall(r"`([a-z_]+\.[a-z]+|kit/)`", cell)]
    assert {"report.html", "model.onnx", "manifest.json", "kit/"} <= set(named)
    assert all((bundle / name).exists() for name in named)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / document).parent / link).exists(), link


def test_every_command_is_in_the_table():
    from kdcompile.cli import cli

    text = (ROOT / "README.md").read_text()
    for name in cli.commands:
        assert re.search(rf"^\|[^|]*`{name}[ `]", text, re.M), name
