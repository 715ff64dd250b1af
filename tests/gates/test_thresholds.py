"""What the gates accept as a threshold, where a value is the threshold, and their order."""

import numpy as np
import pytest
from pydantic import ValidationError

from kdcompile.gates.churn import Flips
from kdcompile.gates.energy import EnergyGate
from kdcompile.gates.memory import MemoryGate
from kdcompile.gates.registry import find_gate
from kdcompile.gates.size_mb import SizeGate
from kdcompile.gates.speedup import SpeedupGate

ORDER = ("accuracy", "parity", "speedup", "size_mb", "energy_mj", "memory_mb", "strata", "flips",
         "previous")  # fmt: skip


def test_each_gate_has_a_rank_of_its_own():
    assert [find_gate(name).rank for name in ORDER] == list(range(len(ORDER)))


@pytest.mark.parametrize(
    ("gate", "name"),
    [(EnergyGate, "max"), (MemoryGate, "max"), (SizeGate, "max"), (SpeedupGate, "min")],
)
def test_a_threshold_is_over_0(gate, name):
    assert getattr(gate(**{name: 0.5}), name) == 0.5
    with pytest.raises(ValidationError):
        gate(**{name: 0.0})


def test_a_share_whose_bound_is_the_limit():
    found = Flips(np.array([True, False, False, False]), "", 0.125, 0.5)
    assert found.judge(0.5)[0] == "passed"
    assert found.judge(0.49)[0] == found.judge(0.125)[0] == "inconclusive"
    assert found.judge(0.12)[0] == "failed"
