"""The dependencies: the tested set with its hashes, how it is installed, and what is audited."""

import importlib.util
import json
import re
import subprocess
import tomllib
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SETS = sorted((ROOT / ".ci").glob("tested-*.txt"))
LINE = re.compile(r"([a-z0-9._-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")
_spec = importlib.util.spec_from_file_location("tested", ROOT / ".ci/tested.py")
tested = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tested)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_every_dependency_is_in_the_tested_set_with_a_version_that_it_may_have(path):
    lines = path.read_text().splitlines()[1:]
    found = {normal(m[1]): m[2] for m in map(LINE.fullmatch, lines)}
    assert len(found) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["rtx"], *extras["dev"]]
    here = {"python_version": "3." + re.search(r"cp3(\d+)", path.name)[1]}
    for one in map(
        Requirement, [*wanted, *(ROOT / "constraints.txt").read_text().splitlines()[1:]]
    ):
        if one.marker is None or one.marker.evaluate(here):
            assert found[normal(one.name)] in one.specifier, f"make tested: {one}"


def test_there_is_a_set_for_ci():
    assert SETS
    assert "TESTED=1" in (ROOT / ".ci/run").read_text()
    assert ".ci/tested.py install" in (ROOT / "Makefile").read_text()


def test_a_set_is_what_pip_reports():
    def entry(name, **origin):
        return {"metadata": {"name": name, "version": "1.0"}, "download_info": origin}

    archive = {"url": "x", "archive_info": {"hashes": {"sha256": "ab"}}}
    report = {"install": [entry("Zed", **archive), entry("kdcompile", dir_info={}),
                          entry("a", **archive)]}  # fmt: skip
    assert tested.lines_of(report) == [f"{n}==1.0 --hash=sha256:ab" for n in ("a", "zed")]


@pytest.fixture
def played(monkeypatch, tmp_path):
    """`install` with a pip that ends so; what it was asked."""
    path, asked = tmp_path / "tested.txt", []
    path.write_text("")
    monkeypatch.setattr(tested, "tested", lambda: path)

    def play(*ends):
        ends = list(ends)

        def pip(*words, stderr=None):
            asked.append(words)
            code, text = ends.pop(0)
            return types.SimpleNamespace(returncode=code, stderr=text)

        monkeypatch.setattr(tested, "pip", pip)
        return tested.install(), asked

    return play, path


def test_the_set_is_installed_by_hash_and_nothing_else(played, capsys):
    play, path = played
    code, (first, own) = play((0, ""), (0, ""))
    assert code == 0
    assert first == ("-q", "--require-hashes", "--no-deps", "-r", str(path))
    assert own == ("-q", "--no-deps", "--no-build-isolation", "-e", ".")
    assert capsys.readouterr().err == ""


def test_a_file_of_another_hash_is_an_error(played):
    words = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
    code, asked = played[0]((1, words))
    assert (code, len(asked)) == (1, 1)


@pytest.mark.parametrize("there", [True, False])
def test_another_set_is_told_aloud(played, capsys, there):
    play, path = played
    if not there:
        path.unlink()
    ends = [(1, "ERROR: No matching distribution found for six==1.17.0")] * there + [(0, "")]
    code, asked = play(*ends)
    assert (code, asked[-1][-1]) == (0, ".[cpu,rtx,dev]")
    assert "NOT the tested set" in capsys.readouterr().err


def test_pip_itself_refuses_another_hash(tmp_path):
    """Its words, by which `install` tells it from a file that is nowhere."""
    wheel = tmp_path / "nothing-1.0-py3-none-any.whl"
    wheel.write_bytes(b"PK")
    (tmp_path / "r.txt").write_text(f"nothing @ {wheel.as_uri()} --hash=sha256:{'0' * 64}\n")
    done = tested.pip("--dry-run", "--no-index", "--require-hashes", "--no-deps", "-r",
                      str(tmp_path / "r.txt"), stderr=subprocess.PIPE)  # fmt: skip
    assert done.returncode == 1
    assert tested.DIFFERS in done.stderr


CLEAN = {"name": "six", "version": "1.17.0", "vulns": []}
BAD = CLEAN | {"vulns": [{"id": "PYSEC-1", "fix_versions": ["1.18"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [
        ([CLEAN, UNKNOWN], 0, "did not find 1: torch\npip-audit: 0 known vulnerabilities of 1 "),
        ([CLEAN, BAD], 1, "six 1.17.0: PYSEC-1, fixed in 1.18"),
        ([UNKNOWN], 0, "SKIPPED, nothing was audited"),
        (None, 0, "SKIPPED, nothing was audited: it broke"),
    ],
)
def test_an_audit_fails_or_says_what_it_left_out(monkeypatch, capsys, found, code, says):
    def run(command, **options):
        if found is not None:
            Path(command[command.index("-o") + 1]).write_text(json.dumps({"dependencies": found}))
        return types.SimpleNamespace(stderr="it broke")

    monkeypatch.setattr(tested.subprocess, "run", run)
    monkeypatch.setattr(tested, "INDEX", (ROOT / "Makefile").as_uri())
    assert tested.audit() == code
    assert says in capsys.readouterr().err


def test_without_an_index_the_audit_is_skipped_aloud(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tested, "INDEX", (tmp_path / "none").as_uri())
    assert tested.audit() == 0
    assert "SKIPPED, nothing was audited: no index is reachable" in capsys.readouterr().err
