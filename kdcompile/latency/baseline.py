"""A baseline: the latencies of one artifact as they were taken, in a file that a repository keeps.

It holds samples and not only a summary, since a later comparison needs their spread between runs;
so there are at least three of these. The file carries a digest of itself: what was cut off or
edited gives an error and no verdict. The digest is no signature: who edits the file on purpose can
write a new one, and version control shows who.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from kdcompile import __version__
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_text
from kdcompile.core.readers import read_json
from kdcompile.core.store import digest
from kdcompile.latency.baseline_store import unwritable
from kdcompile.latency.compatibility import (
    Difference,
    check_comparable,
    differing,
    record,
    record_of,
)
from kdcompile.latency.report import summary
from kdcompile.stats.pairing import check
from kdcompile.stats.samples import Block, Samples, samples_from_json

FORMAT, DIGEST = 1, "digest"
MIN_RUNS = 3  # two runs tell a spread with one degree of freedom: no verdict could rest on it
DECIMALS = 6  # of milliseconds: the clocks tell no less than a nanosecond
ANEW = "kdcompile bench ARTIFACT --save NEW.json"


@dataclass(frozen=True)
class Baseline:
    """The content of a baseline file.

    Args:
        samples: of at least `MIN_RUNS` runs with equal records.
        reference: where the measured artifact lies, relative to the file's folder; POSIX.
        history: oldest first: `when` (UTC), `who`, `why`, `sha256` of the artifact, and the
            summaries `before` (None at first) and `after`.
        version: of the kdcompile that wrote it.
    """

    samples: Samples
    reference: str
    history: tuple[Mapping[str, Any], ...]
    version: str = __version__

    @property
    def environment(self) -> Mapping[str, Any]:
        """Of its first run; the others' facts are equal."""
        return self.samples.runs[0].environment

    @property
    def mode(self) -> Mapping[str, Any]:
        """How it was measured."""
        return self.samples.runs[0].mode

    @property
    def record(self) -> dict[str, Any]:
        """What a new measurement must equal (`comparable.record`)."""
        return record_of(self.samples.runs[0])

    def artifact(self, file: Path) -> Path:
        """Where the measured artifact lay when `file` was written; it may be gone or replaced."""
        return Path(os.path.normpath(file.absolute().parent / self.reference))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the digest of all others."""
        values = {
            "format": FORMAT,
            "kdcompile_version": self.version,
            "reference": {"path": self.reference, "sha256": self.samples.sha256},
            "history": [dict(change) for change in self.history],
            "summary": summary(self.samples),
            "samples": self.samples.to_json(),
        }
        return values | {DIGEST: digest(values)}

    def write(self, file: Path) -> None:
        """Write the file, whole; the numbers of a block are one line.

        Raises:
            KDError: `baseline-folder`, it cannot be written there.
        """
        text = json.dumps(self.to_json(), indent=1, sort_keys=True)
        # only between brackets that a line break follows, which no JSON string contains
        numbers = re.compile(r"\[\n[-\d.eE+,\s]+\]")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, numbers.sub(lambda m: re.sub(r"\s+", "", m.group()), text) + "\n")
        except OSError as error:
            raise unwritable(file, error) from error


def make_baseline(
    samples: Samples,
    artifact: Path,
    file: Path,
    who: str,
    why: str,
    previous: Baseline | None = None,
) -> Baseline:
    """A baseline of fresh samples.

    Args:
        samples: what was measured.
        artifact: the measured file or folder.
        file: where the baseline will lie; the artifact's place is kept relative to it.
        who: makes it.
        why: it is made, or changed.
        previous: the baseline that it replaces, whose history goes on.

    Raises:
        KDError: `baseline-runs`, `baseline-unsteady`, `baseline-samples`.
    """
    rounded = _rounded(samples)
    _check(rounded, str(file))
    change = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": who,
        "why": why,
        "sha256": samples.sha256,
        "before": None if previous is None else summary(previous.samples),
        "after": summary(rounded),
    }
    past = () if previous is None else previous.history
    reference = os.path.relpath(artifact.absolute(), file.absolute().parent)
    return Baseline(rounded, Path(reference).as_posix(), (*past, change))


def read_baseline(file: Path) -> Baseline:
    """A baseline that is whole, unedited and of this format.

    Raises:
        KDError: `baseline-missing`, `baseline-broken`, `baseline-unknown`, `baseline-newer`,
            `baseline-edited`, `baseline-runs`, `baseline-unsteady`, `baseline-samples`.
    """
    values = _values(file)
    stated = values.pop(DIGEST, None)
    if digest(values) != stated:
        raise KDError(
            "baseline-edited",
            "the file is not what kdcompile wrote: its digest is another",
            where=str(file),
            fix=f"take it from version control again, or measure a new one: {ANEW}",
        )
    try:
        samples = samples_from_json(values["samples"])
        reference, version = values["reference"]["path"], values["kdcompile_version"]
        history = tuple(dict(change) for change in values["history"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(file, f"{type(error).__name__} {error}") from error
    _check(samples, str(file))
    return Baseline(samples, str(reference), history, str(version))


def check_baseline(
    environment: Mapping[str, Any],
    mode: Mapping[str, Any],
    baseline: Baseline,
    allow: Iterable[str] = (),
    where: str = "",
) -> tuple[Difference, ...]:
    """The differences that `allow` names; any other is refused.

    Raises:
        KDError: `baseline-foreign`, `allow-unknown`.
    """
    return check_comparable(baseline.record, record(environment, mode), allow, where)


def _values(file: Path) -> dict[str, Any]:
    """The JSON object of a file that says to be a baseline of this format."""
    try:
        values = read_json(file)
    except FileNotFoundError:
        raise KDError(
            "baseline-missing",
            "there is no such baseline",
            where=str(file),
            fix=f"measure one: kdcompile bench ARTIFACT --save {file}",
        ) from None
    except OSError as error:
        raise _broken(file, str(error.strerror)) from error
    except ValueError as error:  # of the JSON and of UTF-8
        raise _broken(file, f"no whole JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise KDError(
            "baseline-unknown",
            "the file is JSON, but no baseline of kdcompile",
            where=str(file),
            fix=f"name a file that --save wrote: {ANEW}",
        )
    if values["format"] > FORMAT:
        raise KDError(
            "baseline-newer",
            f"a baseline of format {values['format']}, written by kdcompile "
            f"{values.get('kdcompile_version')}; {__version__} reads up to {FORMAT}",
            where=str(file),
            fix=f"update kdcompile, or measure a new one with this version: {ANEW}",
        )
    return cast(dict[str, Any], values)


def _check(samples: Samples, where: str) -> None:
    """Enough runs, all measured alike, and every latency a positive number."""
    again = "measure at least three: " + ANEW
    if len(samples.runs) < MIN_RUNS:
        raise KDError(
            "baseline-runs",
            f"a baseline needs {MIN_RUNS} measuring runs to tell their spread, "
            f"this has {len(samples.runs)}",
            where=where,
            fix=again,
        )
    for number, run in enumerate(samples.runs, 1):
        if not any(True for _ in replace(samples, runs=(run,)).blocks()):
            fault = f"run {number} has no undisturbed block"
            raise KDError("baseline-samples", fault, where=where, fix=again)
    try:
        check(samples)
    except KDError as error:
        fault = f"{error.message} ({error.where})"
        raise KDError("baseline-samples", fault, where=where, fix=again) from error
    first, *others = (record_of(run) for run in samples.runs)
    for number, other in enumerate(others, 2):
        found = differing(first, other)
        if found:
            raise KDError(
                "baseline-unsteady",
                f"run {number} was measured under other conditions than run 1: "
                + "; ".join(map(str, found)),
                where=where,
                fix=f"keep them fixed while all runs are measured, then {ANEW}",
            )


def _rounded(samples: Samples) -> Samples:
    """The samples to the decimals that the file keeps, so that both give one verdict."""

    def short(block: Block) -> Block:
        return Block(
            tuple(round(ms, DECIMALS) for ms in block.ms), round(block.at_s, 3), block.disturbed
        )

    return samples.with_blocks(lambda blocks: tuple(map(short, blocks)))


def _broken(file: Path, what: str) -> KDError:
    return KDError(
        "baseline-broken",
        f"the baseline cannot be read: {what}",
        where=str(file),
        fix=f"take it from version control again, or measure a new one: {ANEW}",
    )


def runs_wanted(runs: int | None, option: str = "--runs") -> int:
    """How many runs a baseline is measured in; `option` is what a caller sets them by.

    Raises:
        KDError: `baseline-runs`, too few.
    """
    if runs is None or runs >= MIN_RUNS:
        return runs or MIN_RUNS
    raise KDError(
        "baseline-runs",
        f"a baseline of {runs} measuring runs cannot tell their spread",
        where=option,
        fix=f"leave {option} out, or give {MIN_RUNS} or more",
    )
