"""No line that a command prints where CI reads along is a command to it, but annotations."""

import io
import json
import re
import sys

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcompile.ci.outcome import Outcome
from kdcompile.ci.report import report_ci
from kdcompile.ci.stream import Guarded, guarded
from kdcompile.cli.terminal import echo_json

HOSTILE = ["::stop-commands::x", "##[stop-commands]x", "##vso[task.complete]", "::error::no"]
COMMAND = re.compile(r"##\w*\[")


def commands(text):
    """The lines that GitHub's runner (`ActionCommand.cs`) or Azure's agent obeys."""
    lines = re.split(r"\r\n|\r|\n", text)
    return [line for line in lines if line.lstrip().startswith("::") or COMMAND.search(line)]


def written(*parts):
    stream = io.StringIO()
    out = Guarded(stream)
    for part in parts:
        out.write(part)
    return stream.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("before", ["", "  ", "\t", "a line\n", "a line\r", "a\n\n  ", "\u3000"])
def test_a_name_at_the_beginning_of_a_line(name, before):
    assert commands(before + name)
    assert not commands(written(before + name + "\n"))
    assert not commands(written(before, *name, "\n"))  # letter by letter


@given(st.lists(st.text(alphabet=":#[]vx \t\r\n\\", max_size=6), max_size=8))
def test_nothing_is_a_command_however_it_is_written(parts):
    made = written(*parts)
    assert not commands(made)
    assert made.replace("\\", "") == "".join(parts).replace("\\", "")


@pytest.mark.parametrize(
    "text", ["plain\n", "a::b ##x\n", "  x: y\n", "#: [a]\n", 'k: "::a"\n', "12 : 3\n"]
)
def test_other_lines_stay_as_they_are(text):
    assert written(text) == text
    assert written(*text) == text


def test_letters_that_the_stream_has_not_are_told_all_the_same():
    raw = io.BytesIO()
    out = Guarded(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    click.echo("≥ ::x", file=out)
    assert raw.getvalue() == b"\\u2265 ::x\n"


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["kdcompile", "run"], {"GITHUB_ACTIONS": "true"}),
        (["kdcompile", "run"], {"CI": "1"}),
        (["kdcompile", "bench", "--ci"], {}),
        (["kdcompile", "bench", "--ci-folder=x"], {}),
    ],
)
def test_both_streams_are_guarded_and_given_back(name, words, environment, capsys):
    before = sys.stdout, sys.stderr
    with guarded(words, environment):
        click.echo(name)
        click.echo(name, err=True)
        print(name, file=sys.stderr)  # noqa: T201
        echo_json({"name": name, name: [name]})
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    assert not commands(out + err)
    assert json.loads(out[out.index("{") :]) == {"name": name, name: [name]}
    assert err.replace("\\", "").count(name) == 2


def test_elsewhere_nothing_is_changed(capsys):
    with guarded(["kdcompile", "run"], {}):
        click.echo("::x")
    assert capsys.readouterr().out == "::x\n"


def test_annotations_are_commands_still(capsys, tmp_path):
    environment = {"GITHUB_ACTIONS": "true"}
    with guarded([], environment):
        made = [Outcome("::stop-commands::x\n::y", "size", "failed")]
        report_ci(made, tmp_path, "title", environment=environment)
    (line,) = commands(capsys.readouterr().out)
    assert line.startswith("::error title=kdcompile%3A %3A%3Astop-commands")
