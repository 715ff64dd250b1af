"""Builds the engine on the board, proves it against the reference, and writes `device.json`.

    python3 build_engine.py [--precision auto] [--workspace-mb 1024] [--out DIR]

Python 3.8 syntax, numpy, the TensorRT of the JetPack and the worker beside it. Exit 0: an engine
passed; 1: something to fix first; 3: no engine passed a required gate; 4: no backend here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
from typing import Any

import worker

np: Any = worker.np  # type: ignore[attr-defined]  # None where numpy is absent: the worker says so
KIT = os.path.dirname(os.path.abspath(__file__))
MISSING = ("tensorrt-missing", "onnxruntime-missing", "cuda-missing", "numpy-missing")
WARMUP, ITERATIONS, ROUNDS = 10, 30, 5
MEGABYTE = 1e6


class Stop(Exception):  # noqa: N818
    """The build cannot go on; printed as an error block."""

    def __init__(self, code: str, message: str, fix: str) -> None:
        """Keep the parts of the error block."""
        super().__init__(message)
        self.code, self.message, self.fix = code, message, fix


def ask(backend: Any, **request: Any) -> dict[str, Any]:
    """An answer of the worker, or its error as `Stop`."""
    reply = backend.answer(dict(request, id=1))
    if "error" in reply:
        raise Stop(**reply["error"])
    answer: dict[str, Any] = reply["ok"]
    return answer


def read_json(name: str) -> Any:
    """A JSON file of the kit."""
    with open(os.path.join(KIT, name), encoding="utf-8") as stream:
        return json.load(stream)


def read_kit() -> dict[str, Any]:
    """`kit.json`, once every file that it lists is what it was when the kit was made."""
    kit: dict[str, Any] = read_json("kit.json")
    for name, expected in kit["files"].items():
        try:
            with open(os.path.join(KIT, name), "rb") as stream:
                found = hashlib.sha256(stream.read()).hexdigest()
        except OSError as error:
            raise Stop(
                "kit-incomplete", f"{name}: {error.strerror}", "copy the kit again"
            ) from error
        if found != expected:
            raise Stop("kit-corrupt", f"{name} is not what was shipped", "copy the kit again")
    return kit


def same_generation(found: str, wanted: str) -> bool:
    """Whether a TensorRT version has the major of `wanted`, and no older minor."""
    have, want = ([int(part) for part in text.split(".")[:2]] for text in (found, wanted))
    return have[0] == want[0] and have[1:] >= want[1:]


def differences(target: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What keeps a measurement here from being one of the target."""
    if here["backend"] != "tensorrt":
        return [f"the backend is {here['backend']}, not TensorRT"]
    found = []
    if not same_generation(here["backend_version"], target["tensorrt"]):
        found.append(f"TensorRT {here['backend_version']}, the target has {target['tensorrt']}")
    capability = here["gpu"]["compute_capability"]
    if capability != target["compute_capability"]:
        found.append(
            f"compute capability {capability}, the target has {target['compute_capability']}"
        )
    return found


def compare(outputs: list[Any], reference: list[Any], task: str) -> dict[str, float]:
    """Largest relative error, signal over error in dB, and how far the predictions are apart."""
    worst, signal, noise = 0.0, 0.0, 0.0
    for i, want in enumerate(reference):
        wide, error = want.astype(np.float64), outputs[i].astype(np.float64) - want
        worst = max(worst, float(np.abs(error).max() / max(np.abs(wide).max(), 1e-12)))
        signal, noise = signal + float((wide**2).sum()), noise + float((error**2).sum())
    is_finite = math.isfinite(noise)  # a NaN or an overflow is the worst there is
    apart = predictions_apart(outputs, reference, task, is_finite)
    if not is_finite:
        return {"max_rel_error": math.inf, "sqnr_db": -math.inf, **apart}
    sqnr = 10 * math.log10(max(signal, 1e-300) / max(noise, 1e-30 * max(signal, 1e-270)))
    return {"max_rel_error": worst, "sqnr_db": sqnr, **apart}


def predictions_apart(
    outputs: list[Any], reference: list[Any], task: str, is_finite: bool
) -> dict[str, float]:
    """The share of equal classes, or the largest difference of a count or value."""
    pairs = list(zip(outputs, reference))  # noqa: B905
    if task == "classification":
        equal = [float(is_finite and a.argmax() == b.argmax()) for a, b in pairs]
        return {"top1_agreement": sum(equal) / len(equal)}
    name = "count_difference" if task == "counting" else "value_difference"
    gaps = [abs(float((a.astype(np.float64) - b).sum())) for a, b in pairs]
    return {name: max(gaps) if is_finite else math.inf}


class Build:
    """One run over the kit's candidates."""

    def __init__(self, options: argparse.Namespace, kit: dict[str, Any], scratch: str) -> None:
        """Read the kit and open the backend."""
        self.options, self.kit, self.scratch = options, kit, scratch
        self.backend = worker.Worker(options.backend)
        self.gates = read_json("gates.json")
        with np.load(os.path.join(KIT, "reference.npz")) as arrays:
            self.reference = {key: arrays[key] for key in arrays.files}
        self.count = sum(key.startswith("input_") for key in self.reference)
        self.here = ask(self.backend, op="hello")

    def arrays(self, name: str, array: Any) -> str:
        """An npz with one input image."""
        path = os.path.join(self.scratch, name + ".npz")
        np.savez(path, **{self.kit["input"]: array})
        return path

    def engine(self, precision: str) -> str:
        """Where the engine of a precision lies."""
        kind = "plan" if self.options.backend == "tensorrt" else "onnx"
        return os.path.join(self.options.out, f"engine_{precision}.{kind}")

    def candidate(self, precision: str) -> dict[str, Any]:
        """Build one precision and compare it with the reference."""
        source = f"student_{self.here['precisions'][precision]['onnx']}.onnx"
        if not os.path.isfile(os.path.join(KIT, source)):
            return {"precision": precision, "verdict": "skipped", "why": f"the kit has no {source}"}
        path = self.engine(precision)
        try:
            built = ask(
                self.backend, op="build", onnx=os.path.join(KIT, source), engine=path,
                precision=precision, profile=self.kit["profile"],
                workspace_mb=self.options.workspace_mb,
                timing_cache=os.path.join(self.options.out, "timing.cache"),
            )  # fmt: skip
            ask(self.backend, op="load", path=path, name=precision)
        except Stop as error:
            why = f"{error.code}: {error.message}"
            return {"precision": precision, "verdict": "failed", "why": why, "onnx": source}
        outputs = [self.run(precision, i) for i in range(self.count)]
        wanted = [self.reference[f"output_fp32_{i}"] for i in range(self.count)]
        parity = compare(outputs, wanted, self.kit["task"])
        limit = self.gates["parity"]["min_sqnr_db"]
        passed = parity["sqnr_db"] >= limit
        why = f"SQNR {parity['sqnr_db']:.1f} dB, at least {limit:g} dB wanted"
        return {
            "precision": precision, "verdict": "passed" if passed else "failed", "why": why,
            "onnx": source, "engine": os.path.basename(path), "build": built, **parity,
        }  # fmt: skip

    def run(self, precision: str, index: int) -> Any:
        """The output of a loaded engine for one reference input."""
        inputs = self.arrays("input", self.reference[f"input_{index}"])
        outputs = os.path.join(self.scratch, "output.npz")
        ask(self.backend, op="run", inputs=inputs, outputs=outputs, name=precision)
        with np.load(outputs) as arrays:
            return arrays[self.kit["output"]]

    def time(self, candidates: list[dict[str, Any]]) -> None:
        """Time the built candidates in turns at the typical shape, so that drift touches all."""
        image = np.resize(self.reference["input_0"], self.kit["profile"][1])
        path = self.arrays("timing", image.astype("float32"))
        built = [c for c in candidates if "engine" in c]
        rounds: dict[str, list[dict[str, Any]]] = {c["precision"]: [] for c in built}
        for turn in range(ROUNDS):
            for c in built if turn % 2 == 0 else built[::-1]:
                times = ask(
                    self.backend, op="time", inputs=path, name=c["precision"], warmup=WARMUP,
                    iterations=self.options.iterations,
                )  # fmt: skip
                rounds[c["precision"]].append(times)
        for c in built:
            for clock in ("device", "wall"):
                found = [t[clock]["p50_ms"] for t in rounds[c["precision"]] if t[clock]]
                c[f"{clock}_p50_ms"] = statistics.median(found) if found else None
            c["rounds"] = rounds[c["precision"]]

    def verdicts(self, chosen: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Each gate of the bundle, decided here or with the reason why it is not."""
        found = []
        for name, gate in self.gates.items():
            if gate is None:
                continue
            verdict, reason = "skipped", NOT_HERE.get(name, "not decided by this script")
            if name == "parity":
                verdict = "passed" if chosen else "failed"
                reason = chosen["why"] if chosen else "no candidate passed"
            elif name == "size_mb" and chosen:
                size = chosen["build"]["bytes"] / MEGABYTE
                verdict = "passed" if size <= gate["max"] else "failed"
                reason = f"engine {size:.2f} MB, at most {gate['max']:g} MB wanted"
            required = gate["required"]
            found.append({"name": name, "verdict": verdict, "required": required, "reason": reason})
        return found


NOT_HERE = {
    "accuracy": "needs the annotated test photos, which a kit does not carry",
    "speedup": "needs the teacher's engine beside the student's",
    "size_mb": "no engine was chosen",
}


def latency(candidate: dict[str, Any]) -> float:
    """The latency that decides: on the device where it can be told, else by the clock."""
    device, wall = candidate["device_p50_ms"], candidate["wall_p50_ms"]
    return float(wall if device is None else device)


def table(candidates: list[dict[str, Any]], chosen: dict[str, Any] | None) -> str:
    """The candidates, one a line, the chosen one marked."""
    lines = [f"{'':2}{'precision':<10}{'latency':>12}{'size':>11}{'SQNR':>10}  verdict"]
    for c in candidates:
        numbers = f"{'-':>12}{'-':>11}{'-':>10}"
        if "engine" in c:
            size = c["build"]["bytes"] / MEGABYTE
            numbers = f"{latency(c):>9.3f} ms{size:>8.2f} MB{c['sqnr_db']:>7.1f} dB"
        mark = "> " if c is chosen else "  "
        lines.append(f"{mark}{c['precision']:<10}{numbers}  {c['verdict']}: {c['why']}")
    return "\n".join(lines)


def finite(value: Any) -> Any:
    """JSON has no infinities: they become words."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def build(options: argparse.Namespace, scratch: str) -> int:
    """Build, prove, choose, record; the exit code."""
    kit = read_kit()
    run = Build(options, kit, scratch)
    wrong = differences(kit["target"], run.here)
    if wrong and options.backend == "tensorrt" and not options.allow_version:
        fix = f"run on {kit['target']['title']}, or try it with --allow-version (proves nothing)"
        raise Stop("not-the-target", "; ".join(wrong), fix)
    os.makedirs(options.out, exist_ok=True)
    wanted = kit["precisions"] if options.precision == "auto" else [options.precision]
    candidates = [run.candidate(precision) for precision in wanted]
    run.time(candidates)
    passing = [c for c in candidates if c["verdict"] == "passed"]
    chosen = min(passing, key=latency) if passing else None
    gates = run.verdicts(chosen)
    record = {
        "schema": 1, "target": kit["target"], "environment": run.here,
        "evidence": "host" if wrong else "device", "not_the_target": wrong,
        "mode": {"warmup": WARMUP, "iterations": options.iterations, "rounds": ROUNDS,
                 "shape": kit["profile"][1], "transfers": False, "cuda_graph": False},
        "candidates": candidates, "gates": gates, "asked": options.precision,
        "predicted": kit["predicted"], "chosen": chosen["precision"] if chosen else None,
        "engine": chosen["engine"] if chosen else None,
    }  # fmt: skip
    path = os.path.join(options.out, "device.json")
    with open(path + ".tmp", "w", encoding="utf-8") as stream:
        json.dump(finite(record), stream, indent=1, sort_keys=True)
    os.replace(path + ".tmp", path)
    ask(run.backend, op="quit")
    note = f"NOT the target: {'; '.join(wrong)}\n" if wrong else ""
    lines = [f"  {g['name']:<10}{g['verdict']}: {g['reason']}" for g in gates]
    sys.stdout.write(
        f"{note}{table(candidates, chosen)}\n" + "\n".join(lines) + f"\nwrote {path}\n"
    )
    return 3 if any(g["verdict"] == "failed" and g["required"] for g in gates) or not chosen else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build and prove the engine on this board.")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "int8"))
    parser.add_argument("--workspace-mb", type=int, default=1024)
    parser.add_argument("--backend", default="tensorrt", choices=sorted(worker.BACKENDS))
    parser.add_argument("--out", default=os.path.join(KIT, "out"))
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--allow-version", action="store_true", help="another TensorRT or GPU")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run, and print failures as error blocks."""
    options = parse(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return build(options, scratch)
    except worker.WorkerError as error:
        failure = Stop(**error.to_json())
    except Stop as error:
        failure = error
    except OSError as error:
        failure = Stop("file", f"{error.strerror}: {error.filename}", "check the disk and --out")
    sys.stderr.write(f"error[{failure.code}]: {failure.message}\n  fix:   {failure.fix}\n")
    return 4 if failure.code in MISSING else 1


if __name__ == "__main__":
    sys.exit(main())
