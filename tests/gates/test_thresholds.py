"""What the gates accept as a threshold, where a value is the threshold, and their order."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from kdcompile.config import template
from kdcompile.gates.churn import Flips
from kdcompile.gates.energy import EnergyGate
from kdcompile.gates.memory import MemoryGate
from kdcompile.gates.parity import ParityGate
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


def test_the_default_of_parity_is_the_one_that_a_new_spec_names():
    text = Path(template.__file__).with_suffix(".toml").read_text()
    assert f"parity = {{ min_sqnr_db = {ParityGate().min_sqnr_db} }}" in text


def test_a_share_whose_bound_is_the_limit():
    found = Flips(np.array([True, False, False, False]), "", 0.125, 0.5)
    assert found.judge(0.5)[0] == "passed"
    assert found.judge(0.49)[0] == found.judge(0.125)[0] == "inconclusive"
    assert found.judge(0.12)[0] == "failed"
