"""The files and lines that a CI system takes from a run of kdcompile."""

import errno
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from kdcompile.ci.junit import junit
from kdcompile.ci.markdown import markdown
from kdcompile.ci.metrics import metrics
from kdcompile.ci.outcome import Outcome, outcome_of_error, overall_of
from kdcompile.ci.stream import annotations, unguarded
from kdcompile.core.errors import EXIT_OK, KDError
from kdcompile.core.files import write_json, write_text

FORMAT = 1  # of outcomes.json
FILES = ("junit.xml", "summary.md", "metrics.txt", "outcomes.json")
SUMMARY_BYTES = 1024 * 1024  # of a step's summary: GitHub drops a larger one whole

log = logging.getLogger("kdcompile")


def report_ci(
    outcomes: Sequence[Outcome],
    folder: Path,
    title: str,
    *,
    verdict: tuple[str, int] | None = None,
    stream: TextIO | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[Path]:
    """Write every report, and talk to GitHub where it runs this.

    Args:
        outcomes: at least one.
        folder: made where it is not there; takes `FILES`.
        title: what was judged; the same in every run.
        verdict: in words and as an exit code, of a command that judges nothing; by default what
            the outcomes say.
        stream: where annotations go; standard output by default. A runner reads both streams, so
            a command that prints JSON hands standard error.
        environment: `GITHUB_ACTIONS` asks for annotations, `GITHUB_STEP_SUMMARY` names a file
            that the summary is appended to.

    Returns:
        The files written, in the order of `FILES`.

    Raises:
        KDError: `ci-folder`, the folder cannot be written.
    """
    final = verdict or overall_of(outcomes)
    outcomes = _as_red(outcomes, final)
    summary = markdown(outcomes, title, final)
    record = {
        "format": FORMAT, "title": title, "verdict": final[0], "exit_code": final[1],
        "outcomes": [outcome.to_json() for outcome in outcomes],
    }  # fmt: skip
    files = [folder / name for name in FILES]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        texts = (junit(outcomes, title, verdict=final), summary, metrics(outcomes))
        for file, text in zip(files, texts, strict=False):
            write_text(file, text)
        write_json(files[-1], record)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if environment.get("GITHUB_ACTIONS") == "true":
        out = unguarded(stream or sys.stdout)
        for line in annotations(outcomes):
            out.write(line + "\n")
    _append(environment.get("GITHUB_STEP_SUMMARY"), summary)
    return files


def _as_red(outcomes: Sequence[Outcome], final: tuple[str, int]) -> Sequence[Outcome]:
    """With one more where the exit code is not 0 and no gate says so.

    Such as where every gate waits for the board: green tests must not stand beside an exit 5.
    """
    if final[1] == EXIT_OK or any(outcome.red for outcome in outcomes):
        return outcomes
    return [*outcomes, Outcome("verdict", "gate", "inconclusive", reason=final[0])]


@contextmanager
def in_ci(
    folder: Path | None,
    command: str,
    name: str,
    *,
    title: str | None = None,
    stream: TextIO | None = None,
) -> Iterator[None]:
    """Around a command's work: reports of an earlier run go, and an error is reported too.

    Without this, a command that breaks would leave the passing reports of the run before it,
    which the next step uploads.

    Args:
        folder: as in `report_ci`; None does nothing.
        command: such as `bench`.
        name: of what could not be judged.
        title: as in `report_ci`; by default `kdcompile bench`, and so on.
        stream: as in `report_ci`.

    Raises:
        KDError: `ci-folder`; and whatever is raised inside.
    """
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (folder / file).unlink(missing_ok=True)
        if not os.access(folder, os.W_OK):  # now, and not after hours of work
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    except Exception as error:
        outcome = outcome_of_error(error, name, command)
        report_ci([outcome], folder, title or f"kdcompile {command}", stream=stream)
        raise


def _append(summary_file: str | None, text: str) -> None:
    """Append to the step's summary; a verdict must not be lost because that cannot be written."""
    if not summary_file:
        return
    path = Path(summary_file)
    try:
        there = path.stat().st_size if path.exists() else 0
        if there + len(text.encode()) > SUMMARY_BYTES:
            log.warning("summary not appended: the step's would exceed 1 MiB, see summary.md")
            return
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
    except OSError as error:
        log.warning("summary not appended to GITHUB_STEP_SUMMARY (%s): %s", path, error.strerror)


def _unwritable(folder: Path, error: OSError) -> KDError:
    return KDError(
        "ci-folder",
        f"the CI reports cannot be written: {error.strerror}",
        where=str(folder),
        fix="name a folder that you may write to: --ci-folder DIR",
    )
