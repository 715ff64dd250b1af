"""Energy and memory that a board's kit read, judged at home from its readings."""

from contextlib import suppress
from dataclasses import replace

import pytest
from played_board import GATES, KIT, NANO, host_report, record

from kdcompile.config.spec import Gates
from kdcompile.core.errors import KDError
from kdcompile.core.report import GateResult
from kdcompile.gates.from_board import NO_USAGE, judge_board

HOSTILE = [None, True, -1, 1e308, 10**400, "", "x" * 20_000, [], {}, [[]], {"a": {}}]


@pytest.fixture
def device():
    return record("3" * 64)


def with_usage(device, power=None, **more):
    """A record whose board told that int8 takes 6 W for 2 ms, 12 mJ, and 300 MiB of the module."""
    settings = {"energy_mj": {"max": 12.5}, "memory_mb": {"max": 320}}
    gates = GATES | Gates.model_validate(settings).model_dump(mode="json", include=set(settings))
    samples = [[i / 50, {"VDD_IN": 6000.0}] for i in range(250)]
    memory = {"resident_mb": 90.0, "peak_mb": 90.0, "restarted": True, "available_mb": 4000,
              "unified": True, "gpu_mb": None, "gpu_used_mb": 2000}  # fmt: skip
    device["usage"] = {
        "precision": "int8", "mode": "graph", "before": memory,
        "after": memory | {"peak_mb": 120.0, "available_mb": 3700},
        "power": power or {
            "source": "INA3221", "unit": "mW", "mode": "graph", "graph": True,
            "idle": {"samples": samples[:100]},
            "busy": {"samples": samples, "seconds": 5.0, "inferences": 2500},
        },
    } | more  # fmt: skip
    host = host_report()
    waiting = [
        GateResult(f"{name}@device", "pending", "device", True, "a limit", "not yet", "wait")
        for name in settings
    ]
    skipped = GateResult("memory_mb", "skipped", "host", True, "a limit", "no reading", "no Jetson")
    return replace(host, gates=(*host.gates, skipped, *waiting)), gates


def verdicts(report):
    return {gate.name: gate.verdict for gate in report.gates}


def gate_of(report, name):
    return next(gate for gate in report.gates if gate.name == name)


def test_energy_and_memory_are_judged_from_the_boards_readings(device):
    host, gates = with_usage(device)
    report, _ = judge_board(host, KIT, gates, device, "device.json")
    assert (report.verdict, report.exit_code) == ("passed", 0)
    energy, memory = (gate_of(report, f"{n}@device") for n in ("energy_mj", "memory_mb"))
    assert (energy.verdict, energy.evidence) == ("passed", "device")
    assert energy.observed.startswith("12 mJ (12 to 12)")
    assert (memory.verdict, memory.observed) == ("passed", "314.6 MB")
    # this machine has none to read: the board's verdict is the only one
    assert "memory_mb" not in verdicts(report)
    numbers = {m.name: m for m in report.measurements}
    assert numbers["energy of an inference"].value == pytest.approx(12.0)
    assert numbers["peak memory"].machine == NANO["module"]
    # what the board was set to is told with them
    assert report.environment["device"]["machine"] == NANO["machine"]


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        (lambda u: u["power"]["busy"].update(inferences=2000), "energy_mj", "failed"),
        (lambda u: u["after"].update(available_mb=3600), "memory_mb", "failed"),
        (
            lambda u: [s[1].update(VDD_IN=6000.0 + i * 2)
                       for i, s in enumerate(u["power"]["busy"]["samples"])],
            "energy_mj", "inconclusive",
        ),
        (lambda u: u.update(power={"unavailable": "no INA3221 sensor"}), "energy_mj", "skipped"),
        (lambda u: u["after"].update(available_mb=None, peak_mb=None), "memory_mb", "skipped"),
    ],
)  # fmt: skip
def test_readings_that_do_not_pass(device, change, name, verdict):
    host, gates = with_usage(device)
    change(device["usage"])
    report, _ = judge_board(host, KIT, gates, device, "device.json")
    assert gate_of(report, f"{name}@device").verdict == verdict
    assert report.exit_code == (3 if verdict == "failed" else 5)


def test_a_worker_that_could_not_read_is_told(device):
    host, gates = with_usage(device)
    device["usage"] = {"absent": "cuda-error: out of memory", "precision": "int8"}
    report, _ = judge_board(host, KIT, gates, device, "device.json")
    found = gate_of(report, "energy_mj@device")
    assert (found.verdict, found.reason) == ("skipped", "on the board: cuda-error: out of memory")


def test_a_kit_that_read_neither_leaves_both_pending(device):
    host, gates = with_usage(device)
    del device["usage"]
    report, _ = judge_board(host, KIT, gates, device, "device.json")
    found = gate_of(report, "memory_mb@device")
    assert (found.verdict, found.reason) == ("pending", NO_USAGE)
    assert gate_of(report, "memory_mb").verdict == "skipped"


@pytest.mark.parametrize(
    "change",
    [
        lambda u: u.update(precision="fp16"),  # another engine's
        lambda u: u["power"]["busy"]["samples"].reverse(),
        lambda u: u["power"]["busy"]["samples"].append([5.0, {"VDD_IN": -1.0}]),
        lambda u: u["power"]["busy"].update(inferences=0),
        lambda u: u["power"]["busy"].update(seconds=0.0),
        lambda u: u["power"].update(unit="kW"),
        lambda u: u["power"].update(mode="none"),
        lambda u: u["power"].update(
            unit="mJ", busy={"seconds": 5.0, "inferences": 9,
                             "samples": [[i, {"GPU": 1e6 - i}] for i in range(100)]},
        ),
        lambda u: u["after"].update(unified=1),
        lambda u: u["before"].pop("resident_mb"),
    ],
)  # fmt: skip
def test_readings_without_the_form_are_refused(device, change):
    host, gates = with_usage(device)
    change(device["usage"])
    with pytest.raises(KDError) as caught:
        judge_board(host, KIT, gates, device, "device.json")
    assert caught.value.code == "device-invalid"


@pytest.mark.parametrize(
    "value", [None, 3, [], {"governor": {"a": {"b": {}}}}, {"a": "x" * 20_000}]
)
def test_settings_without_the_form_are_refused(device, value):
    host, gates = with_usage(device)
    device["environment"]["machine"] = value
    with pytest.raises(KDError, match=r"environment\.machine"):
        judge_board(host, KIT, gates, device, "device.json")


USAGE_PLACES = [
    ("precision",), ("before",), ("after", "peak_mb"), ("power",), ("power", "idle"),
    ("power", "busy", "samples"), ("power", "busy", "samples", 3),
    ("power", "busy", "samples", 3, 0), ("power", "busy", "samples", 3, 1),
    ("power", "busy", "samples", 3, 1, "VDD_IN"), ("power", "source"),
]  # fmt: skip


@pytest.mark.parametrize("place", USAGE_PLACES, ids=lambda place: "-".join(map(str, place)))
def test_hostile_readings_end_as_errors_or_verdicts(device, place):
    for value in HOSTILE:
        host, gates = with_usage(device)
        inner = device["usage"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        with suppress(KDError):
            report, _ = judge_board(host, KIT, gates, device, "device.json")
            assert report.verdict
