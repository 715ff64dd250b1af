"""A disk that fails under every command: each call, each error, at a drawn place of the command.

In turn the call fails once (a network drive that comes back) or from there on (a disk that died).
KDCOMPILE_SOAK_FAULTS=N tries one error in N for each call of a command; the next call's are others.
"""

import os
import random
import re
import shutil
import sys
from collections import Counter
from itertools import product

import pytest
from faulty_commands import CALLS, ERRORS, Fault, FaultyCommands, compile_faults
from killed_builds import Builds
from killed_commands import OWN
from soak_commands import COMMANDS, VERDICTS, finished_project, project_for
from soak_results import told

from kdcompile.bundle import manifest
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256

pytestmark = pytest.mark.soak
SEED, ONE_IN = 11, int(os.environ.get("KDCOMPILE_SOAK_FAULTS", "1"))
REFUSED = 1
KEEPING = ("init", "bench")  # these do not write over what they have made


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    if shutil.which("gcc") is None or not sys.platform.startswith("linux"):
        pytest.skip("faults are injected by a library that gcc compiles here, on Linux: no gcc")
    folder = tmp_path_factory.mktemp("server")
    made = FaultyCommands(compile_faults(folder), folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, commands):
    return finished_project(tmp_path_factory.mktemp("finished"), commands.run)


@pytest.fixture(scope="module")
def tally():
    found = Counter()
    yield found
    told(
        "faults",
        f"{found['faults']} in {found['commands']} commands, each call with one in {ONE_IN} of "
        f"{len(ERRORS)} errors: {found['refused']} refused, {found['done all the same']} done all "
        f"the same, {found['wrong']} wrong",
    )


def _faults(seen, rng):
    """Each call that a command makes with each error, where it is made for the n-th time."""
    calls = [call for call in CALLS if seen[call]]
    for (row, call), (number, error) in product(enumerate(calls), enumerate(ERRORS)):
        if (row + number) % ONE_IN == 0:
            yield Fault(call, error, rng.randint(1, seen[call]), rng.random() < 0.5)


def _wrong(ended):
    """What is wrong with how a command ended, if anything."""
    blocks = re.findall(r"^error\[(\S+?)\]", ended.err, re.MULTILINE)
    if ended.code is None:
        return "hangs"
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        return "traceback"
    if ended.code not in (REFUSED, *VERDICTS) or "internal" in blocks:
        return f"exit {ended.code}, {blocks}"
    if ended.code == REFUSED and len(set(blocks)) != 1:
        return f"{len(blocks)} blocks"
    return f"exit {ended.code} and {blocks}" if ended.code in VERDICTS and blocks else None


def _half(folder):
    """Bundles of which not all is there, at their own names."""
    found = []
    for path in folder.glob("**/manifest.json"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            try:
                manifest.read_bundle(path.parent)
            except (KDError, OSError) as error:
                found.append(f"half a bundle at {path.parent.name}: {error}")
    return found


def _content(folder):
    """All that is below a folder; the folders that the command has of its own, if not empty."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_file():
            found[name] = file_sha256(path)
        elif name not in OWN:
            found[name] = "folder"
    return found


def _once(commands, finished, case, command, fault, expected):
    """One command with a fault and then without; what is wrong, and how the first ended.

    The second is left out where the first has changed nothing: it would be the clean run once more.
    """
    place = project_for(command, finished, case)
    before = _content(case)
    ended = commands.run(place, command.words, fault)
    problems = [found for found in [_wrong(ended)] if found]
    problems += _half(case) if ended.failed else []
    if _content(case) != before:
        problems += _again(commands, finished, case, place, command, expected)
    shutil.rmtree(case)
    return problems, ended


def _again(commands, finished, case, place, command, expected):
    """The command without a fault, after one with it: what is wrong then."""
    problems = []
    again = commands.run(place, command.words)
    kept = command.words[0] in KEEPING and again.code == REFUSED
    if again.code != expected and not kept:
        problems.append(f"again: exit {again.code} and not {expected}: {again.err[-600:]}")
    problems += [p for p in [_wrong(again)] if p]
    problems += _half(case)
    if command.gone and command.words[0] != "plan" and not problems:
        whole, found = finished.results(), Builds(case).results()
        problems += [f"{n} differs" for n in whole if found.get(n) != whole[n]]
    left = [p.name for p in case.rglob("*") if p.name.endswith((".tmp", ".making"))]
    if left and command.words[0] in ("build", "plan"):
        problems.append(f"left: {left}")
    return problems


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: "-".join((*c.words[:2], *c.gone))[:40])
def test_a_failing_disk(tmp_path, commands, finished, tally, command):
    clean = commands.run(project_for(command, finished, tmp_path / "clean"), command.words)
    assert clean.code in VERDICTS, clean.err
    rng, ends, wrong, hit = random.Random(SEED), Counter(), [], 0
    for number, fault in enumerate(_faults(clean.seen, rng)):
        case = tmp_path / str(number)
        problems, ended = _once(commands, finished, case, command, fault, clean.code)
        hit += ended.failed > 0
        ends["refused" if ended.code == REFUSED else "done all the same"] += ended.failed > 0
        if problems:
            wrong.append(f"{fault}: {problems}\n{ended.err[-1500:]}")
            print(wrong[-1], flush=True)
    words = " ".join(command.words)
    print(f"\nfaults: {words}: {hit}: {dict(ends)}; {len(wrong)} wrong")
    tally.update({"commands": 1, "faults": hit, "wrong": len(wrong)} | ends)
    assert not wrong, "\n\n".join(wrong)
