"""Played places, clocks and machines to measure on: no test waits or reads a real clock."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.latency.interference import Watch
from kdcompile.latency.sampler import Tools
from kdcompile.latency.subject import Subject
from kdcompile.remote.agent.signals import TICKS_PER_S

START_S = 0.5
CPU = {
    "backend": "onnxruntime", "backend_version": "1.20.0", "python": "3.11.7", "numpy": "2.0.0",
    "platform": "linux x86_64", "module": None, "power_mode": None, "l4t": None, "clocks": {},
    "memory_mb": {"total": 8000, "free": 4000}, "gpu": None,
    "modes": ["device", "end_to_end", "copy_in", "copy_out"], "streams": 32,
    "machine": {"cpu": "Played CPU", "driver_version": None},
}  # fmt: skip
GPU = CPU | {
    "backend": "tensorrt", "backend_version": "8.6.1",
    "modes": ["device", "graph", "end_to_end", "copy_in", "copy_out"],
    "gpu": {"name": "H100", "compute_capability": "9.0", "memory_mb": 80000, "free_mb": 70000},
}  # fmt: skip


class Clock:
    """Seconds that pass only by `pass_`."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


def subject(name="a", **more):
    """An ONNX file that is only a name; its hash is of the name."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    values = {"kind": "onnx", "precision": "fp32", "input_shape": (1, 3, 8, 8)} | more
    return Subject(name, Path(f"{name}.onnx"), sha256, **values)


@dataclass
class Scene:
    """What happens at the place.

    `ms(network, process, number)` is a latency; `power(network)` is the worker's answer;
    `fails(op, process, number)` gives the error of the number-th `op` of a process, or None;
    `disturb` gives what disturbed a block, by the number of the look.
    """

    about: dict = field(default_factory=lambda: dict(CPU))
    ms: object = lambda network, process, number: 1.0
    fails: object = lambda op, process, number: None
    ports: dict = field(
        default_factory=lambda: {"image": {"dtype": "float32", "shape": [-1, 3, -1, -1]}}
    )
    facts: object = lambda process: {"cpu": "played"}
    disturb: object = lambda number: None
    power: object = lambda network: {"unavailable": "no sensor"}
    clock: Clock = field(default_factory=Clock)
    places: list = field(default_factory=list)
    looks: int = 0

    def open(self, via, backend):
        self.clock.pass_(START_S)
        self.places.append(PlayedPlace(self, len(self.places), backend))
        return self.places[-1]

    def watch(self, place, past):
        return PlayedWatch(self)

    def look(self, place):
        return {"facts": self.facts(place.process), "state": {"load_average": [0.1]}}

    def tools(self):
        return Tools(self.open, self.watch, self.look, self.clock)


class PlayedWatch(Watch):
    def __init__(self, scene):
        super().__init__(None)
        self.scene = scene

    def reason(self):
        self.scene.looks += 1
        return self.scene.disturb(self.scene.looks)


class PlayedPlace:
    """A worker whose networks are named after their files."""

    label = "board"

    def __init__(self, scene, process, backend):
        self.scene, self.process, self.backend = scene, process, backend
        self.about, self.asked, self.networks, self.is_open = scene.about, [], {}, True
        self.timed, self.loads = [], []

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.is_open = False

    def asks(self, op):
        return any(asked == op for asked, _ in self.asked)

    def put(self, path):
        return f"blobs/{path.stem}"

    def path(self, name):
        return f"work/{name}"

    def inputs(self, arrays):
        self.arrays = arrays
        return "in.npz"

    def call(self, op, **values):
        assert self.is_open
        number = sum(asked == op for asked, _ in self.asked)
        self.asked.append((op, values))
        error = self.scene.fails(op, self.process, number)
        if error is not None:
            raise error
        return getattr(self, f"_{op}")(**values)

    def _build(self, onnx, engine, precision, profile):
        self.scene.clock.pass_(30.0)
        return {"sha256": hashlib.sha256(engine.encode()).hexdigest()}

    def _remove(self, path):
        return {}

    def _load(self, path, name, graph, expected=None, threads=None):
        self.threads = threads
        self.networks[name] = Path(path).name
        self.loads.append(name)
        return {"inputs": self.scene.ports}

    def _memory(self, restart=False):
        """A network takes 20 MiB of the process, which has 100 without one."""
        told = {"resident_mb": 100.0, "peak_mb": 100.0 + 20.0 * len(self.networks)}
        nothing = dict.fromkeys(("available_mb", "gpu_mb", "gpu_used_mb"))
        return told | nothing | {"restarted": restart, "unified": False}

    def _power(self, inputs, name, mode, seconds, idle_s):
        return self.scene.power(self.networks[name])

    def _time(self, inputs, iterations, warmup, name, mode, samples=False, streams=1):
        if mode not in self.about["modes"]:
            raise KDError("mode-refused", f"no mode {mode}")
        network = self.networks[name]
        ms = [self.scene.ms(network, self.process, i) for i in range(warmup + iterations)]
        self.scene.clock.pass_(sum(ms) / 1000 / streams)
        self.timed.append((name, iterations))
        kept = ms[warmup:]
        if streams > 1:
            clock = "wall" if self.about["gpu"] is None else "device"
            return {"samples": {clock: kept}, "per_second": 1000 * streams / np.mean(kept)}
        if mode in ("end_to_end", "copy_in", "copy_out"):
            return {"samples": {"end_to_end": kept}}
        if self.about["gpu"] is None:
            return {"samples": {"wall": kept}}
        return {"samples": {"device": kept, "wall": [value + 0.5 for value in kept]}}


def noisy(share=0.01, seed=0, **ms):
    """Latencies by network, each with relative normal noise."""
    rng = np.random.default_rng(seed)
    return lambda network, process, number: ms[network] * (1 + share * rng.standard_normal())


class Machine:
    """A tree of `/proc` and `/sys` of two CPUs and the process 7, written anew as time passes."""

    def __init__(self, root):
        self.root = root
        self.busy = self.idle = self.steal = self.own = self.wait = self.held = 0.0
        self.switches = self.throttles = 0
        self.khz, self.gpu_hz = 2_000_000, 1_000_000_000
        self.idle = 1000.0  # since it started
        self.write()

    def pass_(self, seconds, *, own=1.0, others=0.0, wait=0.0, steal=0.0, held=0.0):
        """`own`, `others` and `steal` are CPUs that were had; `wait` and `held` shares of time."""
        self.busy += seconds * (own + others)
        self.steal += seconds * steal
        self.idle += seconds * (2 - own - others - steal)
        self.own, self.wait = self.own + seconds * own, self.wait + seconds * wait
        self.held += seconds * held
        self.write()

    def put(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def write(self):
        def ticks(seconds):
            return round(seconds / 2 * TICKS_PER_S)

        columns = f"{ticks(self.busy)} 0 0 {ticks(self.idle)} 0 0 0 {ticks(self.steal)} 0 0"
        lines = [f"cpu{n} {columns}" for n in (0, 1)]
        self.put("proc/stat", "\n".join([f"cpu  {columns}", *lines, "cpu2 9 9 9 9 9 9 9 9 9 9"]))
        self.put("proc/7/task/7/schedstat", f"{self.own * 1e9:.0f} {self.wait * 1e9:.0f} 5")
        self.put("proc/7/task/7/status", f"Name: x\nnonvoluntary_ctxt_switches:\t{self.switches}")
        self.put("proc/7/cgroup", "0::/")
        self.put("sys/fs/cgroup/cpu.stat", f"nr_throttled 1\nthrottled_usec {self.held * 1e6:.0f}")
        for n in (0, 1):
            folder = f"sys/devices/system/cpu/cpu{n}"
            self.put(f"{folder}/cpufreq/scaling_cur_freq", self.khz if n else 800_000)
            self.put(f"{folder}/thermal_throttle/core_throttle_count", self.throttles)
        self.put("sys/class/devfreq/17000000.ga10b/cur_freq", self.gpu_hz)
        self.put("sys/class/devfreq/mc/cur_freq", 3_000_000_000)
