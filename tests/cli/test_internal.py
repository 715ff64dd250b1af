"""An error that nobody foresaw is a block with a file to report, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import CommandLine

from kdcompile import __version__
from kdcompile.cli import internal
from kdcompile.config import template

SECRET = "hunter2"


@pytest.fixture
def broken(monkeypatch, capsys, tmp_path):
    """A command line whose `init` fails as no command should."""

    def fail(*values):
        raise ZeroDivisionError(f"at ssh://me:{SECRET}@board\nin two lines, token={SECRET}")

    monkeypatch.setattr(template, "init_template", fail)
    monkeypatch.setattr(internal, "gettempdir", lambda: str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDCOMPILE_DEBUG", raising=False)
    return CommandLine(monkeypatch, capsys)


def _kept(text, folder):
    """The report, which the fix names."""
    files = list(folder.glob("internal-*.txt"))
    assert len(files) == 1
    assert str(files[0]) in text
    return files[0].read_text()


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_an_unforeseen_error_is_a_block_and_a_file(broken, tmp_path, words):
    code, text = broken("init", "place", *words)
    assert (code, broken.out) == (70, "")
    first, *rest = text.splitlines()
    assert first.startswith("error[internal]: this is a fault of kdcompile: ZeroDivisionError: at ")
    assert [line[:9] for line in rest] == ["  where: ", "  fix:   "]
    assert f"{Path(__file__).name}, line " in rest[0]
    report = _kept(text, tmp_path / "temporary")
    assert "Traceback (most recent call last)" in report
    assert f"kdcompile {__version__}, Python 3" in report
    assert "\ntorch 2" in report
    assert "command: kdcompile init place" in report


def test_no_secret_is_in_either(broken, tmp_path):
    _, text = broken("init", f"ssh://me:{SECRET}@board?password={SECRET}")
    report = _kept(text, tmp_path / "temporary")
    assert SECRET not in text + report
    assert report.count("***") >= 4


def test_the_file_is_in_the_store_of_the_spec_that_was_named(broken, tmp_path):
    (tmp_path / "place" / ".kdcompile").mkdir(parents=True)
    _, text = broken("init", "place")
    _kept(text, tmp_path / "place" / ".kdcompile")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_where_no_file_can_be_written_there_is_the_block(broken, tmp_path):
    (tmp_path / "temporary").rmdir()
    code, text = broken("init", "place")
    assert code == 70
    assert "KDCOMPILE_DEBUG=1" in text


def test_where_there_is_no_folder_for_temporary_files_there_is_the_block(broken, monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(internal, "gettempdir", none)
    code, text = broken("init", "place")
    assert (code, text.count("error[internal]")) == (70, 1)


def test_a_folder_that_is_gone_is_a_block(tmp_path):
    """The shell's own folder was removed under it."""
    (tmp_path / "gone").mkdir()
    program = (
        "import os, sys; os.rmdir(os.getcwd()); from kdcompile.cli import main;"
        "sys.argv = ['kdcompile', 'plan']; main()"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path / "gone", capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 1, found.stderr
    assert found.stderr.startswith("error[folder-gone]: ")
    assert found.stderr.count("error[") == 1
    assert "Traceback" not in found.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("words", [("targets",), ("schema", "--of", "plan")])
@pytest.mark.parametrize("ci", ["", "true"])  # which guards the streams
def test_a_full_disk_under_standard_output_is_a_block(tmp_path, words, ci):
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [sys.executable, "-P", "-m", "kdcompile", *words], cwd=tmp_path, stdout=full,
            stderr=subprocess.PIPE, text=True, check=False, env={**os.environ, "CI": ci},
        )  # fmt: skip
    assert found.returncode == 1, found.stderr
    assert found.stderr.startswith("error[output-unwritable]: ")
    assert "  where: standard output\n" in found.stderr
    assert len(found.stderr.splitlines()) == 3


@pytest.mark.parametrize("how", ["--debug", "KDCOMPILE_DEBUG"])
def test_the_traceback_is_there_for_who_asks(broken, monkeypatch, how):
    if how == "KDCOMPILE_DEBUG":
        monkeypatch.setenv(how, "1")
    with pytest.raises(ZeroDivisionError):
        broken(*(["--debug"] if how == "--debug" else []), "init", "place")


def test_a_failing_disk_names_the_place(broken, monkeypatch):
    def fail(*values):
        raise OSError(5, "Input/output error", "/data/x")

    monkeypatch.setattr(template, "init_template", fail)
    code, text = broken("init", "place")
    assert code == 1
    assert text.startswith("error[disk-failed]: ")
    assert "  where: /data/x" in text


def test_a_reader_that_left_is_no_fault(tmp_path):
    """As `kdcompile schema | head` does: the pipe is closed before anything is written."""
    program = (
        "import os, sys; reading, writing = os.pipe(); os.dup2(writing, 1); os.close(reading);"
        "from kdcompile.cli import main; sys.argv = ['kdcompile', 'targets']; main()"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (1, "")
