"""A search made again: the same bytes from a seed, whatever stopped it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from searching import LAYERS, SETS, same_files, searched
from staged_ground import write_build


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("again"))


@pytest.mark.parametrize("sets", [(), LAYERS])
def test_the_same_seed_the_same_bytes(load, sets, tmp_path):
    _, first = searched(load, *sets)
    _, again = searched(write_build(tmp_path), *sets)
    assert again.key == first.key
    assert same_files(first, again)


@pytest.mark.soak
def test_a_search_that_was_killed_goes_on(load, tmp_path):
    own = write_build(tmp_path)
    words = ["search", str(tmp_path), *(w for value in SETS for w in ("--set", value))]
    command = [sys.executable, "-P", "-m", "kdcompile", *words]
    store, start = tmp_path / ".kdcompile", time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while not list(store.glob("finalist/[!.]*/artifact.json")):
            assert run.poll() is None
            assert time.monotonic() - start < 120
            time.sleep(0.005)
        os.kill(run.pid, signal.SIGKILL)
    assert not list(store.glob("search/[!.]*/artifact.json"))
    kept = {path: path.stat().st_mtime_ns for path in store.glob("*/[!.]*/artifact.json")}
    _, again = searched(own)
    assert same_files(searched(load)[1], again)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was made twice
