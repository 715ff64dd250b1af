"""Measure an artifact against a reference artifact, or against the samples of a baseline.

Where the reference can run here, both take turns in the same processes and the baseline's samples
are not used: what the machine does today then touches both sides. Where it cannot, the baseline's
samples stand for it, and the spread between its runs is part of the interval.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.latency.baseline import Baseline
from kdcompile.latency.compatibility import Difference, check_comparable, record_of
from kdcompile.latency.report import Judged
from kdcompile.latency.sampler import measure
from kdcompile.latency.settings import Effort, Mode
from kdcompile.latency.subject import Subject
from kdcompile.stats.comparison import Comparison, Looks
from kdcompile.stats.pairing import check
from kdcompile.stats.samples import Samples, days_apart

LEVEL, MARGIN, LIMIT_S = 0.005, 0.03, 300.0
FEWEST = 3  # processes that tell how processes differ
log = logging.getLogger("kdcompile")


@dataclass(frozen=True)
class Plan:
    """How artifacts are measured and judged.

    Args:
        via: the place; None for this machine.
        effort: of one measuring run.
        mode: how it is measured.
        runs: measuring runs, each with processes of its own and a new look at the machine.
        margin: what counts as no change of the median.
        level: chance of a false alarm.
        allow: conditions that may differ from the baseline's.
        limit: seconds in which to go on until there is a decision; None measures once.
        with_usage: read energy and memory of each artifact too, after the first run.
    """

    via: str | None
    effort: Effort
    mode: Mode
    runs: int = 1
    margin: float = MARGIN
    level: float = LEVEL
    allow: tuple[str, ...] = ()
    limit: float | None = None
    with_usage: bool = False


class Measurement:
    """Runs of the same subjects, one after the other, which must stay comparable.

    Args:
        subjects: that take turns.
        plan: how.
        theirs: the record of the baseline that each run must equal; None without a baseline.
        where: the baseline's name, for errors.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        plan: Plan,
        theirs: Mapping[str, Any] | None = None,
        where: str = "",
    ) -> None:
        self.subjects, self.plan, self.theirs, self.where = subjects, plan, theirs, where
        self.samples: list[Samples] = []
        self.allowed: tuple[Difference, ...] = ()
        self.on_first: Callable[[Samples], object] | None = None  # may refuse by what was found

    def run(self, effort: Effort, on_round: Callable[[list[Samples]], bool] | None = None) -> None:
        """Add one run.

        Raises:
            KDError: what `measure` raises; `baseline-foreign` after the first process, so that
                nobody waits for a verdict that there cannot be; `samples-invalid`.
        """

        def checked(found: list[Samples]) -> bool:
            self._check(found)
            return on_round is not None and on_round(found)

        plan = self.plan
        more: dict[str, Any] = {"with_usage": True} if plan.with_usage and not self.samples else {}
        found = measure(self.subjects, plan.via, effort, plan.mode, on_round=checked, **more)
        self._check(found)
        parts = zip(self.samples, found, strict=True) if self.samples else ((one,) for one in found)
        self.samples = [merged(pair) for pair in parts]

    def all_runs(self) -> list[Samples]:
        """The samples of every run of the plan, one `Samples` a subject."""
        for number in range(self.plan.runs):
            if self.plan.runs > 1:
                log.info("measuring run %d of %d", number + 1, self.plan.runs)
            self.run(self.plan.effort)
        return self.samples

    def _check(self, found: Sequence[Samples]) -> None:
        if self.theirs is not None:
            here = record_of(found[0].runs[-1])
            self.allowed = check_comparable(self.theirs, here, self.plan.allow, self.where)
        for samples in found:
            check(samples)
        if self.on_first is not None:
            self.on_first(found[0])
            self.on_first = None


def first_look(effort: Effort) -> int:
    """Processes of each build before `--until-decided` first looks: one or two say too little."""
    return max(effort.processes, FEWEST)


def merged(parts: Sequence[Samples]) -> Samples:
    """Samples of one artifact with the runs of all parts."""
    return replace(parts[0], runs=tuple(run for part in parts for run in part.runs))


def in_turns(
    candidate: Subject,
    reference: Subject,
    plan: Plan,
    theirs: Mapping[str, Any] | None = None,
    where: str = "",
) -> Judged:
    """Judge an artifact against another that runs beside it.

    Args:
        candidate: what is judged.
        reference: against what.
        plan: how.
        theirs: record of the baseline that the reference is of, if of any.
        where: that baseline's name.

    Raises:
        KDError: what measuring and comparing raise; `baseline-foreign`.
    """
    work = Measurement([candidate, reference], plan, theirs, where)

    def decide(found: Sequence[Samples], level: float) -> Comparison:
        return _compare(found[0], found[1], True, plan, level)

    if plan.limit is None:
        work.all_runs()
        comparison, looks = decide(work.samples, plan.level), 1
    else:
        # processes are what a interleaved comparison is short of: their number grows within one run
        effort = plan.effort
        looking = Looks(decide, plan.level, first=first_look(effort) * effort.builds)
        most = looking.most_rounds // effort.builds
        share = effort.seconds / (effort.processes * effort.builds)
        work.run(replace(effort, processes=most, seconds=plan.limit, process_s=share), looking)
        comparison, looks = looking.final(work.samples), looking.taken
    ours, theirs_now = work.samples
    notes = _same(candidate, reference)
    return Judged(comparison, ours, theirs_now, work.allowed, notes, looks)


def from_samples(
    candidate: Subject, reference: Samples, plan: Plan, note: str, where: str = ""
) -> Judged:
    """Judge an artifact against samples that were taken earlier.

    Args:
        candidate: what is measured and judged.
        reference: of a baseline.
        plan: how.
        note: why the reference does not run beside it.
        where: the baseline's name.

    Raises:
        KDError: what measuring and comparing raise; `baseline-foreign`.
    """
    work = Measurement([candidate], plan, record_of(reference.runs[0]), where)

    def decide(found: Sequence[Samples], level: float) -> Comparison:
        return _compare(found[0], reference, False, plan, level)

    if plan.limit is None:
        work.all_runs()
        comparison, looks = decide(work.samples, plan.level), 1
    else:
        # what tells runs apart is seen only between runs: their number grows, but not that of
        # the sessions
        looking = Looks(decide, plan.level)
        end = time.monotonic() + plan.limit
        for _ in range(looking.most_rounds):
            begun = time.monotonic()
            work.run(replace(plan.effort, seconds=min(plan.effort.seconds, max(end - begun, 1.0))))
            now = time.monotonic()
            decided = looking(work.samples)
            if decided or now + (now - begun) > end or days_apart(work.samples[0], reference):
                break
        comparison, looks = looking.final(work.samples), looking.taken
    notes = (note, *_same(candidate, reference))
    return Judged(comparison, work.samples[0], reference, work.allowed, notes, looks)


def of_files(candidate: Samples, reference: Samples, plan: Plan, where: str = "") -> Judged:
    """Judge samples against samples; nothing is measured.

    Raises:
        KDError: `baseline-foreign`, and what comparing raises.
    """
    records = record_of(reference.runs[0]), record_of(candidate.runs[0])
    allowed = check_comparable(*records, plan.allow, where)
    comparison = _compare(candidate, reference, False, plan, plan.level)
    return Judged(comparison, candidate, reference, allowed, ("nothing was measured now",))


def reference_at_hand(
    baseline: Baseline, file: Path, given: Path | None, find: Callable[[Path], Subject]
) -> tuple[Subject | None, str]:
    """The artifact that a baseline was measured of, if it is still there.

    Args:
        baseline: whose.
        file: where it lies.
        given: where the artifact lies now, by the user.
        find: `find_subject` with backend and shape as the candidate has them.

    Returns:
        The artifact and an empty text; or None and why.

    Raises:
        KDError: `reference-missing`, `reference-differs`, those of `find_subject`; only where a
            path was given.
    """
    path = given or baseline.artifact(file)
    apart = "the baseline's samples stand for the reference, which ran at other times: "
    if not os.path.exists(path):  # also where its folder may not be read
        if given is None:
            return None, f"{apart}it is no longer at {path}; --reference FILE names another place"
        raise KDError(
            "reference-missing",
            "there is no such reference artifact",
            where=str(path),
            fix="name the file that the baseline was measured of, or leave --reference out to "
            "compare with the baseline's samples alone",
        )
    try:
        found = find(path)
    except KDError as error:
        if given is None:
            return None, f"{apart}{path} cannot be used: {error.message}"
        raise
    if found.sha256 == baseline.samples.sha256:
        return found, ""
    if given is None:
        return None, f"{apart}{path} has changed since"
    raise KDError(
        "reference-differs",
        f"this is not the artifact that the baseline was measured of: SHA-256 "
        f"{found.sha256[:12]}..., not {baseline.samples.sha256[:12]}...",
        where=str(path),
        fix="name that artifact, or leave --reference out to compare with the baseline's samples "
        "alone",
    )


def _same(candidate: Subject, reference: Subject | Samples) -> tuple[str, ...]:
    if candidate.sha256 != reference.sha256:
        return ()
    return ("both are the same artifact",)


def _compare(
    candidate: Samples, reference: Samples, paired: bool, plan: Plan, level: float
) -> Comparison:
    from kdcompile.stats.latency_test import compare

    return compare(candidate, reference, paired=paired, margin=plan.margin, level=level)
