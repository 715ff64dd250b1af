"""Every command ended at a random moment: the same command then ends as it would have.

What it leaves is compared with what it leaves undisturbed: each file that two undisturbed runs
leave alike is there and the same, and there is no file that none of them leaves.
"""

import random
import re
import shutil
import signal
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from killed_commands import killed, start, tree
from soak_commands import COMMANDS, OTHERS, VERDICTS, finished_project, project_for
from soak_results import told, words

from kdcompile.bundle import manifest

pytestmark = pytest.mark.soak
SEED, TRIES = 23, 12
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
REFUSED = 1
KEEPING = ("init", "bench", "baseline")  # these do not write over what they have made
NOISY = ("compare", "targets")  # these refuse what other work of the machine disturbed
# what only spares time or says why: the images that were decoded, the parts of a key
SPARING = re.compile(r"\.kdcompile/(images\.json|[a-z]+/[0-9a-f]{24}\.json)$")


def _ended(folder, inside, line, log):
    """A command that is let alone: its exit code, and what it said."""
    log.unlink(missing_ok=True)
    process = start(folder, inside, line, log)
    process.join()
    text = log.read_text()
    assert "Traceback" not in text, text
    assert len(set(re.findall(r"^error\[(\S+?)\]", text, re.MULTILINE))) <= 1, text
    return SimpleNamespace(code=process.exitcode, err=text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished project, with a baseline that is kept in it."""
    folder, log = tmp_path_factory.mktemp("finished"), tmp_path_factory.mktemp("log") / "log"
    builds = finished_project(folder, lambda inside, line: _ended(folder, inside, line, log))
    kept = ("baseline", "init", "dist/tiny-jetson", "kept", "--seconds", "0.2")
    assert _ended(folder, folder, kept, log).code == 0
    return builds


@pytest.fixture(scope="module")
def tally():
    found = Counter()
    yield found
    if found:
        told("kills-commands", f"{found.total()} kills ({words(found)}) of "
             f"{len(COMMANDS) + len(OTHERS)} commands: each then ended as without")  # fmt: skip


def _undisturbed(finished, command, case, log):
    """Exit code and seconds of a command, the files that it always leaves, and any it may."""
    leaves, longest = [], 0.0
    for _ in range(2):
        inside, began = project_for(command, finished, case), time.monotonic()
        ended = _ended(case, inside, command.words, log)
        noisy = command.words[0] in NOISY and ended.code == REFUSED
        assert ended.code in VERDICTS or noisy, ended.err
        longest = max(longest, time.monotonic() - began)
        leaves.append(tree(case))
        shutil.rmtree(case)
    one, two = leaves
    always = {name: sha for name, sha in one.items() if two.get(name) == sha}
    return ended.code, longest, always, one.keys() & two.keys(), one.keys() | two.keys()


def _kill(finished, command, case, log, number, longest):
    """Run a command and end it at a moment, an earlier one where it was done before."""
    rng = random.Random(f"{SEED} {command.words} {number}")
    for _ in range(TRIES):
        inside = project_for(command, finished, case)
        log.unlink(missing_ok=True)
        process = start(case, inside, command.words, log)
        if killed(process, log, rng.uniform(0.005, longest), number):
            break
        longest *= 0.7
        shutil.rmtree(case)
    else:
        pytest.fail(f"{command.words} ended before every signal")
    text = log.read_text()
    assert "Traceback" not in text, text
    done = (REFUSED, *VERDICTS)  # it may be done by then
    assert process.exitcode in (SIGNALS[number], -number, *done), text
    return inside


def _check_no_half(folder):
    """No bundle at its own name of which not all is there."""
    for path in folder.glob("**/manifest.json"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            manifest.read_bundle(path.parent)


@pytest.mark.parametrize(
    "command", [*COMMANDS, *OTHERS], ids=lambda c: "-".join((*c.words[:2], *c.gone))[:40]
)
def test_a_killed_command_ends_the_next_time(tmp_path, finished, tally, command):
    case, log = tmp_path / "case", tmp_path / "log"
    code, longest, always, both, either = _undisturbed(finished, command, case, log)
    for number in SIGNALS:
        inside = _kill(finished, command, case, log, number, longest)
        tally[number.name] += 1
        _check_no_half(case)
        again = _ended(case, inside, command.words, log)
        told_so = f"{number.name}: {again.err[-800:]}"
        kept = command.words[0] in KEEPING and again.code == REFUSED
        noisy = command.words[0] in NOISY and again.code in (REFUSED, *VERDICTS)
        assert again.code == code or kept or noisy, told_so
        left = tree(case)
        more, less = left.keys() - either, both - left.keys()
        assert {name for name in more if not SPARING.search(name)} == set() or noisy, told_so
        assert {name for name in less if not SPARING.search(name)} == set() or noisy, told_so
        differ = {n for n, sha in always.items() if n in left and left[n] != sha}
        assert differ == set(), told_so
        _check_no_half(case)
        shutil.rmtree(case)
