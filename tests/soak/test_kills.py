"""Builds killed at random moments, torn files, two at once: `make soak` prints what was tried."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from killed_builds import digits, same, tiny_spec
from killed_commands import wait_for_group
from soak_results import told, words

from kdcompile.bundle import manifest

pytestmark = pytest.mark.soak
KILLS, SEED = 20, 8
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
UNDECIDED = 5  # twelve photos cannot decide the accuracy
LONG = ("build", "tiny", "--set", "distill.steps=4000", "--set", "distill.views=2")
# of the embedded example, which a kill during its training meets
DEMO = ("--set", "distill.steps=200", "--set", "gates.speedup.required=false")


def _tear(builds, rng):
    """As a power cut leaves it: the file that was written last, in part or as zeros."""
    files = [p for p in builds.store.rglob("*") if p.is_file() and p.parent.name != "locks"]
    if not files:
        return "nothing"
    last = max(files, key=lambda p: p.stat().st_mtime_ns)
    last.chmod(0o644)
    content = last.read_bytes()
    last.write_bytes(rng.choice([content[: len(content) // 2], bytes(len(content)), b""]))
    return last.name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    builds = tiny_spec(tmp_path_factory.mktemp("whole"))
    begin = time.monotonic()
    assert builds.run(LONG) == UNDECIDED, builds.said()
    return builds, builds.results(), time.monotonic() - begin


def test_kills_at_random_moments(tmp_path, whole):
    """Each run of a build is ended at a random moment and the next goes on, until one finishes."""
    _, expected, seconds = whole
    rng, ended, torn, chains, resumed = random.Random(SEED), Counter(), Counter(), 0, 0
    while ended.total() < KILLS:
        chains += 1
        (tmp_path / str(chains)).mkdir()
        builds = tiny_spec(tmp_path / str(chains))
        finished = False
        while not finished:
            number = list(SIGNALS)[ended.total() % len(SIGNALS)]
            process = builds.start(LONG, checkpoints=1.0)
            if ended.total() < KILLS:
                process.join(rng.uniform(0.1, seconds))
            else:
                process.join()
            finished = process.exitcode is not None
            if not finished:
                os.kill(process.pid, number)
            process.join()
            wait_for_group(process.pid)
            finished = process.exitcode == UNDECIDED
            text = builds.said()
            if not finished:
                assert process.exitcode in (SIGNALS[number], -number), text
                ended[number.name] += 1
                if number == signal.SIGKILL and ended[number.name] % 2:
                    torn[_tear(builds, rng)] += 1
            resumed += "resumed after step" in text
        same(builds.results(), expected)
        assert builds.leftovers() == []
        manifest.read_bundle(builds.folder / "dist" / "tiny-jetson")
    told(
        "kills-builds",
        f"{ended.total()} kills ({words(ended)}) of a build of {seconds:.0f} s in {chains} chains; "
        f"{resumed} trainings resumed; {torn.total()} files torn on top: all results the same",
    )


@pytest.fixture(scope="module")
def tally():
    found = Counter()
    yield found
    told("torn-files", f"{found.total()} files ({words(found)}): each made again, or resumed")


@pytest.mark.parametrize("torn", ["half", "zeros", "empty"])
def test_every_file_torn(tmp_path, whole, torn, tally):
    """One file of a finished store or bundle after the other, and the build again."""
    builds, expected, _ = whole
    places = (builds.store, builds.folder / "dist")
    paths = (path for place in places for path in sorted(place.rglob("*")) if path.is_file())
    names = [path.relative_to(builds.folder).as_posix() for path in paths]
    rng = random.Random(SEED)
    records = [n for n in names if n.endswith(("artifact.json", "hashes.json", "manifest.json"))]
    chosen = [*records, *rng.sample(sorted(set(names) - set(records)), 8)]
    for number, name in enumerate(chosen):
        copy = tmp_path / str(number)
        shutil.copytree(builds.folder, copy)
        again = type(builds)(copy)
        path = copy / name
        path.chmod(0o644)
        content = path.read_bytes()
        path.write_bytes({"half": content[: len(content) // 2], "zeros": bytes(len(content)),
                          "empty": b""}[torn])  # fmt: skip
        assert again.run(LONG) == UNDECIDED, (name, again.said())
        _said_so(name, content, again.said())
        _keep_one_entry(again)
        same(again.results(), expected)
        manifest.read_bundle(copy / "dist" / "tiny-jetson")
        shutil.rmtree(copy)
    tally[torn] += len(chosen)


UNREAD = ("/network/", "/locks/")  # what a build of which every step is made does not read


def _said_so(name, content, text):
    entry = "/.kdcompile/" in name and not name.endswith("hashes.json")
    entry = entry and not any(part in name for part in UNREAD)
    if entry and content:
        assert "is damaged and is made again" in text, (name, text)


def _keep_one_entry(builds):
    """A step made again has other clocks, so the measuring steps after it have a second entry."""
    for stage in ("verify", "bundle"):
        entries = [path for path in (builds.store / stage).iterdir() if path.is_dir()]
        entries.sort(key=lambda path: path.stat().st_mtime_ns)
        for older in entries[:-1]:
            shutil.rmtree(older)


def test_two_builds_to_one_place_at_once(tmp_path, whole):
    """Of one spec; then of two specs that share the folder and its store."""
    _, expected, _ = whole
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    builds = tiny_spec(one)
    both = [builds.start((*LONG, "-o", "same")) for _ in range(2)]
    for process in both:
        process.join()
    text = builds.said()
    assert [process.exitcode for process in both] == [UNDECIDED] * 2, text
    assert "waiting for process" in text
    same(builds.results(), expected)
    manifest.read_bundle(one / "same")
    builds = tiny_spec(two)
    text = (two / "tiny" / "kdcompile.toml").read_text()
    (two / "tiny" / "other.toml").write_text(text.replace("steps = 24", "steps = 40"))
    specs = ("tiny/kdcompile.toml", "tiny/other.toml", "tiny/kdcompile.toml", "tiny/other.toml")
    several = [builds.start(("build", spec, "-o", "same")) for spec in specs]
    for process in several:
        process.join()
    said = builds.said()
    assert [process.exitcode for process in several] == [UNDECIDED] * 4, said
    manifest.read_bundle(two / "same")
    for spec in set(specs):  # each finds its own results whole
        assert builds.run(("build", spec, "-o", "same")) == UNDECIDED
        assert "distill" not in builds.said().splitlines()
    assert builds.leftovers() == []
    waits = (text + said).count("waiting for")
    told("builds-at-once", f"2 of one spec, 4 of two to one place: whole, after {waits} waits")


def _example(folder, moments):
    """Build the embedded example, killed once each of some files is there; gives the results."""
    builds = digits(folder)
    command = [sys.executable, "-P", "-m", "kdcompile", "build", "tiny", *DEMO]
    for name in moments:
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        while not list(builds.store.glob(name)):
            assert process.poll() is None, f"it ended before {name} was there"
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert builds.leftovers() == []
    return builds.results()


def test_the_example_killed_on_the_real_command_line(tmp_path):
    """Two kills of the embedded example, in its training and after it, against one left alone."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    moments = ("work/distill-*/initial.safetensors", "export/*/artifact.json")
    same(_example(tmp_path / "killed", moments), _example(tmp_path / "whole", ()))
    told("example-killed", "in its training and after its export: the same bits")
