"""Ten thousand mutated files for every reader: each is read, or refused by one error block."""

import sys
import time

import pytest
from mutations import tried
from parsers_bundles import OUTSIDE
from soak_results import told

FILES, SEED = 10_000, 23


@pytest.fixture(scope="module")
def tally():
    found = []
    began = time.process_time()
    yield found
    if not found:
        return
    files, slowest = sum(one.files for one in found), max(one.slowest for one in found)
    told(
        "mutations",
        f"{len(found)} readers, {files // len(found):,} files each: none crashed, "
        f"{sum(one.read for one in found):,} read and the rest refused, slowest {slowest:.2f} s, "
        f"at most {max(one.largest for one in found) >> 20} MiB; "
        f"{time.process_time() - began:.0f} s of CPU",
    )


@pytest.mark.soak
@pytest.mark.parametrize("parser", OUTSIDE, ids=lambda parser: parser.name)
def test_mutated_files_are_read_or_refused(parser, tally):
    found = tried(parser, FILES, SEED)
    sys.stdout.write(f"mutated {parser.name}: {found}\n")
    assert found.files == FILES
    tally.append(found)
