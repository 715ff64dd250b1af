"""`targets`: the devices, what is known of each, and how well their latencies are predicted."""

import click

from kdcompile.cli.options import as_json, echo_json, tell, via_option


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def targets(context: click.Context, as_json: bool) -> None:
    """List the devices that kdcompile knows."""
    if context.invoked_subcommand is not None:
        return
    from kdcompile.targets import aliases, load, names

    known = {name: load(name, calibrated=False) for name in names()}
    if as_json:
        echo_json({"targets": {n: t.title for n, t in known.items()}, "aliases": aliases()})
        return
    alias_of = {module: alias for alias, module in aliases().items()}
    for name, target in known.items():
        note = f"  (alias {alias_of[name]})" if name in alias_of else ""
        click.echo(f"{name:<22} {target.title}{note}")


@targets.command()
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Print every value of a target with its source, its limits and its measured latencies."""
    from dataclasses import asdict

    from kdcompile.targets import load
    from kdcompile.targets.fixtures import fixtures_of

    target = load(name)
    values, fixtures = target.to_json(), fixtures_of(name)
    if as_json:
        rules = [asdict(rule) for rule in target.rules]
        echo_json(values | {"rules": rules, "fixtures": [asdict(f) for f in fixtures]})
        return
    sources = values.pop("sources")
    calibration = values.pop("calibration")
    for group in ("peak_tflops", "vendor"):
        values |= {f"{group}.{key}": value for key, value in values.pop(group).items()}
    for key, value in values.items():
        source = f"   [{sources[key]}]" if key in sources else ""
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        click.echo(f"{key:<20} {text}{source}")
    for rule in target.rules:
        click.echo(f"{'limit':<20} {rule.code}: {rule.text}   [{rule.source}]")
    for f in fixtures:
        note = f", not used: {f.excluded}" if f.excluded else ""
        click.echo(
            f"{'fixture':<20} {f.network} {f.precision} {f.mode} {f.measured_ms:g} ms{note}   "
            f"[{f.source}]"
        )
    if calibration is not None:
        from kdcompile.targets import user

        click.echo(f"{'calibration':<20} {user.path(target.name)}   [{calibration['source']}]")


@targets.command()
@as_json
def validate(as_json: bool) -> None:
    """Print the latency model's predictions beside every measured latency.

    Each is predicted from the measurements of all other networks.
    """
    from kdcompile.latency_model.validate import validate as validated

    found = validated()
    if as_json:
        echo_json(found.to_json())
    else:
        click.echo(found.text())


@targets.command()
@click.argument("name")
@via_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="What the measurement may take; compiling is most of it on a GPU.",
)
@as_json
def calibrate(name: str, via: str | None, seconds: float, as_json: bool) -> None:
    """Measure a device and fit the latency model to it.

    NAME may carry a power mode and a JetPack: jetson-orin-nano-8gb@25W. The result is a file of
    yours, which every command then uses for this target; deleting it undoes the calibration.
    """
    from kdcompile.latency_model.calibrate import calibrate as measured

    found = measured(name, via, seconds, tell)
    if as_json:
        echo_json(found.to_json())
    else:
        click.echo(found.text())
