"""A build whose network's energy and memory were measured, as the gates see it."""

import numpy as np

from kdcompile import targets
from kdcompile.gates.context import Latency, Origin, Outcomes, Parity, VerifyContext
from kdcompile.latency.energy_memory import Resources
from kdcompile.remote.usage import Absent, Energy, Memory
from kdcompile.stats.latency_interval import PairedTimes
from kdcompile.tasks.task import find_task

ENERGY = Energy(
    mj=12.0, low=11.5, high=12.5, above_idle_mj=8.0, watts=12.0, idle_watts=4.0,
    rails={"VDD_IN": 12.0, "VDD_SOC": 3.0}, judged=("VDD_IN",), source="INA3221", samples=250,
    hz=50.0, inferences=5000, mode="graph",
)  # fmt: skip
MEMORY = Memory(300.0, "memory that the whole machine has less than before", 90.0)
NOTHING = Absent("no INA3221 sensor, no power in tegrastats, no GPU")


def context(energy=ENERGY, memory=MEMORY, evidence="device", measured=True):
    """Of a Jetson, unless its evidence is the host's."""
    values = np.zeros(3)
    origin = Origin("Orin", "tensorrt", "10.3.0", evidence)
    return VerifyContext(
        target=targets.load("jetson"),
        precision="int8",
        task=find_task("counting"),
        outcomes=Outcomes(("a", "b", "c"), values, values, values, values, values, 3),
        parity=Parity(31.0, 0.04, 3, "int8 against fp32"),
        latency=Latency(PairedTimes(np.ones(6), np.ones(6), 1), "int8", "here"),
        predictions={},
        files={"model.engine": 3_000_000},
        seed=0,
        deployed=origin,
        host=origin,
        resources=Resources(energy, memory) if measured else None,
    )
