"""Search between two variants for the first tensor that differs, and its name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.core.ports import Ports
from kdcompile.debug.bisect import Parting, Probe, search
from kdcompile.debug.distances import apart, divergence
from kdcompile.debug.pairs import module_probes, onnx_probes, program_probes
from kdcompile.debug.runners import EngineSide, Side
from kdcompile.debug.tensors import Named, engine_layers, module_for, name_onnx, name_program
from kdcompile.debug.tolerance import NO_LIMIT
from kdcompile.debug.torch_runners import ModuleSide, ProgramSide
from kdcompile.debug.variants import Ladder, Rung, Step
from kdcompile.debug.why import reasons

Floats = NDArray[np.float32]
# largest relative root mean square error of a tensor that agrees: about three times what a sound
# network shows in its last layers (docs/parity.md)
LIMITS: Mapping[str, float] = {
    "fp32": 1e-4,
    "tf32": 1e-2,
    "fp16": 1e-2,
    "bf16": 5e-2,
    "int8": 0.2,
    "mixed": 0.2,
    "fp8": 0.3,
}
SUDDEN = 3.0  # the error grows by less at once: it has built up over many nodes
IMAGES = 2  # the worst ones
FUSION = "to look inside, the engine was built anew with tensors as outputs, which changes fusion"


@dataclass(frozen=True)
class Finding:
    """Where two rungs part.

    Args:
        rung: the suspect.
        against: the reference.
        tensor: the first that differs, by its name in the suspect.
        reference: its name in the reference.
        error: relative root mean square, the worst image's.
        before: the largest among the tensors that it is computed from.
        limit: of a tensor that agrees.
        named: node, module and layers.
        why: what is different there.
        sudden: False where the error has built up, so that no single node is at fault.
        runs: of both networks in the search.
        tensors: that could be compared.
        images: that were run.
        notes: what else a reader must know.
    """

    rung: str
    against: str
    tensor: str
    reference: str
    error: float
    before: float
    limit: float
    named: Named
    why: Sequence[str]
    sudden: bool
    runs: int
    tensors: int
    images: int
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sides, the probes between them, and a memory of what vanished when looked at.

    `outputs` are those of networks that run on rows.
    """

    reference: Side
    suspect: Side
    probes: Sequence[Probe]
    images: Sequence[Floats]
    limit: float
    outputs: Ports | None
    vanished: list[str] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The probe of the network's output."""
        outputs = self.suspect.output, self.reference.output
        return [(p.tensor, p.reference) for p in self.probes].index(outputs)

    def measure(self, places: Sequence[int]) -> dict[int, float]:
        """The worst relative error over the images, of some probes.

        Nothing where several were looked at and the network's own output then agrees.
        """
        chosen = [self.probes[place] for place in places]
        tensors = _once(p.tensor for p in chosen if p.tensor != self.suspect.output)
        others = _once(p.reference for p in chosen if p.reference != self.reference.output)
        found, output = dict.fromkeys(places, 0.0), 0.0
        for image in self.images:
            a = self.reference.run(image, others)
            b = self.suspect.run(image, tensors)
            for place, probe in zip(places, chosen, strict=True):
                found[place] = max(found[place], self._error(a, b, probe))
            output = max(output, self._error(a, b, self.probes[self.last]))
        if tensors and output <= self.limit:
            if len(tensors) > 1:
                return {}
            self.vanished.extend(tensors)
        return found

    def _error(self, a: Mapping[str, Floats], b: Mapping[str, Floats], probe: Probe) -> float:
        """Of a probe, by what both networks gave."""
        pair = a[probe.reference], b[probe.tensor]
        is_output = probe.tensor == self.suspect.output
        return apart(*pair, self.outputs) if is_output else divergence(*pair)

    def values(self, probe: Probe) -> tuple[Floats, Floats]:
        """A tensor in reference and suspect, of the worst image."""
        a = self.reference.run(self.images[0], [probe.reference])
        b = self.suspect.run(self.images[0], [probe.tensor])
        return a[probe.reference], b[probe.tensor]


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def locate(
    ladder: Ladder, before: Rung, rung: Rung, step: Step, limit: float | None = None
) -> Finding:
    """The first tensor at which a failed rung leaves the one before it.

    Args:
        ladder: of both.
        before: the reference.
        rung: the suspect.
        step: how it failed (`climb`).
        limit: of a tensor that agrees; None for that of the rung's arithmetic.

    Raises:
        KDError: `bisect-unpaired`, the two have no tensor but the output in common; a side's.
    """
    assert before.side is not None, "the ladder compares rungs that are there"
    assert rung.side is not None, "the ladder compares rungs that are there"
    probes = probes_between(before, rung)
    worst = sorted(range(len(ladder.images)), key=lambda i: -step.errors[i])[:IMAGES]
    # the output itself must count as different, however little its metric forgives
    most = min(limit or LIMITS[rung.kind], max(step.errors) / 2)
    images = [ladder.images[i] for i in worst]
    compared = Comparison(before.side, rung.side, probes, images, most, ladder.outputs)
    found = search(probes, compared.last, most, compared.measure, rung.side.levels)
    if found is None:
        raise vanished(rung)
    return _finding(before, rung, compared, found)


def probes_between(before: Rung, rung: Rung) -> list[Probe]:
    """The tensors that two neighbouring rungs share.

    Raises:
        KDError: `bisect-unpaired`.
    """
    a, b = before.side, rung.side
    assert a is not None, "the ladder compares rungs that are there"
    assert b is not None, "the ladder compares rungs that are there"
    probes: list[Probe] = []
    if isinstance(b, ProgramSide) and isinstance(a, ModuleSide):
        probes = module_probes(b.program, a.once, (b, a))
    elif isinstance(a, ProgramSide) and rung.model is not None:
        probes = program_probes(rung.model, a.program, (b, a))
    elif before.model is not None and rung.model is not None:
        probes = onnx_probes(rung.model, before.model, (b, a))
    if (b.output, a.output) not in [(probe.tensor, probe.reference) for probe in probes]:
        raise KDError(
            "bisect-unpaired",
            f"{rung.name} and {before.name} have no tensor of one name, so none can be compared",
            where=f"the rung {rung.name}",
            fix="build again, so that both are of one export: kdcompile clean, kdcompile build",
        )
    return probes


def inherited(steps: Sequence[Step], step: Step) -> KDError:
    """The refusal to search a rung whose NaN and infinities are an earlier rung's, naming that.

    Args:
        steps: of the whole ladder.
        step: with `inherits`.
    """
    by_name, origin = {one.name: one for one in steps}, step
    while origin.inherits:
        origin = by_name[str(origin.against)]
    if origin.verdict != "reference":
        fix = f"ask for that rung: kdcompile bisect --rung {origin.name}, with all else as it was"
    elif origin.name == "pytorch":
        fix = "the weights or the training are at fault: train again with a smaller distill.lr"
    else:
        fix = "name the spec that the bundle was built from: kdcompile bisect SPEC looks above it"
    return KDError(
        "bisect-inherited",
        f"the NaN or infinity in the output of {step.name} is made by {origin.name}, before it",
        where=f"the rung {step.name}",
        fix=fix,
    )


def vanished(rung: Rung) -> KDError:
    """The refusal to name a tensor where looking at the network made the difference go."""
    return KDError(
        "bisect-vanished",
        f"{rung.name} differs as it is deployed, and agrees when it is run again",
        where=f"the rung {rung.name}",
        fix="run kdcompile verify --parity again; where the verdict changes from run to run, the "
        "machine or its memory is at fault",
    )


def _finding(before: Rung, rung: Rung, compared: Comparison, found: Parting) -> Finding:
    probe = compared.probes[found.place]
    named, why = _named(before, rung, compared, probe)
    notes = []
    if isinstance(rung.side, EngineSide):
        notes.append(FUSION)
    if compared.vanished:
        names = ", ".join(_once(compared.vanished))
        notes.append(f"with {names} as outputs the network's own output agrees")
    floor = max(found.before, compared.limit / 100)
    return Finding(
        rung=rung.name,
        against=before.name,
        tensor=probe.tensor,
        reference=probe.reference,
        error=min(found.error, NO_LIMIT),
        before=found.before,
        limit=compared.limit,
        named=named,
        why=why,
        sudden=found.error >= SUDDEN * floor,
        runs=found.runs,
        tensors=len(compared.probes),
        images=len(compared.images),
        notes=notes,
    )


def _named(before: Rung, rung: Rung, compared: Comparison, probe: Probe) -> tuple[Named, list[str]]:
    """What the tensor is called, and what is different there."""
    if isinstance(rung.side, ProgramSide):
        return name_program(probe.tensor, rung.side.program), []
    model = rung.model
    assert model is not None, "every rung after the program has its network"
    if before.model is None:
        named = name_onnx(probe.tensor, model, module_for(probe.tensor, model))
        why: list[str] = []
    else:
        # of the reference: its node is there even where the suspect's was lost or put in later
        named = name_onnx(probe.tensor, model, module_for(probe.reference, before.model))
        why = reasons(probe, model, before.model, compared.values(probe), compared.limit)
    layers = engine_layers(named.node, rung.layers)
    return Named(named.operator, named.node, named.module, layers), why
