"""The README's commands run as printed, and its links lead somewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from command_line import kdcompile
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


def _run(block, folder):
    """Run a block's commands: those of `kdcompile` in this process, which has imported it."""
    for line in block.splitlines():
        if not line.startswith("kdcompile "):
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=folder, check=True)
            continue
        command, _, into = line.partition(" > ")
        _, *words = shlex.split(command)
        found = kdcompile(folder, *words)
        if into:
            (folder / into).write_text(found.stdout)


def test_commands_run_as_printed(tmp_path):
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    assert len(blocks) >= 2
    assert sum(block.count(BUILD) for block in blocks) == 1
    quick = BUILD.replace("\n", " ".join(["", *(f"--set {s}" for s in QUICK)]) + "\n")
    blocks = [block.replace(BUILD, quick) for block in blocks]
    first, rest = blocks[0].split("\n", 1)  # `init`, whose project is then made small
    _run(first, tmp_path)
    few_photos(tmp_path / "crowd")
    for block in (rest, *blocks[1:]):
        _run(block, tmp_path)
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
