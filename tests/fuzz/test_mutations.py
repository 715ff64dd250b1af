"""Two hundred files for every reader, each a good one with something wrong: read, or refused."""

import pytest
from mutations import tried
from parsers_bundles import OUTSIDE

FILES, SEED = 200, 1


@pytest.mark.parametrize("parser", OUTSIDE, ids=lambda parser: parser.name)
def test_a_mutated_file_is_read_or_refused(parser):
    found = tried(parser, FILES, SEED)
    assert found.files == FILES
