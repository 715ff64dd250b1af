"""A bundle's report before any board, and what a Jetson Orin Nano sends home of its kit."""

import copy
import hashlib
import json

import numpy as np

from kdcompile.config.spec import Gates
from kdcompile.core.report import GateResult, Measurement, Report, overall
from kdcompile.tasks.task import find_task

COUNT, SEED = 30, 5
WORKER = "1" * 64
ENGINE = b"an engine of the board"
GATES = Gates.model_validate(
    {"accuracy": {"metric": "mae"}, "speedup": {"min": 2.0}, "size_mb": {"max": 1.0}}
).model_dump(mode="json")
TARGET = {"name": "jetson-orin-nano-8gb", "title": "NVIDIA Jetson Orin Nano 8GB",
          "compute_capability": "8.7", "tensorrt": "10.3", "memory_gb": 8}  # fmt: skip
KIT = {"target": TARGET, "files": {"agent.pyz": WORKER}, "profile": [[1, 1, 32, 48]] * 3}
NANO = {"backend": "tensorrt", "backend_version": "10.3.0", "platform": "linux aarch64",
        "python": "3.10.12", "module": "NVIDIA Jetson Orin Nano Developer Kit",
        "power_mode": "NV Power Mode: 25W 1", "l4t": "R36", "clocks": {"gpu": 1},
        "gpu": {"name": "Orin", "compute_capability": "8.7", "memory_mb": 7620},
        "memory_mb": {"total": 7620, "free": 5000},
        "machine": {"governor": "schedutil", "cores": 6, "cpu_boost": None,
                    "clock_limits": {"17000000.gpu": {"max_hz": 624_750_000}}}}  # fmt: skip


def rows():
    rng = np.random.default_rng(0)
    true = rng.uniform(5, 50, COUNT)
    teacher = true + rng.normal(0, 3, COUNT)
    return [
        {"name": f"{i}.jpg", "true": float(t), "teacher": float(u), "student": float(u)}
        for i, (t, u) in enumerate(zip(true, teacher, strict=True))
    ]


def host_report(task="counting"):
    passed = GateResult("size_mb", "passed", "host", True, "at most 1 MB", "0.1 MB", "", ())
    pending = [
        GateResult(f"{name}@device", "pending", "device", True, "a limit", "not yet", "wait")
        for name in ("accuracy", "parity", "speedup")
    ]
    gates = (*pending, passed)
    verdict, code = overall(gates)
    details = {"task": find_task(task).facts(), "predictions": rows(), "test_photos": COUNT,
               "examples": [{"kind": "best", "name": "7.jpg", "true": 1, "predicted": 1,
                             "teacher": 1}]}  # fmt: skip
    number = Measurement("student mae", 3.0, "count", "host")
    environment = {"target": "jetson-orin-nano-8gb@MAXN_SUPER@jp6.2", "python": "3.11"}
    return Report("crowd", TARGET["name"], verdict, code, gates, (number,), environment, details)


def block(ms):
    return {"clock": "device", "p50_ms": ms, "p90_ms": ms, "p99_ms": ms, "n": 120,
            "blocks": [ms * (1 + i / 1000) for i in range(12)]}  # fmt: skip


def told():
    found = rows()
    lists = [[row[key] for row in found] for key in ("name", "true", "teacher")]
    return hashlib.sha256(json.dumps(lists).encode()).hexdigest()


def candidate(precision, ms=1.0):
    return {
        "precision": precision, "verdict": "passed", "why": "SQNR", "engine": f"e_{precision}.plan",
        "build": {"sha256": hashlib.sha256(ENGINE).hexdigest(), "bytes": len(ENGINE), "flags": []},
        "sqnr_db": 41.5, "max_rel_error": 0.01, "accuracy": {"verdict": "passed"},
        "predictions": [row["teacher"] + 0.1 for row in rows()], "ms": ms,
    }  # fmt: skip


def record(kit_sha):
    """`device.json`; every verdict in it is wrong, for it is to be ignored."""
    latency = {
        "graph": {"int8": block(1.0), "fp16": block(1.5), "teacher_fp16": block(4.0)},
        "device": {"error": "graph-refused"},
    }
    return {
        "format": 1, "kit": kit_sha, "worker": WORKER,
        "environment": copy.deepcopy(NANO), "shape": [1, 1, 32, 48], "judged_mode": "graph",
        "latency": latency, "candidates": [candidate("fp16"), candidate("int8")],
        "teachers": {"fp16": {"engine": "teacher_fp16", "build": {}}}, "references": 4,
        "test": {"pack": "2" * 64, "digest": told(), "n": COUNT, "seed": SEED, "available": COUNT},
        "chosen": "int8", "why": "int8 is the fastest that passes", "engine": "e_int8.plan",
        "gates": [{"name": "accuracy", "verdict": "failed"}], "exit_code": 3, "evidence": "host",
    }  # fmt: skip
