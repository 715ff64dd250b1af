"""The table of modules that keep their width: in Python, and by `kdcompile search --explain`."""

import json

from click.testing import CliRunner
from resized_networks import Attention
from staged_ground import write_build
from unshrunk_networks import HardCoded, Masked, between

from kdcompile.cli import cli
from kdcompile.models.channel_groups import ENDS
from kdcompile.models.channels import trace
from kdcompile.search.frozen import frozen, lines, sentences


def _rows(teacher):
    return frozen(teacher, trace(teacher.eval(), (1, 3, 16, 16)))


def test_a_module_is_listed_with_its_channels_and_the_reason():
    rows = _rows(HardCoded())
    assert [(row["module"], row["channels"]) for row in rows][-1] == ("head", 4)
    assert rows[-1]["reason"] == ENDS
    (stem,) = (row for row in rows if row["module"] == "stem")
    assert stem["channels"] == 32
    assert "the network's own code asks for this width" in stem["reason"]


def test_a_module_without_a_rule_is_listed_with_the_width_that_it_has():
    row = _rows(between(Masked))[0]
    assert (row["module"], row["channels"]) == ("1", 64)
    assert row["reason"].startswith("Masked has tensors")


def test_only_the_frozen_part_of_a_width_counts():
    rows = {row["module"]: row for row in _rows(Attention("talking"))}
    assert set(rows) == {"after", "head"}
    assert rows["after"]["channels"] == 4


def test_the_text_names_all_of_it_in_columns():
    rows = [
        {"module": "a", "channels": 16, "reason": "because"},
        {"module": "longer", "channels": 0, "reason": "there is no rule"},
    ]
    assert lines({"frozen": rows, "modules": 7}) == [
        "2 of 7 modules keep the teacher's width",
        "",
        "module  channels  reason",
        "a             16  because",
        "longer            there is no rule",
    ]
    assert sentences(rows) == [
        "a keeps its 16 channels: because",
        "longer keeps its channels: there is no rule",
    ]
    assert lines({"frozen": [], "modules": 7}) == ["all of 7 modules can be made narrower"]


def test_the_command_shows_it_and_searches_for_nothing(tmp_path):
    write_build(tmp_path)
    text, told = (
        CliRunner().invoke(cli, ["search", str(tmp_path), "--explain", *more])
        for more in ((), ("--json",))
    )
    assert text.exit_code == told.exit_code == 0, text.output
    found = json.loads(told.stdout)
    assert found["frozen"][-1]["reason"] == ENDS
    assert text.stdout.splitlines() == lines(found)
    assert not [*tmp_path.rglob("architecture.json")]
