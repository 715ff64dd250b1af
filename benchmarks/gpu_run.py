"""Run the battery for some minutes: go on where it stopped, the most valuable step first.

Nothing here needs a package. Each step has a time limit of its own and runs in processes of its
own group, which end with it. The state is written after each step and what is brought back every
few seconds, so that a command that is killed leaves what it had.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_files
from gpu_steps import ROOT, STEPS, Command, Place, Step, reason_to_skip, script

DONE = ("passed", "skipped", "failed")
BACK_EVERY = 10.0  # seconds
RESERVE = 6.0  # seconds to write what is left
LEAST = 5.0  # seconds that a step is begun with
TRIES = 3  # of a step that its limit cuts off
PRESENT = ("torch", "triton", "numpy", "scipy", "onnx", "onnxruntime", "PIL", "matplotlib")


@dataclass
class Battery:
    """The state of the steps, kept in the work folder.

    place: where it runs. out: the folder that comes back. end: of this call, by the monotonic
    clock.
    """

    place: Place
    out: Path
    end: float

    def __post_init__(self) -> None:
        path = self.place.work / gpu_files.STATE
        self.state: dict[str, Any] = {"backend": self.place.backend, "steps": {}}
        if path.is_file():
            self.state = json.loads(path.read_text())
        if self.state["backend"] != self.place.backend:
            raise SystemExit(f"{path} is of the backend {self.state['backend']}")

    def run(self, names: Sequence[str]) -> int:
        """Do what is not done; the exit code: 0 all done, 5 something remains, 1 a step failed."""
        for name in names:
            found = self.state["steps"].get(name, {})
            if found.get("status") in DONE:
                continue
            if reason := reason_to_skip(STEPS[name], self.place):
                self._keep(name, {"status": "skipped", "reason": reason, "seconds": 0.0})
            elif self.left() < LEAST:
                break
            else:
                self._one(STEPS[name], found)
        self._bring(with_kept=True)
        print(self.table(names))
        states = [self.state["steps"].get(name, {}).get("status") for name in names]
        return 1 if "failed" in states else 0 if all(s in DONE for s in states) else 5

    def left(self) -> float:
        """Seconds that a step may take now."""
        return self.end - RESERVE - time.monotonic()

    def table(self, names: Sequence[str]) -> str:
        """What became of each step; one that was skipped did not pass."""
        lines, count = [], dict.fromkeys(("passed", "failed", "skipped", "remains"), 0)
        for name in names:
            found = self.state["steps"].get(name, {"status": "remains"})
            status = found["status"]
            count[status] += 1
            told = f"{found.get('seconds', 0.0):7.1f} s  {found.get('reason', '')}"
            lines.append(f"{name:<12} {status:<8} {told}".rstrip())
        lines.append(", ".join(f"{number} {status}" for status, number in count.items()))
        return "\n".join(lines)

    def _one(self, step: Step, before: dict[str, Any]) -> None:
        """Run a step's commands within its limit."""
        begun, tries = time.monotonic(), before.get("tries", 0) + 1
        limit = begun + min(step.seconds, self.left())
        status, reason = "passed", ""
        self._log(f"\n== {step.name}, try {tries}\n")
        for command in step.commands(self.place):
            code = self._command(command, limit)
            if code in (None, 5):
                last = tries >= TRIES
                status, reason = ("failed" if last else "remains"), f"stopped in try {tries}"
                break
            if code:
                status, reason = "failed", f"exit code {code}"
                break
        if step.tests and status == "passed" and self._skipped_all(step):
            status, reason = "skipped", "every test skipped itself: the log says why"
        seconds = before.get("seconds", 0.0) + time.monotonic() - begun
        self._keep(step.name, {"status": status, "reason": reason, "seconds": seconds,
                               "tries": tries})  # fmt: skip

    def _command(self, command: Command, limit: float) -> int | None:
        """The exit code, None where the limit came first; the output goes to the log."""
        with (self.place.work / gpu_files.LOG).open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.place.work, env=self._environment(), stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            brought = time.monotonic()
            try:
                while process.poll() is None and time.monotonic() < limit:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(min(0.5, max(0.01, limit - time.monotonic())))
                    if time.monotonic() - brought > BACK_EVERY:
                        with contextlib.suppress(OSError):  # of a file that the step moves away
                            self._bring()
                        brought = time.monotonic()
                return process.poll()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _environment(self) -> dict[str, str]:
        place, toy = self.place, self.place.is_toy
        path = [str(place.work / "site"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        own = {
            "PYTHONPATH": os.pathsep.join(p for p in path if p),
            "PYTHONUNBUFFERED": "1",
            "TRITON_CACHE_DIR": str(place.work / "cache"),
            "TRITON_DEFAULT_FP_FUSION": "1",  # a part of the keys of the cache
            "TRITON_INTERPRET": "1" if toy else "0",
            "KDCOMPILE_CACHE": str(place.work / "tuned"),
            "XDG_CONFIG_HOME": str(place.results / "config"),
            "TORCHINDUCTOR_CACHE_DIR": str(place.work / "inductor"),
        }
        commit = place.work / "commit.txt"
        if commit.is_file():
            own["KDCOMPILE_COMMIT"] = commit.read_text().strip()
        own |= {"KDCOMPILE_TUNE": "0", "OMP_NUM_THREADS": "1"} if toy else {}
        return {**os.environ, **own}

    def _skipped_all(self, step: Step) -> bool:
        """Whether the test runner's report has tests, and all of them skipped."""
        name = "gate.xml" if step.name == "gate" else f"{step.name}.xml"
        suite = xml.etree.ElementTree.parse(self.place.results / name).getroot().find("testsuite")
        assert suite is not None, "pytest writes one"
        return int(suite.get("tests", 0)) == int(suite.get("skipped", 0))

    def _keep(self, name: str, found: dict[str, Any]) -> None:
        self.state["steps"][name] = found
        gpu_files.write_json(self.place.work / gpu_files.STATE, self.state)
        print(f"{name}: {found['status']} {found['reason']} ({found['seconds']:.1f} s)", flush=True)
        self._bring()

    def _bring(self, with_kept: bool = False) -> None:
        if not (self.place.work / gpu_files.STATE).is_file():
            gpu_files.write_json(self.place.work / gpu_files.STATE, self.state)
        for one in gpu_files.bring_back(self.place.work, self.out, with_kept):
            self._log(f"not brought back: {one}\n")

    def _log(self, line: str) -> None:
        with (self.place.work / gpu_files.LOG).open("a") as file:
            file.write(line)


def begin(place: Place, carried: Path | None, out: Path, minutes: float) -> Battery:
    """Take in what came, lay the package out, adopt the cache, and say what is missing here."""
    end = time.monotonic() + 60 * minutes
    for folder in (place.work, place.results, out):
        folder.mkdir(parents=True, exist_ok=True)
    for line in gpu_files.receive(carried, place.work) if carried else []:
        print(line, flush=True)
    gpu_files.lay_out(place.work / "site")
    battery = Battery(place, out, end)
    if missing := [name for name in PRESENT if find_spec(name) is None]:
        print(f"not installed here: {', '.join(missing)}", flush=True)
    if (place.work / "cache" / "keys.jsonl").is_file():
        adopt = script("gpu_warm", "adopt", "--folder", place.work / "cache")
        battery._command(adopt, time.monotonic() + 60)
    return battery


__all__ = ["ROOT", "Battery", "begin"]
