"""What the real worker tells of a Jetson, whose `/proc` and `/sys` are laid out in a folder."""

import onnx
import onnx_graphs
import pytest
from jetson_tree import JetsonTree
from sshd import running_sshd

from kdcompile.core.errors import KDError
from kdcompile.latency.baseline import make_baseline
from kdcompile.latency.compare import Measurement, Plan
from kdcompile.latency.environment import look
from kdcompile.latency.interference import COOLING, LEAST, Past, watch_of
from kdcompile.latency.settings import Effort, Mode
from kdcompile.latency.subject import find_subject
from kdcompile.remote.agent.machine import THREADS
from kdcompile.remote.open import open_place

MAXN = {"cpu_khz": 1728000, "gpu_hz": 1020000000, "emc_hz": 3199000000}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    return JetsonTree(tmp_path, "nano", monkeypatch)


@pytest.fixture
def place(tree):
    with open_place(tree.place, "onnxruntime") as opened:
        yield opened


@pytest.mark.parametrize(
    ("kind", "cores", "gpu", "zone"),
    [("nano", 6, "17000000.gpu", "gpu-thermal"), ("agx", 12, "17000000.ga10b", "GPU-therm")],
)
def test_what_a_board_is_set_to_and_how_it_is(tmp_path, monkeypatch, kind, cores, gpu, zone):
    tree = JetsonTree(tmp_path, kind, monkeypatch)
    with open_place(tree.place, "onnxruntime") as place:
        found = look(place)
    facts, state = found["facts"], found["state"]
    assert "Orin" in facts["module"]
    assert facts["cpu"] == facts["module"]  # its /proc/cpuinfo has no name
    assert facts["l4t_version"].startswith("# R3")
    assert (facts["power_mode"], facts["cores"]) == ("NV Power Mode: 15W 0", cores)
    limits = (facts["governor"], facts["cpu_min_hz"], facts["cpu_max_hz"])
    assert limits == ("schedutil", 729_600_000, 1_510_400_000)
    assert facts["clock_limits"] == {
        gpu: {"governor": "nvhost_podgov", "min_hz": 306_000_000, "max_hz": 624_750_000},
        "nvpmodel.emc": 2_133_000_000,
    }
    assert state["celsius"][zone] == 51.5
    assert len(state["celsius"]) == 3  # and not of the engine that is off
    assert (state["power_w"], state["load_average"]) == ({"VDD_IN": 6.0}, [0.5, 0.4, 0.3])
    assert (state["gpu_hz"], state["gpu_busy_percent"]) == (624_750_000, 97.0)
    assert "throttling" not in state  # a fan is none
    assert (state["memory_mb"], state["free_memory_mb"]) == (7620, 5000)


def test_what_disturbs_a_block_at_a_board(tree, place):
    def block(others=0.0, seconds=10.0):
        watch.begin()
        tree.pass_(seconds, others)
        return watch.reason()

    watch = watch_of(place, Past())
    assert [block() for _ in range(LEAST)] == [None] * LEAST
    assert block(others=0.4) == "other processes took the CPUs"
    tree.put(f"{tree.gpu}/cur_freq", 510_000_000)
    assert block() == "the GPU's clock fell"
    tree.put(f"{tree.gpu}/cur_freq", 624_750_000)
    tree.put("sys/class/thermal/cooling_device1/cur_state", 1)
    assert block() == COOLING
    tree.put("sys/class/thermal/cooling_device1/cur_state", 0)
    watch.begin()
    tree.put("sys/class/hwmon/hwmon4/oc1_event_cnt", 1)
    assert watch.reason() == "throttling began"
    assert block() is None


def test_the_watch_asks_for_no_slow_sensor(place):
    assert not {"celsius", "power_w"} & place.call("signals", with_sensors=False).keys()
    assert {"celsius", "power_w"} <= place.call("signals").keys()


@pytest.fixture
def network(tmp_path):
    graph = onnx_graphs.Graph(0)
    onnx.save(graph.model(graph.conv("c", "image", 3, 4)), tmp_path / "net.onnx")
    return find_subject(tmp_path / "net.onnx", "onnxruntime")


def test_a_baseline_of_another_power_mode_is_refused(tree, network, tmp_path):
    plan = Plan(tree.place, Effort(processes=1, samples=12), Mode(), runs=3)
    (samples,) = Measurement([network], plan).all_runs()
    file = tmp_path / "base.json"
    kept = make_baseline(samples, network.path, file, "who", "why")
    assert samples.runs[0].environment["state"]["watched"]["the GPU's clock fell"] == 624_750_000
    tree.mode("MAXN", **MAXN)
    with pytest.raises(KDError) as caught:
        Measurement([network], plan, kept.record, str(file)).run(plan.effort)
    assert caught.value.code == "baseline-foreign"
    for change in (
        "power_mode: NV Power Mode: 15W 0 -> NV Power Mode: MAXN 0",
        "cpu_max_hz: 1510400000 -> 1728000000",
        "clock_limits.17000000.gpu.max_hz: 624750000 -> 1020000000",
        "clock_limits.nvpmodel.emc: 2133000000 -> 3199000000",
    ):
        assert change in caught.value.message
    # jetson_clocks alone changes no mode, but the lower limit
    tree.mode("15W", cpu_khz=1510400, gpu_hz=624750000, emc_hz=2133000000)
    tree.put(f"{tree.gpu}/min_freq", 624750000)
    with pytest.raises(KDError, match=r"clock_limits\.17000000\.gpu\.min_hz: 306000000 -> "):
        Measurement([network], plan, kept.record, str(file)).run(plan.effort)
    # the fix: as it was, the same baseline is taken again
    tree.put(f"{tree.gpu}/min_freq", 306000000)
    Measurement([network], plan, kept.record, str(file)).run(plan.effort)


def test_a_mode_that_changes_between_two_processes_ends_the_run(tree, network):
    plan = Plan(tree.place, Effort(processes=2, samples=12), Mode())
    work = Measurement([network], plan)
    work.on_first = lambda found: tree.mode("MAXN", **MAXN)
    effort = Effort(processes=2, seconds=20.0)
    with pytest.raises(KDError, match="power_mode: NV Power Mode: 15W 0 -> NV Power Mode: MAXN 0"):
        work.run(effort)


def test_over_ssh_a_board_is_watched_and_described_alike(tmp_path, monkeypatch):
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    with running_sshd(tmp_path) as server:
        monkeypatch.setenv("KDCOMPILE_SSH_CONFIG", str(server.config))
        with open_place(server.via(), "onnxruntime") as place:
            facts = look(place)["facts"]
            told = place.call("signals", with_sensors=False)
            watch = watch_of(place, Past())
            watch.begin()
            assert watch.reason() is None  # nothing is unusual at first
    assert {"busy_s", "total_s", "own_s"} <= told.keys()
    with open_place(None, "onnxruntime") as place:
        assert facts == look(place)["facts"]  # the server runs on this machine
