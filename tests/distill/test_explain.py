"""`distill --explain`: what would be trained, and that nothing is."""

import json

import pytest
from click.testing import CliRunner
from small_digits import AT_64

from kdcompile.cli import cli

STAGES = """
[[distill.stages]]
name = "blocks"
share = 0.25
blocks = true
[[distill.stages]]
name = "polish"
share = 0.75
recipe = "kd"
crop = 32
balance = "gradient"
weights = { soft = { start = 4.0, end = 0.0 } }
"""


@pytest.fixture
def example(tmp_path):
    folder = tmp_path / "crowd"
    found = CliRunner().invoke(cli, ["init", "--example", "digits", str(folder)])
    assert found.exit_code == 0, found.output
    spec = folder / "kdcompile.toml"
    spec.write_text(spec.read_text() + STAGES)
    return folder


SETS = [
    *AT_64,
    "distill.steps=40",
    "data.train=train:16",
    "data.val=val:4",
    "data.test=test:4",
]  # fmt: skip


def _explain(folder, *words):
    args = ["distill", str(folder), "--explain", *words]
    for value in SETS:
        args += ["--set", value]
    return CliRunner().invoke(cli, args)


def test_it_shows_stages_taps_shapes_adapters_terms_and_weights(example):
    found = _explain(example, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    blocks, polish = told["stages"]
    assert told["student"] == {"init": "inherit", "importance": "activation"}
    assert (blocks["steps"], polish["steps"]) == (10, 30)
    assert blocks["taps"][0] == {
        "teacher": ["features.3", 64, 32, 32],
        "student": ["features.3", 16, 32, 32],
        "compared_at": None,
    }
    assert blocks["adapters"]["adapters.0.weight"] == [64, 16]
    assert set(blocks["weights"]) == {"hard", "count", "soft", "intra", "inter"}
    assert polish["weights"]["soft"] == {"start": 4.0, "end": 0.0, "curve": "linear"}
    assert polish["taps"] == [] == list(polish["adapters"])
    assert polish["crop"] == 32


def test_it_reads_well_and_trains_nothing(example):
    found = _explain(example)
    assert found.exit_code == 0, found.output
    text = found.stdout
    assert "stage blocks: recipe skt, 10 steps, batch 16 of 64x64" in text
    assert "gradients stop at the taps" in text
    assert "tap      features.3 [64x32x32] <- features.3 [16x32x32]" in text
    assert "times the balance of gradients" in text
    made = {path.parent.name for path in (example / ".kdcompile").glob("*/*/artifact.json")}
    assert {path.name for path in (example / ".kdcompile").iterdir() if path.is_dir()} <= {
        "network", "search", "locks",
    }  # fmt: skip
    assert len(made) == 2, "the teacher's file and the student's architecture"


def test_what_cannot_be_trained_is_refused(example):
    spec = example / "kdcompile.toml"
    spec.write_text(spec.read_text().replace("crop = 32", 'taps = [["nowhere", "features.1"]]'))
    spec.write_text(spec.read_text().replace('recipe = "kd"', 'recipe = "skt"'))
    found = _explain(example)
    assert found.exit_code != 0
    assert found.exception.code == "tap-missing"
