"""Value of the fixture `kdcompile_latency`: measures, compares and fails, or saves a baseline."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kdcompile.ci.mark import Settings, settings_of, to_decide
from kdcompile.ci.partial import save_function
from kdcompile.core.errors import KDError

if TYPE_CHECKING:
    from kdcompile.latency.report import Judged
    from kdcompile.stats.comparison import Comparison

PROCESSES, RUN_S = 3, 10.0  # of a run in the usual time: more of it is more of them
AGAIN = "pytest --kdcompile-save-baseline"
Artifact = str | os.PathLike[str]
Candidate = Artifact | Callable[[], object]


class Latency:
    """The fixture's value: call it with what is to be judged.

    Args:
        name: of the test, which a function's samples bear.
        root: pytest's rootdir.
        mark: positional and named words of the test's mark.
        save: write the baseline in place of judging.
        runs: measuring runs of a baseline.
        why: one is replaced.
        workers: of pytest-xdist.
        judged: takes one line on what was found.
    """

    def __init__(
        self,
        *,
        name: str,
        root: Path,
        mark: tuple[Sequence[Any], Mapping[str, Any]],
        save: bool,
        runs: int,
        why: str,
        workers: int,
        judged: Callable[[str], None],
    ) -> None:
        self.name, self.root, self.mark, self.save = name, root, mark, save
        self.runs, self.why, self.workers, self._judged = runs, why, workers, judged

    def __call__(self, candidate: Candidate, *, reference: Candidate | None = None) -> "Comparison":
        """Judge a latency: the test fails if it regressed, and, as its mark has it, if undecided.

        Where a baseline is saved, it is skipped.

        Args:
            candidate: path of an artifact, measured in processes of its own; or a function without
                arguments, timed here.
            reference: what it is held against in place of the mark's baseline; of the same sort,
                measured in turns with it.

        Returns:
            The verdict, where the test goes on.
        """
        settings, found = self._found(candidate, reference)
        said = str(found) if isinstance(found, str | KDError) else text_of(found)
        if isinstance(found, KDError):
            pytest.fail(said, pytrace=False)
        self._judged(said)
        if isinstance(found, str):
            pytest.skip(said)
        decision = found.comparison.decision
        if decision == "inconclusive":
            if settings.undecided == "skip":
                pytest.skip(said)
            said += f"\n  fix:   {to_decide(found, settings, function=callable(candidate))}"
        if decision in ("regressed", "inconclusive"):
            pytest.fail(said, pytrace=False)
        return found.comparison

    def _found(
        self, candidate: Candidate, reference: Candidate | None
    ) -> tuple[Settings, "Judged | KDError | str"]:
        """The verdict; or what was saved; or an error, for pytest to fail with it alone."""
        settings = Settings()
        try:
            settings = settings_of(*self.mark)
            self._check(settings, candidate, reference)
            if self.save and reference is None:
                return settings, self._saved(settings, candidate)
            return settings, self._verdict(settings, candidate, reference)
        except KDError as error:
            return settings, error

    def _check(self, settings: Settings, candidate: Candidate, reference: Candidate | None) -> None:
        if self.workers > 1:
            raise KDError(
                "latency-parallel",
                f"{self.workers} workers of pytest-xdist run tests during this measurement",
                where=self.name,
                fix=f"run latency tests by themselves: pytest -n 0 {self.name}",
            )
        for what in (candidate, reference):
            if not (what is None or callable(what) or isinstance(what, str | os.PathLike)):
                raise _call(self.name, f"{what!r} is neither a path nor a function")
        if (settings.baseline is None) == (reference is None):
            raise _call(
                self.name, "it needs the mark's baseline, or a reference, and not both of them"
            )
        if reference is not None and callable(reference) != callable(candidate):
            raise _call(self.name, "a path and a function cannot take turns")

    def _verdict(
        self, settings: Settings, candidate: Candidate, reference: Candidate | None
    ) -> "Judged":
        if callable(candidate):
            return self._function(settings, candidate, reference)
        from kdcompile import api

        path, margin, times = (
            self._path(candidate),
            settings.max_regression,
            settings.seconds / RUN_S,
        )
        if reference is not None:
            assert not callable(reference), "checked"
            found = api.compare(
                self._path(reference), path, margin=margin, via=settings.via,
                seconds=settings.seconds, processes=math.ceil(PROCESSES * max(1.0, times)),
            )  # fmt: skip
        else:
            # what tells two baselines apart is seen between runs only: more time is more of these
            runs = max(1, math.ceil(times))
            found = api.bench(
                path, baseline=self._baseline_file(settings), margin=margin, allow=settings.allow,
                runs=runs, via=settings.via, seconds=settings.seconds / runs,
            )  # fmt: skip
        assert found.compared is not None, "there is a reference"
        return found.compared

    def _function(
        self, settings: Settings, candidate: Callable[[], object], reference: Candidate | None
    ) -> "Judged":
        from kdcompile.ci.callables import Timer
        from kdcompile.ci.partial import calls_of
        from kdcompile.latency.baseline import check_baseline, read_baseline
        from kdcompile.latency.report import Judged
        from kdcompile.stats.latency_test import compare

        if reference is not None:
            assert callable(reference), "checked"
            named = {self.name: candidate, f"{self.name} (reference)": reference}
            ours, theirs = Timer(settings.seconds).time(named)
            made = compare(ours, theirs, paired=True, margin=settings.max_regression)
            return Judged(made, ours, theirs)
        file = self._baseline_file(settings)
        kept = read_baseline(file)
        (ours,) = Timer(settings.seconds, calls_of(kept)).time({self.name: candidate})
        run = ours.runs[0]
        try:
            allowed = check_baseline(run.environment, run.mode, kept, settings.allow, str(file))
        except KDError as error:
            if error.code == "baseline-foreign":
                error.fix = (
                    f"save one that is measured as here: {AGAIN} --kdcompile-why TEXT; or name "
                    "what may differ in the mark, such as allow=['python_version']"
                )
            raise
        made = compare(ours, kept.samples, paired=False, margin=settings.max_regression)
        return Judged(made, ours, kept.samples, allowed, ("one run, in the process of the test",))

    def _baseline_file(self, settings: Settings) -> Path:
        assert settings.baseline is not None, "checked"
        file = self._path(settings.baseline)
        if not file.exists():
            raise KDError(
                "baseline-missing",
                "the test has no baseline yet",
                where=str(file),
                fix=f"measure one: {AGAIN} {self.name}",
            )
        return file

    def _path(self, path: Artifact) -> Path:
        return self.root / path

    def _saved(self, settings: Settings, candidate: Candidate) -> str:
        """Measure for the baseline; returns what was written, in words."""
        from kdcompile import api
        from kdcompile.latency.baseline import runs_wanted

        runs_wanted(self.runs, "--kdcompile-runs")
        assert settings.baseline is not None, "checked"
        file, why = self._path(settings.baseline), self.why.strip() or AGAIN
        if file.exists() and not self.why.strip():
            raise KDError(
                "why-missing",
                "the baseline is there already, and its history must say why it is replaced",
                where=str(file),
                fix=f"{AGAIN} --kdcompile-why TEXT {self.name}",
            )
        if callable(candidate):
            test = self.root / self.name.partition("::")[0]
            done = save_function(file, self.name, test, candidate, settings.seconds, self.runs, why)
            if done < self.runs:
                return f"run {done} of {self.runs} of {file.name}: {AGAIN} again"
        else:
            path = self._path(candidate)
            found = api.bench(
                path, save=file, why=why, runs=self.runs, via=settings.via, seconds=settings.seconds
            )
            done = len(found.samples.runs)
        return f"saved {file.name}, {done} runs"


def text_of(judged: "Judged") -> str:
    """A verdict on one line: decision, change of the median, reason, notes."""
    comparison = judged.comparison
    parts = [comparison.reason, *(f"allowed to differ: {d}" for d in judged.allowed), *judged.notes]
    change = (comparison.ratios[0].value - 1) * 100
    return f"{comparison.decision}: p50 {change:+.1f} %: {'; '.join(parts)}"


def _call(name: str, message: str) -> KDError:
    return KDError(
        "call-invalid",
        message,
        where=name,
        fix="kdcompile_latency(PATH) or kdcompile_latency(FUNCTION), with baseline=FILE in the "
        "mark; or kdcompile_latency(NEW, reference=OLD), both paths or both functions, without",
    )
