"""Request for a latency measurement: the device, the input, the mode and the effort."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from kdcompile.core.backends import names
from kdcompile.core.errors import KDError

if TYPE_CHECKING:
    from kdcompile.bundle.trust import Trust
    from kdcompile.latency.baseline import Baseline
    from kdcompile.latency.compare import Plan
    from kdcompile.latency.report import Judged
    from kdcompile.latency.settings import Effort, Mode
    from kdcompile.latency.subject import Subject

COPIES = ("none", "in", "out", "both")


class Measuring(TypedDict, total=False):
    """The fields of a `Request` as keyword arguments."""

    via: str | None
    backend: str | None
    shape: Sequence[int] | None
    batch: int | None
    streams: int | None
    mode: Mapping[str, Any]
    seconds: float | None
    processes: int | None
    builds: int | None
    samples: int | None
    trusted: str | PathLike[str] | None
    expect: Mapping[str, str] | None


@dataclass(frozen=True)
class Request:
    """A measurement as it is asked for; None where that is left open.

    Args:
        via: where it is measured, such as `ssh://user@board`; None for this machine.
        backend: runtime of an ONNX file, one of `core.backends.names()`.
        shape: of the input, where the artifact has dynamic dimensions.
        batch: images of one inference.
        streams: inferences in flight at once.
        mode: `copies`, `graph`, `spin` and `threads`, as `Mode` has them.
        seconds: time limit of one measuring run.
        processes: of one measuring run.
        builds: engines built of each ONNX file.
        samples: inferences of each side in all.
        trusted: public key that must have signed every bundle; by default that of the environment
            or of `trust.toml`.
        expect: what a bundle that is named as an artifact must say of itself, as of `load_bundle`;
            with this or `trusted` no other artifact is taken.
    """

    via: str | None = None
    backend: str | None = None
    shape: Sequence[int] | None = None
    batch: int | None = None
    streams: int | None = None
    mode: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    processes: int | None = None
    builds: int | None = None
    samples: int | None = None
    trusted: str | PathLike[str] | None = None
    expect: Mapping[str, str] | None = None

    def trust(self, named: bool = True) -> "Trust | None":
        """What is demanded of a bundle; None where nothing was said.

        Args:
            named: as an artifact; else only the key counts, as for the older one of a baseline.
        """
        from kdcompile.bundle.trust import Trust

        return Trust.of(self.trusted, self.expect if named else None)

    def subject(
        self, path: Path, baseline: "Baseline | None" = None, named: bool = True
    ) -> "Subject":
        """The artifact at a path; what it leaves open is as in the baseline.

        Args:
            path: of the artifact.
            baseline: that it is compared with, if any.
            named: as `trust` takes it.

        Raises:
            KDError: those of `find_subject`.
        """
        from kdcompile.latency.subject import find_subject

        found = find_subject(path, self.backend, shape=self.shape, trust=self.trust(named))
        if baseline is None or found.kind == "engine":
            return found
        kept = baseline.environment.get("facts", {}).get("backend")
        backend = self.backend or (kept if kept in names() else None)
        kept_shape = found.input_shape or shape_of(baseline.mode)
        return replace(found, backend=backend, input_shape=kept_shape)

    def effort(self) -> "Effort":
        """How much is measured."""
        from kdcompile.latency.settings import Effort

        wanted = {"seconds": self.seconds, "processes": self.processes, "builds": self.builds,
                  "samples": self.samples}  # fmt: skip
        given: dict[str, Any] = {key: v for key, v in wanted.items() if v is not None}
        effort = Effort(**given)
        effort.check()  # before anything else is spent
        return effort

    def settings(self, kept: Mapping[str, Any] | None = None) -> "Mode":
        """How it is measured; what is left open is as in a baseline's mode."""
        from kdcompile.latency.settings import Mode

        wanted: dict[str, Any] = {"batch": self.batch}
        if kept is not None:
            wanted |= _as_kept(kept, self.batch)
        if self.streams is not None:
            wanted["streams"] = self.streams
        wanted |= self.mode
        if "threads" in self.mode:
            wanted["kept"] = False
        return Mode(**wanted)

    def plan(
        self,
        margin: float,
        allow: Sequence[str] = (),
        limit: float | None = None,
        kept: Mapping[str, Any] | None = None,
        runs: int = 1,
    ) -> "Plan":
        """How artifacts are measured and compared.

        Args:
            margin: change of the median that counts as none, a share.
            allow: conditions that may differ.
            limit: seconds in which to go on until there is a decision; None measures once.
            kept: the mode of the baseline.
            runs: measuring runs.

        Raises:
            KDError: `limit-invalid`, `effort-refused`.
        """
        from kdcompile.latency.compare import LIMIT_S, Plan

        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise KDError(
                "limit-invalid", f"a limit of {limit:g} seconds leaves no time to measure",
                where="--limit", fix=f"give a time above 0, such as --limit {LIMIT_S:g}",
            )  # fmt: skip
        return Plan(
            self.via, self.effort(), self.settings(kept), runs, margin,
            allow=tuple(allow), limit=limit, with_usage=True,
        )  # fmt: skip

    def compare(
        self,
        subject: "Subject",
        kept: "Baseline",
        file: Path,
        reference: Path | None,
        plan: "Plan",
    ) -> "Judged":
        """Compare an artifact with a baseline's: interleaved where that is there, else by samples.

        Args:
            subject: the artifact.
            kept: the baseline.
            file: of the baseline.
            reference: where the baseline's artifact is now; None for where it was.
            plan: how.

        Raises:
            KDError: those of `in_turns` and `from_samples`.
        """
        from kdcompile.latency.compare import from_samples, in_turns, reference_at_hand

        beside, note = reference_at_hand(
            kept, file, reference, lambda p: self.subject(p, kept, named=False)
        )
        if beside is not None:  # several runs count as one, which is as long
            runs, effort = plan.runs, plan.effort
            longer = replace(
                effort, seconds=effort.seconds * runs, processes=effort.processes * runs
            )
            plan = replace(plan, effort=longer, runs=1)
            return in_turns(subject, beside, plan, kept.record, str(file))
        return from_samples(subject, kept.samples, plan, note, str(file))


def _as_kept(kept: Mapping[str, Any], batch: int | None) -> dict[str, Any]:
    """The wishes that give a baseline's mode again, as far as a wish can."""
    wanted: dict[str, Any] = {}
    first = {part.split("x")[0] for part in str(kept.get("input", "")).split(", ")}
    if batch is None and first == {str(kept.get("batch"))}:  # of every input alike
        wanted["batch"] = int(kept["batch"])
    if kept.get("copies") in COPIES:
        wanted["copies"] = kept["copies"]
    if kept.get("graph") is False:
        wanted["graph"] = False
    if isinstance(kept.get("streams"), int):
        wanted["streams"] = kept["streams"]
    if isinstance(kept.get("threads"), int):
        wanted |= {"threads": kept["threads"], "kept": True}
    return wanted


def shape_of(mode: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The one input's shape that a mode records, such as `1x3x576x768 float32`."""
    found = re.fullmatch(r"(\d+(?:x\d+)*) \w+", str(mode.get("input", "")))
    return None if found is None else tuple(map(int, found[1].split("x")))
