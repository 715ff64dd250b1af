"""What the gates accept as a threshold, where a value is the threshold, and their order."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from kdcompile.config import template
from kdcompile.config.gates import Gates
from kdcompile.gates.churn import Flips
from kdcompile.gates.energy import EnergyGate
from kdcompile.gates.frame_ms import FrameGate
from kdcompile.gates.memory import MemoryGate
from kdcompile.gates.parity import ParityGate
from kdcompile.gates.registry import Gate, any_needs, find_gate, of_all
from kdcompile.gates.size_mb import SizeGate
from kdcompile.gates.speedup import SpeedupGate

ORDER = ("accuracy", "parity", "speedup", "size_mb", "energy_mj", "memory_mb", "strata", "flips",
         "previous", "frame_ms")  # fmt: skip


def test_each_gate_has_a_rank_of_its_own():
    assert [find_gate(name).rank for name in ORDER] == list(range(len(ORDER)))


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (EnergyGate, "max"),
        (MemoryGate, "max"),
        (SizeGate, "max"),
        (SpeedupGate, "min"),
        (FrameGate, "max"),
    ],
)
def test_a_threshold_is_over_0(gate, name):
    assert getattr(gate(**{name: 0.5}), name) == 0.5
    with pytest.raises(ValidationError):
        gate(**{name: 0.0})


def test_the_default_of_parity_is_the_one_that_a_new_spec_names():
    text = Path(template.__file__).with_suffix(".toml").read_text()
    assert f"parity = {{ min_sqnr_db = {ParityGate().min_sqnr_db} }}" in text


def test_a_share_whose_bound_is_the_limit():
    found = Flips(np.array([True, False, False, False]), "", 0.125, 0.5)
    assert found.judge(0.5)[0] == "passed"
    assert found.judge(0.49)[0] == found.judge(0.125)[0] == "inconclusive"
    assert found.judge(0.12)[0] == "failed"


def test_a_gate_that_says_no_more_comes_last_and_decides_where_it_is_named():
    made = Gate("loud", SizeGate, lambda settings, context: settings, lambda settings, task: "")
    assert (made.rank, made.always, made.host_decides) == (100, False, True)
    assert made(SizeGate(max=1), None) == SizeGate(max=1)


def test_what_the_gates_of_a_spec_take():
    gates = Gates(size_mb={"max": 1})
    assert any_needs(gates, "files")
    assert not any_needs(gates, "usage")


def test_what_all_images_decide_is_asked_of_all():
    found = of_all("loud", 3, lambda n: ("passed" if n >= 3 else "inconclusive", f"{n} images"))
    assert (found.decides, found.needed, found.each, found.why) == (True, 3, False, "3 images")
    assert not of_all("loud", 3, lambda n: ("failed" if n < 4 else "passed", "")).decides
