"""`--json` is one document for every command, and it is what `kdcompile schema --of` says."""

import json
from contextlib import chdir

import click
import pytest
from bench_line import BenchLine
from click.testing import CliRunner
from documents import check_document, command_of
from jsonschema import Draft202012Validator, ValidationError

from kdcompile.cli import cli
from kdcompile.cli.schemas import DOCUMENTS, schema_of
from kdcompile.cli.terminal import echo_json
from kdcompile.core.errors import KDError


def _commands(group, name=()):
    """Every command that can be called, by its words."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*name, word))
            if not command.invoke_without_command:
                continue
        yield " ".join((*name, word)), command


def test_every_command_has_json_and_a_schema():
    found = dict(_commands(cli))
    assert set(found) == set(DOCUMENTS)
    for name, command in found.items():
        options = {option for param in command.params for option in param.opts}
        assert {"--json", "-q", "-v"} <= options, name


@pytest.mark.parametrize("command", DOCUMENTS)
def test_a_schema_is_one(command):
    Draft202012Validator.check_schema(schema_of(command))


LIGHT = [
    ("doctor",), ("targets",), ("targets", "show", "jetson"), ("targets", "show", "cpu"),
    ("plugins",), ("recipes",), ("recipes", "show", "skt"), ("schema",), ("schema", "--of", "plan"),
    ("init", "made"),
]  # fmt: skip


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_light_commands(words, tmp_path):
    with chdir(tmp_path):
        found = CliRunner().invoke(cli, [*words, "--json"])
    assert found.exit_code in (0, 4), found.output
    check_document(command_of(words), json.loads(found.stdout))


def test_measurements(monkeypatch, capsys, tmp_path):
    line = BenchLine(monkeypatch, capsys, tmp_path)
    line.network("net", 1.0)
    line.network("slower", 1.3)
    check_document("bench", line.json("bench", "net.onnx", "--save", "b.json")[1])
    check_document("bench", line.json("bench", "slower.onnx", "--baseline", "b.json")[1])
    check_document("compare", line.json("compare", "net.onnx", "slower.onnx")[1])
    check_document("baseline init", line.json("baseline", "init", "net.onnx")[1])
    why = ("--why", "another head")
    check_document("baseline update", line.json("baseline", "update", "net.onnx", *why)[1])
    check_document("baseline show", line.json("baseline", "show")[1])


def test_what_the_schema_does_not_name_is_refused():
    good = [{"name": "x", "status": "ok", "detail": "", "fix": ""}]
    check_document("doctor", good)
    for wrong in ([{**good[0], "more": 1}], [{**good[0], "status": "fine"}], good[0]):
        with pytest.raises(ValidationError):
            check_document("doctor", wrong)


def test_a_command_that_is_not_there():
    with pytest.raises(KDError, match="plan") as error:
        schema_of("plans")
    assert error.value.code == "command-unknown"


def test_a_number_that_json_has_not_is_null(capsys):
    echo_json({"worst": float("nan"), "rows": [float("inf"), 1.5]})
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail) == {"worst": None, "rows": [None, 1.5]}
