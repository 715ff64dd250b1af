"""`kdcompile targets calibrate`: a device's own efficiencies for the latency model.

The micro-benchmark is measured through the agent that builds use, the efficiencies are fitted
over those that the package ships, and the user's file of the target (`targets.user`) is
replaced. A calibration that is there already is not built upon, so that nothing counts twice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryFile
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, computed_field

from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_text
from kdcompile.latency.environment import cpu
from kdcompile.latency_model.device_check import check_device, mode_of
from kdcompile.latency_model.microbench import chains
from kdcompile.latency_model.microbench_timing import Say, TimedNetwork, Times, cases, measure
from kdcompile.latency_model.parameters import (
    Efficiencies,
    Observation,
    efficiencies_of,
    fit,
    predicted_ms,
)
from kdcompile.remote.open import Place, evidence_of, facts_of, open_place
from kdcompile.targets import Target, load, user

SECONDS = 120.0
LEAST_OBSERVATIONS = 8
VECTORS = (4, 8, 16)  # float32 lanes of NEON or SSE, AVX2, AVX-512: a CPU library's channel block
CLOCK_SHARE = 0.05  # that a GPU's clock may miss the target's by


def summary(errors: Sequence[float]) -> dict[str, float]:
    """Median and worst of the absolute relative errors."""
    absolute = [abs(error) for error in errors]
    return {"median": median(absolute), "worst": max(absolute)}


# as JSON: their median and the worst
Errors = Annotated[tuple[float, ...], PlainSerializer(summary)]


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found and wrote.

    Attributes:
        table: the user's file, with its observations.
        path: of that file.
        before, after: relative errors of the observations' predictions, in their order, with the
            shipped efficiencies and with the fitted ones. `after` is in sample.
        times: what was measured, refused and left out.
        notes: what a reader must know of the measurement.
    """

    table: Annotated[Mapping[str, Any], Field(serialization_alias="calibration")]
    path: Path
    before: Errors
    after: Errors
    times: Annotated[Times, Field(exclude=True)]
    notes: tuple[str, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def refused(self) -> dict[str, str]:
        """What could not be measured."""
        return self.times.refused

    @computed_field  # type: ignore[prop-decorator]
    @property
    def left_out(self) -> list[str]:
        """What was measured and not used."""
        return self.times.left_out

    def text(self) -> str:
        """The table of what was measured and predicted, and where the result is."""
        rows = [f"{'network':<40} {'measured':>10} {'before':>8} {'after':>8}"]
        for row, old, new in zip(self.table["observations"], self.before, self.after, strict=True):
            rows.append(f"{row['name']:<40} {row['ms']:>7.3f} ms {old:>+8.0%} {new:>+8.0%}")
        for title, errors in (("before", self.before), ("after, in sample", self.after)):
            figures = summary(errors)
            rows.append(
                f"{title}: median error {figures['median']:.0%}, worst {figures['worst']:.0%} "
                f"over {len(errors)} latencies"
            )
        rows += [f"not measured: {name} ({why})" for name, why in self.times.refused.items()]
        rows += [f"note: {note}" for note in self.notes]
        return "\n".join([*rows, f"wrote {self.path}"])


def calibrate(
    name: str,
    via: str | None = None,
    seconds: float = SECONDS,
    say: Say = lambda text: None,
    opener: Callable[[str | None, str], Place] = open_place,
) -> Calibration:
    """Measure a target's device and write the user's calibration of it.

    Args:
        name: of the target, with its power mode where that is not the module's default.
        via: the device; None for this machine.
        seconds: what the measurement may take.
        say: called with each progress message.
        opener: opens a device for a backend.

    Raises:
        KDError: `calibrate-unwritable`, the result could not be kept; `calibrate-place`,
            `board-mismatch`, `calibrate-mode`, the device is not the target; `calibrate-few`, too
            little was measured; what the device connection raises.
        ToolMissingError: the backend is not installed there.
    """
    target = load(name, calibrated=False)
    _check_writable(user.path(target.name))
    backend = target.runtime
    with opener(via, backend) as place:
        check_device(place.about, target, place.label)
        if target.kind == "workstation":
            target = target.with_backend(str(place.about["backend_version"]))
        evidence = evidence_of(place.about, target, place.label)
        board = Board(via, backend, place.label, facts_of(place.about), evidence)
        times = measure(place, board, target, cases(chains(target.kind), target), seconds, say)
        after = place.call("hello")
    notes = (*_notes(times, seconds), *_clock_notes(after, target))
    say(f"fitting {len(times.undisturbed)} latencies")
    return _fitted(target, board, via, after, times, notes)


def _check_writable(path: Path) -> None:
    """Refuse before two minutes are spent what could not be kept after them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise KDError(
            "calibrate-unwritable",
            f"the calibration could not be written: {error}",
            where=str(path),
            fix="make that folder writable, or name another one in XDG_CONFIG_HOME",
        ) from error


def _fitted(
    target: Target, board: Board, via: str | None, about: Mapping[str, Any], times: Times,
    notes: tuple[str, ...],
) -> Calibration:  # fmt: skip
    """Fit and write."""
    used = times.undisturbed
    if len(used) < LEAST_OBSERVATIONS:
        raise KDError(
            "calibrate-few",
            f"{len(used)} latencies were measured undisturbed, and {LEAST_OBSERVATIONS} are needed",
            where=board.label,
            fix="stop what else runs there, and give it more time: kdcompile targets calibrate "
            f"{target.name} --seconds 600",
        )
    prior = efficiencies_of(target)
    before = tuple(_errors(_observations(used, target), prior))
    target, found = _best(target, used, prior)
    after = tuple(_errors(_observations(used, target), found))
    facts = {
        "target": target.name,
        "mode": target.power_mode,
        "measured": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "place": board.label,
        "machine": cpu() if board.facts["gpu"] is None and via is None else board.machine,
        "backend": board.backend,
        "backend_version": board.version,
    }
    table = _table(target, facts, about, found, summary(after)["median"], used, after)
    path = user.path(target.name)
    write_text(path, user.to_toml(table))
    return Calibration(table, path, before, after, times, notes)


def _table(
    target: Target, facts: dict[str, str], about: Mapping[str, Any], found: Efficiencies,
    error: float, timed: Sequence[TimedNetwork], errors: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    """The user's file, its texts first."""
    tile = target.channel_tile if target.kind == "cpu" else None
    extra = {"gpu_mhz": _gpu_mhz(about), "jetpack": target.jetpack, "channel_tile": tile}
    text = "{machine}, {backend} {backend_version}, {measured}".format(**facts)
    return {
        "format": user.FORMAT,
        **facts,
        **{key: value for key, value in extra.items() if value is not None},
        "source": f"kdcompile targets calibrate: {len(timed)} micro-benchmarks on {text}",
        "error": error,
        "residual": found.residual,
        "covariance": [list(row) for row in found.covariance],
        "values": {name: found.values[name] for name in sorted(found.values)},
        user.LATENCIES: [
            {
                "name": row.name, "network": row.network, "precision": row.precision,
                "mode": row.mode, "ms": row.ms, "predicted_ms": row.ms * (1 + error),
                "spread": row.spread,
            }
            for row, error in zip(timed, errors, strict=True)
        ],
    }  # fmt: skip


def _best(
    target: Target, rows: Sequence[TimedNetwork], prior: Efficiencies
) -> tuple[Target, Efficiencies]:
    """The fit; of a CPU with the vector width, in channels, that explains the latencies best."""
    widths = (target.channel_tile, *(VECTORS if target.kind == "cpu" else ()))
    known = [replace(target, channel_tile=width) for width in dict.fromkeys(widths)]
    fits = [(each, fit(_observations(rows, each), prior)) for each in known]

    def misfit(pair: tuple[Target, Efficiencies]) -> float:
        return fmean(abs(math.log1p(e)) for e in _errors(_observations(rows, pair[0]), pair[1]))

    return min(fits, key=misfit)


def _observations(rows: Sequence[TimedNetwork], target: Target) -> list[Observation]:
    return [
        Observation(
            row.name, row.network, row.kernels, target, row.precision, row.ms,
            graph=target.kind == "cpu" or row.mode == "graph",
        )
        for row in rows
    ]  # fmt: skip


def _errors(observations: Sequence[Observation], efficiencies: Efficiencies) -> list[float]:
    """Relative errors of the predictions."""
    return [predicted_ms(o, efficiencies) / o.ms - 1 for o in observations]


def _gpu_mhz(about: Mapping[str, Any]) -> float | None:
    """The GPU's clock where the system there reports it."""
    found = [hz for name, hz in about["clocks"].items() if "gpu" in name]
    return max(found) / 1e6 if found else None


def _notes(times: Times, seconds: float) -> list[str]:
    found = []
    if times.left_out:
        found.append(
            f"{seconds:.0f} s were enough for {len(times.timed)} networks; {len(times.left_out)} "
            "were left out (--seconds measures more)"
        )
    noisy, disturbed = len(times.noisy), len(times.timed) - len(times.undisturbed)
    if disturbed or noisy > len(times.timed) / 4:
        found.append(
            f"{noisy} of {len(times.timed)} latencies vary by over a fifth, and {disturbed} by "
            "so much that they were left out of the fit: the device was busy or its clocks moved; "
            "measure again when it is idle"
        )
    return found


def _clock_notes(about: Mapping[str, Any], target: Target) -> list[str]:
    """What the agent reports of clocks and mode that the target's file does not."""
    found, mhz = [], _gpu_mhz(about)
    if mhz and target.gpu_mhz and not math.isclose(mhz, target.gpu_mhz, rel_tol=CLOCK_SHARE):
        found.append(
            f"the GPU ran at {mhz:.0f} MHz, {target.full_name} has {target.gpu_mhz:.0f}: fix the "
            "clocks there (sudo jetson_clocks) and measure again"
        )
    if about.get("power_mode") and mode_of(about, target) is None:
        found.append(f"power mode {about['power_mode']!r} is none that {target.name} knows")
    return found
