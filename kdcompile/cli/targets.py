"""Command `targets`: devices, their values and limits, and how well latencies are predicted."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from kdcompile.cli.options import as_json, via
from kdcompile.cli.terminal import show, tell

if TYPE_CHECKING:
    from kdcompile.targets import Target
    from kdcompile.targets.fixtures import Fixture


@dataclass(frozen=True)
class Targets:
    """The devices: titles by name, and names by alias."""

    targets: dict[str, str]
    aliases: dict[str, str]


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def targets(context: click.Context, as_json: bool) -> None:
    """List the devices that kdcompile knows."""
    if context.invoked_subcommand is not None:
        return
    from kdcompile.targets import aliases, load, names

    titles = {name: load(name, calibrated=False).title for name in names()}
    show(Targets(titles, aliases()), as_json, _listed)


def _listed(found: Targets) -> list[str]:
    alias_of = {module: f"  (alias {alias})" for alias, module in found.aliases.items()}
    return [f"{name:<22} {title}{alias_of.get(name, '')}" for name, title in found.targets.items()]


@targets.command("show")
@click.argument("name")
@as_json
def show_target(name: str, as_json: bool) -> None:
    """Print every value of a target with its source, its limits and its measured latencies."""
    from kdcompile.targets import load
    from kdcompile.targets.fixtures import fixtures_of

    target, fixtures = load(name), fixtures_of(name)
    found = target.to_json() | {"rules": list(target.rules), "fixtures": list(fixtures)}
    show(found, as_json, lambda _: _described(target, fixtures))


def _described(target: "Target", fixtures: "tuple[Fixture, ...]") -> list[str]:
    from kdcompile.latency_model.predict import validated_kinds
    from kdcompile.targets import user

    values = target.to_json()
    sources, calibration = values.pop("sources"), values.pop("calibration")
    for group in ("peak_tflops", "vendor"):
        values |= {f"{group}.{key}": value for key, value in values.pop(group).items()}
    rows = []
    for key, value in values.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        rows.append((key, text, sources.get(key)))
    rows += [("limit", f"{rule.code}: {rule.text}", rule.source) for rule in target.rules]
    for precision, kinds in validated_kinds(target).items():
        rows.append((f"validated.{precision}", ", ".join(kinds) or "no kind of network", None))
    for f in fixtures:
        note = f", not used: {f.excluded}" if f.excluded else ", secondary" * f.secondary
        text = f"{f.network} {f.precision} {f.mode} {f.measured_ms:g} ms{note}"
        rows.append(("fixture", text, f.source))
    if calibration is not None:
        rows.append(("calibration", user.path(target.name), calibration["source"]))
    return [
        f"{key:<20} {text}" + (f"   [{source}]" if source else "") for key, text, source in rows
    ]


@targets.command()
@as_json
def validate(as_json: bool) -> None:
    """Print the latency model's predictions with every measured latency.

    Each is predicted from the measurements of all other networks.
    """
    from kdcompile.latency_model.validate import validate as validated

    show(validated(), as_json, lambda found: [found.text()])


@targets.command()
@click.argument("name")
@via("Measure there")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="Time limit of the measurement; compiling is most of it on a GPU.",
)
@as_json
def calibrate(name: str, via: str | None, seconds: float, as_json: bool) -> None:
    """Measure a device and fit the latency model to it.

    NAME may have a power mode and a JetPack: jetson-orin-nano-8gb@25W. The result is a file of
    yours, which every command then uses for this target; deleting it undoes the calibration.
    """
    from kdcompile.latency_model.calibrate import calibrate as measured

    show(measured(name, via, seconds, tell), as_json, lambda found: [found.text()])
