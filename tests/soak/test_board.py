"""A hostile board at length: the drawn answers of `hostile_answers`, many of each way."""

import gc
import random
import resource
import time

import pytest
from hostile_answers import WAYS, answered
from hostile_place import GOOD
from soak_results import told

pytestmark = pytest.mark.soak
TURNS = 50  # of each way with each operation
ROUNDS = 5


def test_any_answer_is_one_error_or_an_answer():
    """Each is held against its form and the block of its error as it is drawn."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    taken = refused = 0
    for way, least in WAYS.items():
        rng, tried = random.Random(f"{way.__name__} at length"), []
        for op, good in GOOD.items():
            for _ in range(ROUNDS):
                tried += [answered(way(rng, good), op) for _ in range(TURNS // ROUNDS)]
                gc.collect()  # an error that its place keeps has the frames with the answer in them
        assert tried.count(False) >= least * len(tried), way.__name__
        taken, refused = taken + tried.count(True), refused + tried.count(False)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300
    told("hostile-board", f"{taken + refused} answers: {refused} refused, {taken} taken, "
         f"{time.process_time() - began:.0f} s of CPU, {grown:.0f} MiB more")  # fmt: skip
