"""Command-line options with which a repeated measurement would decide a comparison."""

import math
from typing import Any

from kdcompile.latency.compare import LIMIT_S, Plan, first_look
from kdcompile.latency.report import Judged
from kdcompile.stats.comparison import LOOKS
from kdcompile.stats.sample_size import growth

GROWTH = 2 ** (LOOKS - 1)  # times the first samples, which --until-decided takes at most
SLACK = 1.5  # each look has a fifth of the level, which takes half as much again


def to_decide(judged: Judged, plan: Plan) -> dict[str, Any] | None:
    """Options of the command line by name, which would decide if the ratio stays what it is.

    Args:
        judged: an inconclusive comparison of what was measured now.
        plan: of the measurement.

    Returns:
        Values of the options that change; None takes an option away. None where no number of
        samples would do.
    """
    comparison, effort = judged.comparison, plan.effort
    if comparison.more_blocks is None:
        return None
    if effort.samples is not None:  # so few that they tell little of how many it takes
        return {"samples": None, "until_decided": True}
    times = growth(comparison)
    if comparison.paired and effort.builds > 1:
        return _builds(plan, math.ceil(effort.builds * times))
    return _until_decided(judged, plan, times * SLACK)


def _builds(plan: Plan, builds: int) -> dict[str, Any]:
    """More engines of each: what goes on until it is decided has only more processes of them."""
    share = builds / plan.effort.builds
    found: dict[str, Any] = {"builds": builds, "seconds": _rounded(plan.effort.seconds * share)}
    return found if plan.limit is None else found | {"limit": _rounded(plan.limit * share)}


def _until_decided(judged: Judged, plan: Plan, times: float) -> dict[str, Any] | None:
    """Processes are added where two sides take turns, else whole runs of the candidate."""
    runs, effort = judged.candidate.runs, plan.effort
    seconds = sum(max(b.at_s for p in run.builds for q in p.processes for b in q.blocks)
                  for run in runs)  # fmt: skip
    limit = max(times * seconds, 0 if plan.limit is None else 2 * plan.limit)
    found: dict[str, Any] = {"until_decided": True}
    if limit > LIMIT_S or plan.limit is not None:
        found["limit"] = _rounded(limit)
    if not judged.comparison.paired:
        return found if times * len(runs) <= GROWTH else None
    processes = times * sum(len(build.processes) for run in runs for build in run.builds)
    if processes > GROWTH * first_look(effort):
        found["processes"] = math.ceil(processes / GROWTH)
        found["seconds"] = _rounded(effort.seconds * found["processes"] / effort.processes)
    return found


def _rounded(seconds: float) -> float:
    """Upwards, to two digits."""
    unit = 10.0 ** max(math.floor(math.log10(seconds)) - 1, 0)
    return math.ceil(seconds / unit) * unit
