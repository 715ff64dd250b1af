"""Suggested command lines for a comparison that is not decided."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kdcompile.core.backends import names
from kdcompile.latency.request import shape_of

if TYPE_CHECKING:
    from kdcompile.latency.baseline import Baseline
    from kdcompile.latency.compare import Plan
    from kdcompile.latency.report import Judged

Kept = tuple[Path, "Baseline"]  # with its file
NO_WAY = "more samples would hardly decide: quiet the machine, or give a wider --margin"
FAR_APART = "the reference's own runs are too few or too far apart: "


def what_to_type(
    judged: "Judged", plan: "Plan", reference: Kept | None = None, candidate: Kept | None = None
) -> str | None:
    """A command line that would decide, or why there is none; None where it is decided.

    Args:
        judged: what the running command found.
        plan: of its measurement.
        reference: the baseline whose samples stood for A of `compare`.
        candidate: the baseline whose samples stood for B.
    """
    from kdcompile.latency.advice import to_decide

    if judged.comparison.decision != "inconclusive":
        return None
    if candidate is not None and reference is not None:
        return _of_files(judged, reference, candidate)
    arguments = click.get_current_context().params
    if reference is not None and _lies_there(reference):
        return _typed("bench", [arguments["after"], "--baseline", reference[0]])
    changes = to_decide(judged, plan)
    if changes is not None:
        given = [arguments[name] for name in ("artifact", "before", "after") if name in arguments]
        return _typed(click.get_current_context().info_name or "", given, changes)
    if judged.comparison.paired:
        return NO_WAY
    return FAR_APART + (
        "name the artifact that it was measured of with --reference FILE of kdcompile bench, so "
        "that both take turns; or keep a baseline of more --runs, on several days (kdcompile "
        "baseline update --add)"
    )


def _of_files(judged: "Judged", reference: Kept, candidate: Kept) -> str:
    """In turns where both artifacts lie there; else more runs of the candidate."""
    from kdcompile.stats.sample_size import growth

    if _lies_there(reference) and _lies_there(candidate):
        paths = [_short(baseline.artifact(file)) for file, baseline in (reference, candidate)]
        return _typed("compare", paths, _measured_as(reference[1]) | {"allow": None})
    if judged.comparison.more_blocks is None:
        return FAR_APART + "save it anew with more --runs, or add another day's to it"
    runs = math.ceil(len(judged.candidate.runs) * growth(judged.comparison))
    return f"save B anew with --runs {runs}"


def _measured_as(baseline: "Baseline") -> dict[str, Any]:
    """Options that measure as a baseline was, where they are not said."""
    mode, shape = baseline.mode, shape_of(baseline.mode)
    keys = [f"copies={mode.get('copies')}"] if mode.get("copies") not in (None, "none") else []
    keys += ["graph=false"] if mode.get("graph") is False else []
    keys += [f"threads={mode['threads']}"] if mode.get("threads") not in (None, 1) else []
    backend = baseline.environment.get("facts", {}).get("backend")
    return {
        "shape": shape and "x".join(map(str, shape)),
        "streams": mode["streams"] if mode.get("streams", 1) > 1 else None,
        "modes": tuple(keys),
        "backend": backend if backend in names() else None,
    }


def _lies_there(kept: Kept) -> bool:
    """Whether the artifact of a baseline is where the baseline says, and is the same."""
    from kdcompile.latency.compare import reference_at_hand
    from kdcompile.latency.subject import find_subject

    file, baseline = kept
    return reference_at_hand(baseline, file, None, find_subject)[0] is not None


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _typed(command: str, words: Sequence[object], changes: Mapping[str, Any] | None = None) -> str:
    """A command line with the options of the running one, but for changes; None drops one."""
    context, options = click.get_current_context(), list[str]()
    changes = {"save": None, "runs": None, **(changes or {})}
    for parameter in context.command.params:
        name = parameter.name or ""
        if isinstance(parameter, click.Argument):
            continue
        said = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        value = changes.get(name, context.params.get(name) if said else None)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and one is not False:
                text = f"{one:g}" if isinstance(one, float) else str(one)
                options += [parameter.opts[0], *([] if one is True else [text])]
    return shlex.join(["kdcompile", command, *map(str, words), *options])
