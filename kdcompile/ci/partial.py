"""The runs of a function's baseline, one of each process, kept until there are enough of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kdcompile.ci.callables import Timer
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_text
from kdcompile.core.readers import read_json
from kdcompile.latency.baseline import Baseline, make_baseline, read_baseline
from kdcompile.latency.baseline_store import author, check_writable, unwritable
from kdcompile.latency.compatibility import differing, record_of
from kdcompile.stats.pairing import check
from kdcompile.stats.samples import Samples, samples_from_json


def partial(file: Path) -> Path:
    """Where the runs of a baseline file are kept until it can be written."""
    return file.with_name(f"{file.stem}.partial.json")


def one_more(file: Path, name: str, function: Callable[[], object], seconds: float) -> Samples:
    """The runs of earlier processes and one of this process, which are kept.

    Args:
        file: of the baseline.
        name: of the samples.
        function: is timed.
        seconds: that it may take.

    Raises:
        KDError: `baseline-partial`, `baseline-unsteady`, `baseline-folder`; those of `Timer.time`.
    """
    part = partial(file)
    earlier = _read(part) if part.exists() else None
    calls = None if earlier is None else calls_of(earlier)
    (found,) = Timer(seconds, calls).time({name: function})
    if earlier is not None:
        other = differing(record_of(earlier.runs[0]), record_of(found.runs[0]))
        if other:
            raise KDError(
                "baseline-unsteady",
                "measured under other conditions than the runs before, then -> now: "
                + "; ".join(map(str, other)),
                where=str(part),
                fix=f"keep them fixed while all runs are measured; remove {part} to start anew",
            )
        found = replace(found, runs=(*earlier.runs, *found.runs))
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        write_text(part, json.dumps(found.to_json()) + "\n")
    except OSError as error:
        raise unwritable(part, error) from error
    return found


def save_function(
    file: Path,
    name: str,
    test: Path,
    function: Callable[[], object],
    seconds: float,
    runs: int,
    why: str,
) -> int:
    """Time a function once more, and write its baseline as soon as there are enough runs.

    Args:
        file: of the baseline, which may exist.
        name: of the samples.
        test: the file that is recorded as the measured artifact.
        function: is timed.
        seconds: that it may take.
        runs: of the baseline.
        why: for its history.

    Returns:
        How many runs there are.

    Raises:
        KDError: those of `one_more` and of reading and writing baselines.
    """
    previous = read_baseline(file) if file.exists() else None
    check_writable(file)
    samples = one_more(file, name, function, seconds)
    if len(samples.runs) >= runs:
        make_baseline(samples, test, file, author(), why, previous).write(file)
        partial(file).unlink(missing_ok=True)
    return len(samples.runs)


def calls_of(kept: Baseline | Samples) -> int | None:
    """Calls of a sample as they were, so that samples compare; None where it is no function's."""
    mode = kept.runs[0].mode if isinstance(kept, Samples) else kept.mode
    calls = mode.get("calls_of_a_sample")
    return calls if isinstance(calls, int) and calls > 0 else None


def _read(part: Path) -> Samples:
    try:
        found = samples_from_json(read_json(part))
        check(found)
        record_of(found.runs[0])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, KDError) as error:
        raise KDError(
            "baseline-partial",
            f"the earlier runs of the baseline cannot be read: {type(error).__name__} "
            + str(error).partition("\n")[0],
            where=str(part),
            fix=f"remove {part}, and save the baseline anew",
        ) from error
    return found
