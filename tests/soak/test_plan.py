"""100,000 lines of annotations beside those of the photos add little to the CPU time of a plan."""

import json

import numpy as np
import pytest
from bad_inputs import SPEC, project
from soak_results import told
from tree_memory import kdcompile

pytestmark = pytest.mark.soak
LINES, TIMES, MOST_S = 100_000, 3, 1.5


def _seconds(folder):
    """Of CPU: of the quickest of a few, which the rest of the machine disturbed least."""
    found = [kdcompile(folder.parent, "plan", folder) for _ in range(TIMES + 1)]
    assert [one.code for one in found] == [0] * len(found), found[0].err
    return min(one.cpu_s for one in found[1:])  # the first one fills the store


def test_lines_that_no_split_names_cost_little(tmp_path):
    folder = tmp_path / "crowd"
    folder.mkdir()
    project(folder, spec=SPEC)
    alone = _seconds(folder)
    places = np.random.default_rng(0).uniform(0, 1000, (LINES, 4, 2)).round(2).tolist()
    with (folder / "data" / "annotations.jsonl").open("a") as file:
        for number, points in enumerate(places):
            file.write("\n" + json.dumps({"image": f"images/more{number}.jpg", "points": points}))
    more = _seconds(folder) - alone
    told("plan-lines", f"{alone + more:.1f} s of CPU, of which {more:.1f} of at most {MOST_S} for "
         "the lines")  # fmt: skip
    assert more < MOST_S
