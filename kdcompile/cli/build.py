"""Commands `plan`, `build`, and each stage as its own command on the same store."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.ci import CiCommand, ci_options, ci_place, ci_stream, name_of, title_of
from kdcompile.cli.copying import copy_out, refuse_input
from kdcompile.cli.options import (
    PATH,
    as_json,
    force_option,
    previous_option,
    require_option,
    sign_option,
    spec_options,
    track_option,
    trust_words,
    trusted_option,
    via_option,
    with_previous,
)
from kdcompile.cli.terminal import echo_json, echo_text, show, tell
from kdcompile.core.errors import EXIT_FIXABLE, KDError, plain

if TYPE_CHECKING:
    from kdcompile.bundle.trust import Trust
    from kdcompile.config.spec import Student
    from kdcompile.core.store import Artifact
    from kdcompile.passes.manager import Plan

REPLAY = "Run the step of a loss that was not finite again, from its file; name the tensor."
EXPLAIN = {
    "search": "Show the modules that keep the teacher's width and why; search for nothing.",
    "distill": "Show stages, taps, shapes, adapters, terms and their weights; train nothing.",
}
RECORD = "search.json"  # of a search that looked at many students
LABEL = "Print N images of data.unlabelled to label next instead of the plan; trains nothing."
MEASURE = "Build and time this many of the best students before choosing."
NEEDS_PLACE = ("search", "compile", "bundle")  # the stages' commands that may need the board


def planned(
    spec: str | None, target: str | None, sets: tuple[str, ...], via: str | None = None
) -> "Plan":
    """The plan of a spec named on the command line."""
    from kdcompile import api

    return api.planned(spec, {"target": target, "sets": sets}, via)


@click.command()
@spec_options
@via_option
@click.option("--label", type=click.IntRange(1), metavar="N", help=LABEL)
@as_json
def plan(spec: str | None, label: int | None, as_json: bool, **given: Any) -> None:
    """Print the steps, cache hits, cost estimates and hardware limits of a build.

    Exit 1 where the target would refuse it.
    """
    from kdcompile.passes import label as labels

    work = planned(spec, **given)
    if label is not None:
        show(labels.to_label(work, label), as_json, labels.lines)
        return
    from kdcompile.passes.plan_text import lines

    tell(f"plan: {work.spec.path} for {work.target.full_name}")
    from kdcompile.passes.show import describe  # loads torch, which takes a while

    found = describe(work)
    show(found.to_json(), as_json, lines)
    if found.is_refused:
        sys.exit(EXIT_FIXABLE)


@click.command(cls=CiCommand)
@spec_options
@via_option
@click.option("-o", "--output", "out", type=PATH, help="Bundle folder.")
@require_option
@sign_option
@previous_option
@trusted_option
@force_option
@track_option
@ci_options
@as_json
def build(
    spec: str | None,
    sets: tuple[str, ...],
    require: str | None,
    baseline: Path | None,
    trusted: "Trust | None",
    ci: bool,
    ci_folder: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Run every stage and write the bundle to dist/NAME-TARGET/.

    --trusted and --expect are of the --baseline bundle.
    """
    from kdcompile import api
    from kdcompile.bundle.text import text_summary
    from kdcompile.ci.report import in_ci
    from kdcompile.core.report import overall

    folder, stream, device = ci_place(ci, ci_folder), ci_stream(as_json), require == "device"
    title = title_of("build", spec, given["target"])
    with in_ci(folder, "build", name_of(spec), title=title, stream=stream):
        sets = with_previous(sets, baseline)
        given |= trust_words(trusted)
        built = api.build(spec, require_device=device, sets=sets, **given)
    if built.signed_by is not None:
        tell(f"signed by {built.signed_by}")
    if as_json:
        echo_json(built.to_json())
    else:
        echo_text(text_summary(built))
        click.echo(f"bundle: {plain(built.bundle)}")
        click.echo(overall(built.gates, require_device=device)[0])
    if folder is not None:
        from kdcompile.ci.outcome import outcomes_of_report
        from kdcompile.ci.report import report_ci

        outcomes = outcomes_of_report(built, require_device=device)
        report_ci(outcomes, folder, title, stream=stream)
    sys.exit(built.exit_code)


def make_stage_command(name: str, text: str) -> click.Command:
    """The command that runs one stage and whatever it needs."""

    @click.command(name=name, help=f"{text[0].upper()}{text[1:]}.")
    @spec_options
    @click.option(
        "-o",
        "--output",
        type=PATH,
        help="Copy the stage's files to this folder, or its main file to this file.",
    )
    @as_json
    def command(
        spec: str | None,
        target: str | None,
        sets: tuple[str, ...],
        output: Path | None,
        as_json: bool,
        via: str | None = None,
        explain: bool = False,
        replay: Path | None = None,
        measure: int | None = None,
    ) -> None:
        if replay is not None:
            show_replay(planned(spec, target, sets), replay, as_json)
            return
        if explain:
            show_explanation(name, planned(spec, target, sets), as_json)
            return
        if measure is not None:
            sets = (*sets, f"search.measure={measure}")
        if measure and not (student := planned(spec, target, sets, via).spec.student).searches:
            raise unsearched(student)
        from kdcompile import api

        if output is not None:  # before the work
            refuse_input(output, planned(spec, target, sets, via).spec)
        artifact = api.run_stage(name, spec, via=via, target=target, sets=sets)
        written = str(artifact.path) if output is None else copy_out(artifact, output)
        if as_json:
            record = {"search": artifact.json(RECORD)} if RECORD in artifact.files else {}
            echo_json({"stage": name, "path": written, **artifact.meta, **record})
        else:
            for line in explained(artifact):
                click.echo(plain(line))
            for key, value in artifact.meta.items():
                if value is not None:
                    click.echo(f"{key}: {plain(value)}")
            click.echo(f"{name}: {plain(written)}")

    _add_options(command, name)
    return command


def _add_options(command: click.Command, name: str) -> None:
    """The options of one stage alone."""
    if name in NEEDS_PLACE:
        via_option(command)
    if name == "search":
        command.params.append(click.Option(["--measure"], type=click.IntRange(0), help=MEASURE))
    if name in EXPLAIN:
        command.params.append(click.Option(["--explain"], is_flag=True, help=EXPLAIN[name]))
    if name == "distill":
        batch = click.Option(["--replay"], metavar="FILE", type=PATH)
        batch.help = REPLAY
        command.params.append(batch)


def unsearched(student: "Student") -> KDError:
    """The refusal to time students where only one is looked at."""
    fix = "leave it out, or pass --set student.family=search and a budget: "
    fix += '--set "student.budget={ speedup = 4 }"'
    if student.family == "search":
        fix = 'leave it out, or search anew: set student.init = "inherit", without weights'
    given = student.init == "file"
    which = "given as a file" if given else f"of family {student.family!r}"
    return KDError(
        "measure-unsearched",
        f"a student {which} is not searched for, so none is built and timed",
        where="--measure",
        fix=fix,
    )


def explained(artifact: "Artifact") -> list[str]:
    """What a search found and why, as text; nothing of the other stages."""
    if artifact.stage != "search":
        return []
    if RECORD in artifact.files:
        from kdcompile.search.report import lines

        return lines(artifact.json(RECORD))
    return [f"- {sentence}" for sentence in artifact.json("explanation.json")]


def show_explanation(name: str, work: "Plan", as_json: bool) -> None:
    """Print what a search cannot change, or how a training would run; nothing is trained for it.

    Raises:
        KDError: `search-to-do`, the student is not known before a search, which trains.
    """
    if name == "search":
        from kdcompile.search import frozen

        show(frozen.explain(work.spec), as_json, frozen.lines)
        return
    from kdcompile.distill.explain import explain, lines

    made = work.found().get("distill")
    result = None if made is None else made.json("result.json")
    done = result and {name: result.get(name) for name in ("range_test", "pilot")}
    show(explain(work.spec, student_of(work), done), as_json, lines)


def show_replay(work: "Plan", file: Path, as_json: bool) -> None:
    """Print what is not finite in a kept step; nothing is trained for it."""
    from kdcompile.distill.replayed import lines, replayed

    show(replayed(work.spec, student_of(work), file), as_json, lines)


def student_of(work: "Plan") -> dict[str, Any]:
    """The architecture of the student that would be trained.

    Raises:
        KDError: `search-to-do`, the student is not known before a search, which trains.
    """
    if work.awaits_search:
        raise KDError(
            "search-to-do",
            "the student architecture is not known yet",
            where="[student] family",
            fix="run kdcompile search with the same spec and settings first",
        )
    found: dict[str, Any] = work.make("search").json("architecture.json")
    return found
