"""Ten thousand mutated files for every reader: each is read, or refused by one error block."""

import sys
import time

import pytest
from mutations import tried
from parsers_bundles import OUTSIDE

FILES, SEED = 10_000, 23


@pytest.mark.soak
@pytest.mark.parametrize("parser", OUTSIDE, ids=lambda parser: parser.name)
def test_mutated_files_are_read_or_refused(parser):
    start = time.monotonic()
    found = tried(parser, FILES, SEED)
    sys.stdout.write(f"mutated {parser.name}: {found}; {time.monotonic() - start:.0f} s\n")
    assert found.files == FILES
