"""Check that two measurements may be compared: equal machine, software and measuring mode.

A record is flat: facts of the environment by their names, keys of the mode as `mode.NAME`, nested
ones with dots. What passes, such as a temperature, is in the environment's `state` and is no part.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdcompile.core.errors import KDError, nearest
from kdcompile.stats.samples import Run

ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """One key in which two records differ.

    Args:
        key: of a record.
        theirs: the value in the baseline; `ABSENT` where it has none.
        here: the value of the new measurement.
    """

    key: str
    theirs: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.theirs} -> {self.here}"


def record(environment: Mapping[str, Any], mode: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal, by key.

    Args:
        environment: `look`'s: `facts` and `state`; one without `facts` is all facts.
        mode: as a `Run` keeps it.
    """
    facts = environment.get("facts", environment)
    return dict(_flat("", facts)) | dict(_flat("mode.", mode))


def record_of(run: Run) -> dict[str, Any]:
    """The record of a measuring run."""
    return record(run.environment, run.mode)


def differing(theirs: Mapping[str, Any], here: Mapping[str, Any]) -> list[Difference]:
    """Where two records differ, by key."""
    keys = sorted(theirs.keys() | here.keys())
    pairs = ((key, theirs.get(key, ABSENT), here.get(key, ABSENT)) for key in keys)
    return [Difference(*pair) for pair in pairs if pair[1] != pair[2]]


def check_unchanged(first: Mapping[str, Any], now: Mapping[str, Any], label: str) -> None:
    """Refuse a machine that became another one between two processes.

    Raises:
        KDError: `machine-changed`.
    """
    changed = [f"{k}: {first.get(k)} -> {v}" for k, v in now.items() if v != first.get(k)]
    if changed:
        raise KDError(
            "machine-changed",
            f"the machine changed while it was measured: {'; '.join(changed)}",
            where=label,
            fix="let a hot board cool down, keep power mode, clocks and drivers as they are, and "
            "measure again",
        )


def check_comparable(
    theirs: Mapping[str, Any],
    here: Mapping[str, Any],
    allow: Iterable[str] = (),
    where: str = "",
) -> tuple[Difference, ...]:
    """Refuse records that differ in what was not allowed by name.

    Args:
        theirs: record of the baseline.
        here: record of the new measurement.
        allow: keys that may differ; each must be a key of one of the two.
        where: what is compared, for the error.

    Returns:
        The differences that were allowed, for the report.

    Raises:
        KDError: `allow-unknown`; `baseline-foreign`, which lists every other difference.
    """
    allowed, known = set(allow), theirs.keys() | here.keys()
    for key in sorted(allowed - known):
        raise KDError(
            "allow-unknown",
            f"no environment fact or mode key is called {key!r}{nearest(key, known)}",
            where=f"--allow {key}",
            fix=f"name one of {', '.join(sorted(known))}; or leave --allow out",
        )
    found = differing(theirs, here)
    refused = [difference for difference in found if difference.key not in allowed]
    if refused:
        options = " ".join(f"--allow {difference.key}" for difference in refused)
        raise KDError(
            "baseline-foreign",
            f"measured under other conditions, baseline -> here: {'; '.join(map(str, refused))}",
            where=where,
            fix="compare with a baseline that was measured as here (kdcompile bench ARTIFACT "
            f"--save FILE), or take the risk by name, which stays in the report: {options}",
        )
    return tuple(found)


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            # JSON knows no tuples: a record that was read back must equal the one that was written
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
