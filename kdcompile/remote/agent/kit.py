"""Builds the engines on the board, proves them by the build's own gates, and writes `device.json`.

    python3 build_engine.py [--test PACK] [--precision auto] [--workspace-mb 1024] [--out DIR]

Exit 0: an engine passed; 1: something to fix first; 3: a required gate failed; 4: no backend here;
5: inconclusive.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.remote.agent.__main__ import open_worker
from kdcompile.remote.same_board import differences

MISSING = (
    "tensorrt-missing", "tensorrt-too-old", "onnxruntime-missing", "cuda-missing", "numpy-missing",
)  # fmt: skip
FORMAT = 1
ITERATIONS = 10
PRECISIONS = ("fp32", "fp16", "bf16", "mixed", "fp8", "int8")


def read_kit(folder: str) -> dict[str, Any]:
    """`kit.json`, once every file that it lists is what it was when the kit was made."""
    name, again = "kit.json", "copy the kit again"
    try:
        blob = _read(folder, name)
        kit: dict[str, Any] = json.loads(blob.decode("utf-8"))
        for name, expected in dict(kit["files"]).items():
            if hashlib.sha256(_read(folder, name)).hexdigest() != expected:
                raise KDError("kit-corrupt", f"{name} is not what was shipped", fix=again)
    except OSError as error:
        raise KDError("kit-incomplete", f"{name}: {error.strerror}", fix=again) from error
    except (ValueError, KeyError, TypeError) as error:
        raise KDError("kit-corrupt", f"kit.json: {error!r}", fix=again) from error
    return dict(kit, sha256=hashlib.sha256(blob).hexdigest())


def _read(folder: str, name: str) -> bytes:
    with open(os.path.join(folder, name), "rb") as stream:
        return stream.read()


def build(folder: str, options: argparse.Namespace, scratch: str) -> int:
    """Build, prove, choose, record; the exit code."""
    kit = read_kit(folder)
    backend = open_worker(options.backend)  # which says it where numpy is absent
    from kdcompile.remote.agent.candidates import Build
    from kdcompile.remote.agent.judging import exit_code, finite, pick, verdicts
    from kdcompile.remote.agent.networks import write_json

    run = Build(backend, options, folder, kit, scratch)
    wrong = differences(kit["target"], run.here)
    if wrong and options.backend == "tensorrt" and not options.allow_version:
        fix = f"run on {kit['target']['title']}, or try it with --allow-version (proves nothing)"
        raise KDError("not-the-target", "; ".join(wrong), fix=fix)
    os.makedirs(options.out, exist_ok=True)
    wanted = kit["precisions"] if options.precision == "auto" else [options.precision]
    candidates = [run.candidate(precision) for precision in wanted]
    ran = [c for c in candidates if "engine" in c]
    teachers: dict[str, Any] = {}
    if run.pack is not None:
        run.judge_accuracy(ran, run.pack)
        teachers = run.teachers(ran, run.pack)
    names = [t["engine"] for t in teachers.values() if "engine" in t]
    judged, latency = run.measure(names + [c["precision"] for c in ran]) if ran else ("", {})
    for c in ran:
        c["ms"] = statistics.median(latency[judged][c["precision"]]["blocks"])
    chosen, why = pick(ran, run.gates)
    record = recorded(run, kit, wrong, (judged, latency), candidates, teachers)
    record.update(chosen=chosen["precision"] if chosen else None, why=why,
                  engine=chosen["engine"] if chosen else None)  # fmt: skip
    run.networks.quit()  # their memory is the next one's
    record["usage"] = run.usage(chosen, judged) if chosen else None
    record["gates"] = verdicts(run, record)
    record["exit_code"] = exit_code(record)
    path = os.path.join(options.out, "device.json")
    record = finite(record)
    write_json(path, record)
    show(record, path, options.as_json)
    return int(record["exit_code"])


def recorded(
    run: Any, kit: dict[str, Any], wrong: list[str], times: tuple[str, Any], candidates: Any,
    teachers: Any,
) -> dict[str, Any]:  # fmt: skip
    """What was measured, as `device.json` holds it; the choice and the gates come to it."""
    kept = ("precision", "iterations", "no_graph")
    return {
        "format": FORMAT, "kit": kit["sha256"], "worker": kit["files"]["agent.pyz"],
        "target": kit["target"], "environment": run.here,
        "evidence": "host" if wrong else "device", "not_the_target": wrong,
        "options": dict(run.settings, **{key: getattr(run.options, key) for key in kept}),
        "shape": kit["profile"][1], "judged_mode": times[0], "latency": times[1],
        "candidates": candidates, "teachers": teachers, "references": run.count,
        "test": None if run.pack is None else run.pack.summary(), "predicted": kit["predicted"],
    }  # fmt: skip


def show(record: dict[str, Any], path: str, as_json: bool) -> None:
    """The outcome on standard output: a table, or JSON without the samples."""
    from kdcompile.remote.agent.judging import table, told

    if as_json:
        short = ("precision", "verdict", "why", "ms", "sqnr_db", "engine")
        rows = [{key: c[key] for key in short if key in c} for c in record["candidates"]]
        keys = ("evidence", "not_the_target", "chosen", "why", "engine", "gates", "exit_code")
        outcome = dict({key: record[key] for key in keys}, candidates=rows, device_json=path,
                       usage=told(record["usage"]))  # fmt: skip
        sys.stdout.write(json.dumps(outcome, indent=1, sort_keys=True) + "\n")
        return
    wrong = record["not_the_target"]
    note = f"NOT the target: {'; '.join(wrong)}\n" if wrong else ""
    lines = [f"  {g['name']:<10}{g['verdict']}: {g['reason']}" for g in record["gates"]]
    lines[:0] = told(record["usage"])
    sys.stdout.write(
        f"{note}{table(record['candidates'], record['chosen'])}\n{record['why']}\n"
        + "\n".join(lines)
        + f"\nwrote {path}\n"
    )


def parse(folder: str, arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    about = "Build and prove the engine on this board."
    parser = argparse.ArgumentParser("build_engine.py", description=about)
    parser.add_argument("--test", metavar="PACK", help="test pack: decides accuracy and speed-up")
    parser.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS))
    parser.add_argument("--workspace-mb", type=int, help="of the builder; else the spec's")
    parser.add_argument("--dla", type=int, choices=(0, 1), help="DLA core; the GPU takes the rest")
    parser.add_argument("--optimization-level", type=int, choices=range(6))
    parser.add_argument("--no-graph", action="store_true", help="time without a CUDA graph")
    parser.add_argument("--backend", default="tensorrt", help="or onnxruntime, to try the kit")
    parser.add_argument("--out", default=os.path.join(folder, "out"))
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="calls a timed block")
    parser.add_argument("--allow-version", action="store_true", help="another TensorRT or GPU")
    parser.add_argument("--json", dest="as_json", action="store_true", help="JSON on standard out")
    return parser.parse_args(arguments)


def main(folder: str, arguments: list[str] | None = None) -> int:
    """Build the kit in a folder, and print failures as error blocks.

    Args:
        folder: with `kit.json` and the files that it lists.
        arguments: of the command line; by default the process's.
    """
    options = parse(folder, arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return build(folder, options, scratch)
    except KDError as error:
        failure = error
    except OSError as error:
        text = f"{error.strerror}: {error.filename}"
        failure = KDError("file", text, fix="check the disk and --out")
    sys.stderr.write(f"{failure}\n")
    return 4 if failure.code in MISSING else 1
