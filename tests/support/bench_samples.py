"""Samples that were never measured: as many as a test wants, of a known speed, by a seed."""

import numpy as np

from kdcompile.stats.samples import Block, Build, Process, Run, Samples

FACTS = {"cpu": "Test CPU", "usable_cores": 2, "onnxruntime_version": "1.20.0"}
MODE = {"clock": "wall", "batch": 1, "streams": 1}


def made(
    ms=1.0,
    *,
    runs=3,
    processes=3,
    blocks=10,
    inferences=20,
    noise=0.002,
    seed=0,
    name="net.onnx",
    sha256="a" * 64,
    facts=FACTS,
    mode=MODE,
    disturbed=(),
):
    """Log-normal latencies around `ms`; `disturbed` blocks of each process carry a reason."""
    rng = np.random.default_rng(seed)

    def block(i):
        times = ms * np.exp(rng.normal(0, noise, inferences))
        return Block(tuple(times.tolist()), i * 0.1, "clock fell" if i in disturbed else None)

    def run(number):
        made_of = tuple(Process(tuple(map(block, range(blocks)))) for _ in range(processes))
        environment = {"facts": dict(facts), "state": {"load": 0.1 * number}}
        return Run(f"2025-01-01T00:00:0{number}+00:00", environment, dict(mode),
                   (Build(sha256, made_of),))  # fmt: skip

    return Samples(name, sha256, tuple(map(run, range(runs))))
