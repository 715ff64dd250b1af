"""Energy and memory from the worker's readings, and how they are asked for."""

import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.latency.energy_memory import measure
from kdcompile.remote.usage import Absent, Memory, energy_of, memory_of


def samples(watts, seconds=5.0, hz=50, **parts):
    """Readings in mW of a module that draws `watts(t)`, and its parts by their share."""
    shares = {"VDD_IN": 1.0, **parts}
    moments = np.arange(0, seconds, 1 / hz)
    return [[t, {rail: 1000 * share * watts(t) for rail, share in shares.items()}] for t in moments]


def answer(busy, idle, inferences=500, unit="mW", **more):
    return {
        "source": "INA3221", "unit": unit, "mode": "graph", "graph": True,
        "idle": {"samples": idle},
        "busy": {"samples": busy, "seconds": 5.0, "inferences": inferences}, **more,
    }  # fmt: skip


def test_energy_is_power_by_time():
    """12 W for 10 ms an inference are 120 mJ; 4 W of it the idle board draws too."""
    found = energy_of(answer(samples(lambda t: 12.0, VDD_SOC=0.25), samples(lambda t: 4.0, 2.0)))
    assert (found.mj, found.low, found.high) == pytest.approx((120.0, 120.0, 120.0))
    assert found.above_idle_mj == pytest.approx(80.0)
    assert (found.watts, found.idle_watts) == pytest.approx((12.0, 4.0))
    assert found.rails == pytest.approx({"VDD_IN": 12.0, "VDD_SOC": 3.0})
    assert found.judged == ("VDD_IN",)  # of which the other is a part
    assert (found.samples, found.hz, found.inferences) == (250, pytest.approx(50.0), 500)


def test_rails_without_a_total_are_summed():
    busy = [[t / 50, {"GPU": 9000.0, "CPU": 2000.0, "SYS5V": 1000.0}] for t in range(250)]
    idle = [[t / 50, {"GPU": 1000.0, "CPU": 1000.0, "SYS5V": 1000.0}] for t in range(100)]
    found = energy_of(answer(busy, idle))
    assert found.judged == ("CPU", "GPU", "SYS5V")
    assert (found.mj, found.above_idle_mj) == pytest.approx((120.0, 90.0))


def test_a_reading_without_a_rail_does_not_lower_the_sum():
    busy = [[t / 50, {"GPU": 9000.0, "CPU": 3000.0}] for t in range(250)]
    for t in range(0, 250, 3):
        del busy[t][1]["CPU"]
    assert energy_of(answer(busy, busy)).mj == pytest.approx(120.0)


def test_unequal_steps_are_weighed_by_their_time():
    moments = [0.0, *np.linspace(4.0, 5.0, 101)]  # one long step, and then many short ones
    busy = [[t, {"GPU": 20_000.0 if t > 4.0 else 10_000.0}] for t in moments]
    assert energy_of(answer(busy, busy)).watts == pytest.approx(12.0, rel=0.01)


def test_a_counter_is_judged_by_the_moments_of_its_moves():
    """It is renewed every 100 ms and read every 20: what it lags behind must not count."""

    def read(watts, seconds, start=7e9):
        return [
            [t, {"GPU": start + 1000 * watts * np.floor(t / 0.1 + 1e-9) * 0.1}]
            for t in np.arange(0.0, seconds, 0.02)
        ]

    found = energy_of(answer(read(300.0, 5.0), read(60.0, 2.0), unit="mJ"))
    assert (found.watts, found.idle_watts) == pytest.approx((300.0, 60.0))
    assert found.judged == ("GPU",)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Noise that is alike for 0.1 s, as an averaging sensor's is."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        noise = np.repeat(rng.normal(0, 1.0, 50), 5)
        busy = [[i / 50, {"GPU": 1000 * (12.0 + noise[i])}] for i in range(250)]
        found = energy_of(answer(busy, busy))
        held += found.low <= 120.0 <= found.high
    assert 180 <= held <= 199


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"unavailable": "no INA3221 sensor"}, "no INA3221 sensor"),
        (answer([], []), "too few to judge from: 0 readings of INA3221"),
        (answer(samples(lambda t: 9.0)[:6], samples(lambda t: 4.0)), "6 readings"),
        (answer(samples(lambda t: 9.0), []), "0 while idle"),
        # a counter that never moved
        (answer([[i / 50, {"GPU": 5.0}] for i in range(250)], [], unit="mJ"), "too few"),
    ],
)
def test_without_readings_there_is_no_number(given, words):
    found = energy_of(given)
    assert isinstance(found, Absent)
    assert words in found.reason


def told(**more):
    return {
        "resident_mb": 100.0, "peak_mb": 100.0, "restarted": True, "available_mb": 4000,
        "unified": False, "gpu_mb": None, "gpu_used_mb": None, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "mib", "words"),
    [
        (told(), told(peak_mb=180.0), 80.0, "growth of the process since before it was loaded"),
        (told(restarted=False), told(peak_mb=180.0), 80.0, "an upper bound"),
        (
            told(gpu_used_mb=500),
            told(gpu_used_mb=900, gpu_mb=350.0, peak_mb=180.0),
            350.0,
            "GPU memory of the process",
        ),
        (told(gpu_used_mb=500), told(gpu_used_mb=900), 400.0, "growth of the whole GPU's"),
        (
            told(gpu_used_mb=500, unified=True),
            told(gpu_used_mb=900, unified=True, available_mb=3700, peak_mb=180.0),
            300.0,
            "the whole machine has less",
        ),
        (
            told(gpu_used_mb=500, unified=True),
            told(gpu_used_mb=900, unified=True, available_mb=3990, peak_mb=180.0),
            80.0,
            "more than what the machine has less",
        ),
    ],
)
def test_peak_memory(before, after, mib, words):
    found = memory_of(before, after)
    assert isinstance(found, Memory)
    assert found.mb == pytest.approx(mib * 1.048576)
    assert words in found.what
    host = after["peak_mb"] - before["resident_mb"]
    assert found.host_mb == pytest.approx(host * 1.048576)


@pytest.mark.parametrize("more", [{}, {"gpu_used_mb": None, "available_mb": None}])
def test_memory_that_nothing_tells_is_no_number(more):
    nothing = told(resident_mb=None, peak_mb=None, **more)
    found = memory_of(nothing, nothing)
    assert isinstance(found, Absent)
    assert "peak resident" in found.reason


class Place:
    """A worker that grows by 50 MiB as it loads, and whose GPU takes no CUDA graph if `refuses`."""

    label = "board"

    def __init__(self, modes, refuses=()):
        self.about, self.refuses, self.asked, self.is_loaded = {"modes": modes}, refuses, [], False

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.asked.append(("close", {}))

    def inputs(self, arrays):
        assert set(arrays) == {"image"}
        return "in.npz"

    def call(self, op, **values):
        self.asked.append((op, values))
        if op == "memory":
            return told(peak_mb=150.0 if self.is_loaded else 100.0)
        if op == "time" and values["mode"] in self.refuses:
            raise KDError("graph-refused", "no graph")
        return answer(samples(lambda t: 12.0), samples(lambda t: 4.0)) if op == "power" else {}

    def load(self, place, name):
        self.asked.append(("load", {"name": name}))
        self.is_loaded = True
        return {"image": np.zeros((1, 3, 8, 8), np.float32)}


def test_memory_before_loading_comes_first_and_power_last():
    place = Place(["device", "graph", "end_to_end"])
    found = measure(lambda: place, place.load, seconds=3.0, idle_s=1.0)
    assert [op for op, _ in place.asked] == ["memory", "load", "time", "memory", "power", "close"]
    assert place.asked[0][1] == {"restart": True}
    name = place.asked[1][1]["name"]
    assert place.asked[4][1] == {
        "inputs": "in.npz", "name": name, "mode": "graph", "seconds": 3.0, "idle_s": 1.0,
    }  # fmt: skip
    assert found.energy.mj == pytest.approx(120.0)
    assert found.memory.mb == pytest.approx(50 * 1.048576)


def test_a_network_that_takes_no_graph_is_measured_without_one():
    place = Place(["graph", "device"], refuses=["graph"])
    measure(lambda: place, place.load)
    assert [v["mode"] for op, v in place.asked if op in ("time", "power")] == [
        "graph", "device", "device",
    ]  # fmt: skip


def test_a_network_that_does_not_run_is_an_error():
    place = Place(["device"], refuses=["device"])
    with pytest.raises(KDError, match="no graph"):
        measure(lambda: place, place.load)
    assert place.asked[-1][0] == "close"
