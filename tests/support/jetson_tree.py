"""`/proc` and `/sys` of Jetson boards as their JetPack lays them out, in a folder."""

import os
import sys
from pathlib import Path

from kdcompile.remote.agent.machine import affinity
from kdcompile.remote.agent.signals import TICKS_PER_S

CLUSTERS = {"nano": range(6), "agx": range(12)}
GPU = {"nano": "17000000.gpu", "agx": "17000000.ga10b"}  # JetPack 6, JetPack 5
ZONES = {"nano": ("cpu-thermal", "gpu-thermal", "tj-thermal", "cv0-thermal"),
         "agx": ("CPU-therm", "GPU-therm", "Tboard_tegra", "CV0-therm")}  # fmt: skip
MODEL = {
    "nano": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "agx": "Jetson AGX Orin Developer Kit\0",
}
L4T = {"nano": "# R36 (release), REVISION: 4.0", "agx": "# R35 (release), REVISION: 5.0"}
# sitecustomize of the worker's interpreter: the real worker, but for what it takes for /
CUSTOM = """
import builtins
real = builtins.compile
def compile_(source, name, *more, **named):
    if name == "kdcompile/remote/agent/worker.py":
        old = b'root = "/"'
        assert source.count(old) == 1
        source = source.replace(old, b"root = {root!r}")
    return real(source, name, *more, **named)
builtins.compile = compile_
"""
NVPMODEL = '#!/bin/sh\ncat "{root}/nvpmodel.txt"\n'


class JetsonTree:
    """An Orin Nano of JetPack 6 (`nano`) or an AGX Orin of JetPack 5 (`agx`).

    `place` is the `--via` of a worker that takes the folder for its machine.
    """

    place = f"python:{sys.executable}"

    def __init__(self, folder: Path, kind: str, monkeypatch) -> None:
        self.root, self.kind, self.gpu = folder / "root", kind, f"sys/class/devfreq/{GPU[kind]}"
        self.put("proc/device-tree/model", MODEL[kind])
        self.put("etc/nv_tegra_release", L4T[kind])
        self.put("proc/meminfo", "MemTotal: 7802880 kB\nMemAvailable: 5120000 kB")
        self.put("proc/loadavg", "0.50 0.40 0.30 1/99 1234")
        self.put("sys/devices/system/cpu/online", f"0-{len(CLUSTERS[kind]) - 1}")
        self.busy = self.idle = self.own = 0.0
        self.pass_(100.0)
        for n in CLUSTERS[kind]:
            self.put(f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor", "schedutil")
            self.put(f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_min_freq", 729600)
            self.put(f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq", 1344000)
        self.put(f"{self.gpu}/governor", "nvhost_podgov")
        self.put(f"{self.gpu}/min_freq", 306000000)
        self.put(f"{self.gpu}/device/load", 970)
        self.put("sys/class/hwmon/hwmon4/oc1_event_cnt", 0)
        for number, name in enumerate(ZONES[kind]):
            self.put(f"sys/class/thermal/thermal_zone{number}/type", name)
            self.put(f"sys/class/thermal/thermal_zone{number}/temp", 51000 + 500 * number)
        off = self.root / "sys/class/thermal/thermal_zone3/temp"
        off.unlink()
        off.mkdir()  # of an engine without power: it is there, and reading it fails
        for number, (name, state) in enumerate((("pwm-fan", 2), ("cpu-throttle-alert", 0))):
            self.put(f"sys/class/thermal/cooling_device{number}/type", name)
            self.put(f"sys/class/thermal/cooling_device{number}/cur_state", state)
        sensor = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
        for name, text in (("in1_label", "VDD_IN"), ("in1_input", 5000), ("curr1_input", 1200)):
            self.put(f"{sensor}/{name}", text)
        self.mode("15W", cpu_khz=1510400, gpu_hz=624750000, emc_hz=2133000000)
        self._install(folder, monkeypatch)

    def _install(self, folder: Path, monkeypatch) -> None:
        """For every interpreter that starts from here on."""
        custom, programs = folder / "custom", folder / "programs"
        custom.mkdir()
        programs.mkdir()
        (custom / "sitecustomize.py").write_text(CUSTOM.format(root=str(self.root)))
        program = programs / "nvpmodel"
        program.write_text(NVPMODEL.format(root=self.root))
        program.chmod(0o755)
        monkeypatch.setenv("PYTHONPATH", str(custom))
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("KDCOMPILE_CACHE", str(folder / "there"))

    def put(self, path, text) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def mode(self, name, *, cpu_khz, gpu_hz, emc_hz) -> None:
        """What nvpmodel sets, and says that it has set."""
        (self.root / "nvpmodel.txt").write_text(f"NV Power Mode: {name}\n0\n")
        for n in CLUSTERS[self.kind]:
            self.put(f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_max_freq", cpu_khz)
        self.put(f"{self.gpu}/max_freq", gpu_hz)
        self.put(f"{self.gpu}/cur_freq", gpu_hz)
        self.put("sys/kernel/nvpmodel_clk_cap/emc", emc_hz)

    def pass_(self, seconds, others=0.0) -> None:
        """Time in which the worker has half of each CPU, and others the given share."""
        self.busy, self.idle = (
            self.busy + seconds * (0.5 + others),
            self.idle + seconds * (0.5 - others),
        )
        self.own += seconds * 0.5 * len(affinity())
        ticks = [round(seconds * TICKS_PER_S) for seconds in (self.busy, self.idle)]
        columns = f"{ticks[0]} 0 0 {ticks[1]} 0 0 0 0 0 0"
        self.put("proc/stat", "\n".join(f"cpu{n} {columns}" for n in CLUSTERS[self.kind]))
        self.put("proc/self/task/1/schedstat", f"{self.own * 1e9:.0f} 0 5")
        self.put("proc/self/task/1/status", "nonvoluntary_ctxt_switches:\t0")
