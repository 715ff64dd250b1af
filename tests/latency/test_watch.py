"""Disturbances, on machines that are played in a folder."""

import pytest
from benching import Clock, Machine

from kdcompile.backends import nvidia_smi
from kdcompile.latency.interference import (
    COOLING,
    LEAST,
    Past,
    Watch,
    rates,
)
from kdcompile.remote.agent.signals import sensors, signals

BLOCK_S = 0.8  # long against a tick of /proc/stat, so that shares come out exactly
CALM = {"own": 1.0, "others": 0.1}


class Read(dict):
    """Signals; what nothing tells is None."""

    __getattr__ = dict.get


def read(root, pids, cpus):
    return Read(signals(str(root), pids, cpus))


class Bench:
    """A watch over the played machine, and blocks on it."""

    def __init__(self, root):
        self.machine, self.clock = Machine(root), Clock()
        look = lambda: read(root, (7,), (0, 1))  # noqa: E731
        self.watch = Watch(look, self.clock)

    def block(self, seconds=BLOCK_S, **what):
        self.watch.begin()
        self.clock.pass_(seconds)
        self.machine.pass_(seconds, **(CALM | what))
        return self.watch.reason()

    def calm(self, count=LEAST):
        assert [self.block() for _ in range(count)] == [None] * count
        return self


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.mark.parametrize(("what", "reason"), [
    ({"others": 0.9}, "other processes took the CPUs"),
    ({"wait": 0.3}, "the process waited for a CPU"),
    ({"steal": 0.5}, "the host took the CPUs (steal)"),
    ({"held": 0.2}, "the control group's quota held it back"),
])  # fmt: skip
def test_load_that_comes_disturbs_its_block_alone(bench, what, reason):
    bench.calm()
    assert bench.block(**what) == reason
    assert bench.block() is None


@pytest.mark.parametrize("what", [{"others": 0.25}, {"wait": 0.05}, {"steal": 0.1}])
def test_a_little_more_is_no_disturbance(bench, what):
    assert bench.calm().block(**what) is None


def test_a_load_that_is_always_there_is_the_machines_state(bench):
    busy = {"others": 0.9, "wait": 0.6}
    assert [bench.block(**busy) for _ in range(6)] == [None] * 6
    assert bench.watch._past.to_json()["other processes took the CPUs"] == 0.45


def test_nothing_is_unusual_before_there_is_a_usual(bench):
    assert bench.block() is None
    assert bench.block(others=0.9) is None


def test_clocks_that_fall(bench):
    bench.calm()
    bench.machine.khz = 1_920_000
    assert bench.block() is None  # by 4 %
    bench.machine.khz = 1_880_000
    assert bench.block() == "the CPU's clock fell"  # by 6 %
    bench.machine.khz = 1_500_000
    assert bench.block() == "the CPU's clock fell"
    bench.machine.khz = 2_000_000
    bench.machine.gpu_hz = 800_000_000
    assert bench.block() == "the GPU's clock fell"


def test_throttling_that_begins(bench):
    bench.calm()
    bench.machine.throttles += 1
    assert bench.block() == "throttling began"
    assert bench.block() is None


def test_switches_count_by_the_second(bench):
    bench.calm()
    bench.machine.switches += 10
    assert bench.block(0.02) == "it was taken off a CPU more often"
    bench.machine.switches += 10
    assert bench.block(0.2) is None


def test_a_past_is_shared_by_the_processes_of_a_run():
    past = Past()
    for _ in range(LEAST):
        assert not past.exceeds("throttling began", 0.0)
    assert past.exceeds("throttling began", 1.0)
    assert past.to_json() == {"throttling began": 0.0}


def test_rates_of_what_nothing_tells_are_absent():
    assert rates({}, {}, 1.0) == {}
    only = rates({"switches": 5.0}, {"switches": 9.0}, 2.0)
    assert only == {"it was taken off a CPU more often": 2.0}
    # a counter that was reset, and no time
    assert rates({"quota_s": 5.0}, {"quota_s": 0.0}, 1.0) == {
        "the control group's quota held it back": 0.0
    }
    assert rates({"quota_s": 5.0}, {"quota_s": 6.0}, 0.0) == {}


def test_a_machine_that_tells_nothing_is_never_disturbed(tmp_path):
    watch = Watch(lambda: read(tmp_path, (7,), (0, 1)), Clock())
    for _ in range(5):
        watch.begin()
        assert watch.reason() is None
    assert read(tmp_path, (7,), (0, 1)) == {}


def test_a_reading_is_of_the_given_cpus_and_process(tmp_path):
    machine = Machine(tmp_path)
    machine.pass_(10.0, own=1.0, others=0.2, wait=0.1, steal=0.1)
    found = read(tmp_path, (7,), (0, 1))
    assert (found.busy_s, found.total_s, found.steal_s) == pytest.approx((12.0, 1020.0, 1.0))
    assert (found.own_s, found.wait_s) == pytest.approx((10.0, 1.0))
    assert (found.cpu_hz, found.gpu_hz) == (2e9, 1e9)
    assert read(tmp_path, (7,), (0,)).cpu_hz == 8e8


def test_without_the_schedulers_statistics_ticks_stand_in(tmp_path):
    machine = Machine(tmp_path)
    (tmp_path / "proc/7/task/7/schedstat").unlink()
    fields = ["R"] + ["0"] * 10 + ["250", "50"] + ["0"] * 30
    machine.put("proc/7/stat", f"7 (a ) name) {' '.join(fields)}")
    found = read(tmp_path, (7,), (0, 1))
    assert (found.own_s, found.wait_s) == (3.0, None)


@pytest.mark.parametrize(("line", "folder", "text"), [
    ("0::/ci/job", "ci/job", "throttled_usec 2500000"),
    ("0::/of/the/host", "", "throttled_usec 2500000"),
    ("4:cpu,cpuacct:/job\n0::/", "cpu,cpuacct/job", "throttled_time 2500000000"),
    ("9:memory:/x\n4:cpu:/", "cpu", "throttled_time 2500000000"),
])  # fmt: skip
def test_the_quota_is_read_in_both_generations(tmp_path, line, folder, text):
    machine = Machine(tmp_path)
    (tmp_path / "sys/fs/cgroup/cpu.stat").unlink()
    machine.put("proc/7/cgroup", line)
    machine.put(f"sys/fs/cgroup/{folder}/cpu.stat", f"nr_periods 9\n{text}")
    assert read(tmp_path, (7,), (0,)).quota_s == 2.5


def test_temperatures_and_a_jetsons_over_current_events(tmp_path):
    machine = Machine(tmp_path)
    machine.put("sys/class/thermal/thermal_zone0/type", "cpu-thermal")
    machine.put("sys/class/thermal/thermal_zone0/temp", "48500")
    machine.put("sys/class/thermal/thermal_zone1/temp", "unreadable")
    machine.put("sys/class/hwmon/hwmon3/oc1_event_cnt", "2")
    assert sensors(str(tmp_path))["celsius"] == {"cpu-thermal": 48.5}
    assert read(tmp_path, (7,), (0, 1)).throttle_events == 2


def test_what_cools_by_slowing_disturbs_and_a_fan_does_not(bench):
    def cool(number, kind, state):
        folder = f"sys/class/thermal/cooling_device{number}"
        bench.machine.put(f"{folder}/type", kind)
        bench.machine.put(f"{folder}/cur_state", state)

    cool(0, "pwm-fan", 0)
    cool(1, "cpufreq-cpu0", 1)
    cool(2, "intel_powerclamp", -1)  # off
    bench.calm()
    cool(0, "pwm-fan", 3)
    assert bench.block() is None
    cool(1, "cpufreq-cpu0", 2)
    assert bench.block() == COOLING
    assert sensors(str(bench.machine.root))["throttling"] == ["cpufreq-cpu0"]


def test_a_query_that_a_driver_does_not_know_costs_only_its_field():
    def ask(options):
        fields = options[0].partition("=")[2].split(",")
        if "clocks.max.sm" in fields:
            return 'Field "clocks.max.sm" is not a valid field to query.\n' * (len(fields) == 1)
        return ", ".join({"name": "H100", "power.limit": "[N/A]"}[f] for f in fields) + "\n"

    assert nvidia_smi.query(["name", "clocks.max.sm", "power.limit"], ask) == {
        "name": "H100", "clocks.max.sm": 'Field "clocks.max.sm" is not a valid field to query.',
    }  # fmt: skip


def test_the_first_gpu_that_cuda_sees_is_asked(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "--id=0" in nvidia_smi.command([])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc,1")
    assert "--id=GPU-abc" in nvidia_smi.command([])
    monkeypatch.setenv("PATH", "")
    assert nvidia_smi.ask(["--query-gpu=name"]) == ""
    assert nvidia_smi.processes() is None


def test_flags_of_a_card_elsewhere_are_told_by_its_worker():
    told = {"gpu_hz": 1.98e9, "gpu_flags": 0x01, "celsius": {"a": 1.0}}  # 0x01: it is idle
    clock = Clock()
    watch = Watch(lambda: told, clock)

    def block():
        watch.begin()
        clock.pass_(0.1)
        return watch.reason()

    assert [block() for _ in range(LEAST)] == [None] * LEAST
    told["gpu_flags"] = 0x21
    assert block() == "the GPU throttles: temperature"
    told |= {"gpu_flags": 0x01, "gpu_hz": 1.5e9}
    assert block() == "the GPU's clock fell"
