"""Whatever stands in a file, its reader gives a value or a block with a fix, never a traceback."""

import sys

import pytest
from fuzzing import contents, corpus, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parsers import BY_NAME, PARSERS

QUICK, DEEP = 25, 2_000  # files of each kind
NAMES = [parser.name for parser in PARSERS]
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def _fuzz(name, examples, **kept):
    @settings(max_examples=examples, suppress_health_check=SLOW, **kept)
    @given(st.deferred(lambda: contents(BY_NAME[name])))
    def run(content):
        outcome(BY_NAME[name], content)

    run()


@pytest.mark.parametrize("name", NAMES)
def test_good_files_are_read_and_cut_ones_are_refused_or_read(name):
    for content in BY_NAME[name].good():
        assert outcome(BY_NAME[name], content) is None
        for part in (1, len(content) // 2, len(content) - 1):
            outcome(BY_NAME[name], content[:part])


@pytest.mark.parametrize("name", NAMES)
def test_any_file_is_read_or_refused(name):
    _fuzz(name, QUICK, derandomize=True)


BREAKING = {
    "lists": b"[" * 100_000, "objects": b'{"a":' * 100_000, "tables": b"a = " + b"[" * 5000,
    "number": b'{"seed": ' + b"9" * 5000 + b"}", "mark": b"\xef\xbb\xbf", "nul": b"\0", "none": b"",
}  # fmt: skip


@pytest.mark.parametrize("text", BREAKING.values(), ids=BREAKING)
@pytest.mark.parametrize("name", NAMES)
def test_what_breaks_readers_is_read_or_refused(name, text):
    outcome(BY_NAME[name], text)


def test_what_fuzzers_found_is_read_or_refused():
    inputs = [(name, content) for name in NAMES for content in corpus(name)]
    assert len(inputs) > 100
    for name, content in inputs:
        outcome(BY_NAME[name], content)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_many_files_are_read_or_refused(name):
    _fuzz(name, DEEP, derandomize=False)
    sys.stdout.write(f"fuzz {name}: {DEEP} files, none crashed its reader\n")
