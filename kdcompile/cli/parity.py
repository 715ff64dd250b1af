"""The parity ladder of what is named on the command line: a spec or a bundle."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.build import planned
from kdcompile.cli.options import echo_json
from kdcompile.cli.trust import open_trusted
from kdcompile.core.backends import is_served
from kdcompile.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK, KDError
from kdcompile.debug.network import backend_of

if TYPE_CHECKING:
    from kdcompile.bundle.manifest import Bundle
    from kdcompile.debug.variants import Ladder, Step
    from kdcompile.passes.manager import Plan

IMAGES = 16  # of the validation split
NOTHING = "no rung could be held against another; the list says why each is absent"
NEXT = "kdcompile bisect names the tensor, the node and the module"


def is_bundle(spec: str | None) -> bool:
    """Whether a bundle is named, and not a spec."""
    return spec is not None and (Path(spec) / "manifest.json").is_file()


@contextmanager
def open_ladder(
    spec: str | None,
    target: str | None,
    sets: tuple[str, ...],
    via: str | None,
    trusted: Path | None,
) -> Iterator["Ladder"]:
    """The ladder, with the places of its engines open.

    A spec's stages up to `compile` are made first where they are not there.

    Raises:
        KDError: any of the stages'; of a bundle `parity-incomplete`, `bundle-corrupt` and its kin.
        click.UsageError: an option that is of the other kind.
    """
    if not is_bundle(spec):
        if trusted is not None:
            raise click.UsageError("--trusted is of a BUNDLE: name its folder")
        with ladder_of_spec(planned(spec, target, sets, via)) as ladder:
            yield ladder
        return
    if target is not None or sets:
        raise click.UsageError("--target and --set are of a spec: a bundle is built")
    bundle, _ = open_trusted(Path(str(spec)), trusted)  # before an engine of it is opened
    with ladder_of_bundle(bundle, via) as ladder:
        yield ladder


def ladder_of_spec(plan: "Plan") -> AbstractContextManager["Ladder"]:
    """Of a build; where its export is refused for its outputs, of the rungs up to there."""
    from kdcompile.debug.sources import export_ladder, spec_ladder

    try:
        plan.make("compile")
    except KDError as error:
        if error.code != "export-parity":
            raise
        click.echo(f"the export is refused: {error.message}", err=True)
        return export_ladder(plan.spec, plan.target, plan.found()["distill"], IMAGES)
    return spec_ladder(plan.spec, plan.target, plan.found(), plan.board, IMAGES)


def ladder_of_bundle(bundle: "Bundle", via: str | None) -> AbstractContextManager["Ladder"]:
    """Of a bundle, with its engine at a place where one is named.

    Raises:
        KDError: `bundle-corrupt`, `engine-missing`.
    """
    from kdcompile.debug.sources import bundle_ladder
    from kdcompile.targets import load

    folder = bundle.folder
    place: tuple[str | None, str] | None = None
    if via is not None:
        if bundle.engine is None:
            raise KDError(
                "engine-missing",
                "a place is named, and the bundle has no engine to be run there",
                where=str(folder),
                fix="leave out --via, or build the engine: kdcompile build --via PLACE",
            )
        place = via, backend_of(bundle)
    elif bundle.engine is not None and is_served(backend_of(bundle)):
        place = None, backend_of(bundle)  # which runs here or nowhere
    on_cpu = load(bundle.target).kind == "cpu"
    return bundle_ladder(folder, bundle.manifest, bundle.report(), on_cpu, place)


def show_ladder(ladder: "Ladder", steps: Sequence["Step"], as_json: bool) -> int:
    """Print the ladder; the exit code is 3 where a rung failed, 5 where none was compared."""
    from kdcompile.debug.show import ladder_lines

    failed = [step.name for step in steps if step.verdict == "failed"]
    judged = sum(step.verdict == "passed" for step in steps)
    code = EXIT_GATE if failed else EXIT_OK if judged else EXIT_INCONCLUSIVE
    if as_json:
        echo_json({**ladder_json(ladder, steps), "exit_code": code})
        return code
    click.echo("\n".join(ladder_lines(ladder, steps)))
    if failed:
        click.echo(f"failed: {', '.join(failed)}; {NEXT}")
    elif not judged:
        click.echo(f"inconclusive: {NOTHING}")
    else:
        agree = "1 rung agrees" if judged == 1 else f"{judged} rungs agree"
        click.echo(f"passed: {agree} with the one before")
    return code


def ladder_json(ladder: "Ladder", steps: Sequence["Step"]) -> dict[str, Any]:
    """The ladder as JSON values."""
    return {
        "rungs": [step.to_json() for step in steps],
        "images": ladder.source,
        "n": len(ladder.images),
        "tolerance": ladder.tolerance.noise,
        "tolerance_why": ladder.tolerance.why,
        "min_sqnr_db": ladder.min_sqnr_db,
    }
