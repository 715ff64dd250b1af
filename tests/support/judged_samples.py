"""Samples for a verdict: of given arrays, with one block edited, scaled, in another order."""

from dataclasses import replace

import numpy as np

from kdcompile.stats.samples import Block, Build, Process, Run, Samples


def built(arrays, shas=("x",), disturbed=None):
    """Samples of one run: `arrays` by build and process, [blocks, inferences]."""

    def process(times):
        return Process(
            tuple(
                Block(tuple(row), 0.1 * i, disturbed.get(i) if disturbed else None)
                for i, row in enumerate(np.asarray(times).tolist())
            )
        )

    builds = tuple(
        Build(sha, tuple(map(process, build))) for sha, build in zip(shas, arrays, strict=True)
    )
    return Samples("net", "f" * 64, (Run("2026-01-01T00:00:00+00:00", {}, {}, builds),))


def edited(samples, change, process=0, block=0):
    """With one block changed by `change`."""
    run, build = samples.runs[0], samples.runs[0].builds[0]
    blocks = list(build.processes[process].blocks)
    blocks[block] = change(blocks[block])
    processes = list(build.processes)
    processes[process] = Process(tuple(blocks))
    builds = (replace(build, processes=tuple(processes)), *run.builds[1:])
    return replace(samples, runs=(replace(run, builds=builds), *samples.runs[1:]))


def scaled(samples, factor):
    runs = tuple(
        replace(
            run,
            builds=tuple(
                replace(
                    build,
                    processes=tuple(
                        Process(
                            tuple(
                                replace(b, ms=tuple(factor * ms for ms in b.ms)) for b in p.blocks
                            )
                        )
                        for p in build.processes
                    ),
                )
                for build in run.builds
            ),
        )
        for run in samples.runs
    )
    return replace(samples, runs=runs)


def reordered(samples, picks):
    def process(old):
        return Process(tuple(old.blocks[i] for i in picks))

    runs = tuple(
        replace(
            run,
            builds=tuple(
                replace(build, processes=tuple(map(process, build.processes)))
                for build in run.builds
            ),
        )
        for run in samples.runs
    )
    return replace(samples, runs=runs)
