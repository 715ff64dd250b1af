"""Bisection for the first tensor at which two forms of a network differ, in about log2(n) runs.

Tensors form a directed acyclic graph, not a line, so the search is that of `git bisect`: with a
tensor known to differ, the one of its ancestors is looked at that splits the others most evenly; if
it differs it takes the place of the known one, else it and all that lead to it are taken for good.
That assumes that a difference never heals on its way. It may: a ReLU cuts it off, a maximum passes
it by. So before a tensor is reported all that it is directly computed from are looked at, and where
one of them differs the search goes on above that one.

Where a run is dear (an engine is built for it) several questions are asked in one: what would be
asked next, whichever the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Measure = Callable[[Sequence[int]], Mapping[int, float]]


@dataclass(frozen=True)
class Probe:
    """A tensor of the suspect that the reference has too.

    Args:
        tensor: its name in the suspect.
        reference: its name in the reference.
        parents: the nearest probes that it is computed from, by their places in the list.
    """

    tensor: str
    reference: str
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Parting:
    """Where two forms part.

    Args:
        place: of the first probe that differs; its direct inputs all agree.
        error: relative, at that probe.
        before: the largest relative error among its direct inputs.
        runs: how often both networks were run.
    """

    place: int
    error: float
    before: float
    runs: int


def search(
    probes: Sequence[Probe], last: int, limit: float, measure: Measure, levels: int = 1
) -> Parting | None:
    """The first probe whose error is over a limit.

    Args:
        probes: in topological order.
        last: the probe of the network's output.
        limit: largest relative error of a tensor that agrees.
        measure: relative errors of some probes, by one run of both networks. Of several it may give
            nothing, where looking at all of them at once made the difference go.
        levels: of the search that one run answers, by 2^levels - 1 probes.

    Returns:
        None where the output itself is within the limit.
    """
    above, known = ancestors(probes), _Answers(measure, levels)
    errors = known.errors
    known.ask([last])
    if errors[last] <= limit:
        return None
    bad, trusts = last, True
    while True:
        agreeing = [place for place, error in errors.items() if error <= limit]
        suspects = above[bad]
        for place in agreeing:  # all that lead to it are good too, until that proved wrong
            suspects &= ~(above[place] | 1 << place) if trusts else ~(1 << place)
        while suspects:
            middle, *ahead = questions(suspects, above, known.levels)
            known.ask([middle], ahead)
            if errors[middle] > limit:
                bad, suspects = middle, suspects & above[middle]
            else:
                suspects &= ~(above[middle] | 1 << middle)
        known.ask(probes[bad].parents)
        worse = [place for place in probes[bad].parents if errors[place] > limit]
        if not worse:
            before = max((errors[place] for place in probes[bad].parents), default=0.0)
            return Parting(bad, errors[bad], before, known.runs)
        bad, trusts = min(worse), False


@dataclass
class _Answers:
    """What is known of the probes: `errors` by place, after so many `runs`."""

    measure: Measure
    levels: int
    errors: dict[int, float] = field(default_factory=dict)
    runs: int = 0

    def ask(self, places: Sequence[int], ahead: Sequence[int] = ()) -> None:
        """Know the errors of `places`, and of those `ahead` where that takes no further run."""
        new, more = ([p for p in part if p not in self.errors] for part in (places, ahead))
        if not new:
            return
        self.runs += 1
        self.errors.update(self.measure([*new, *more]))
        if new[0] not in self.errors:
            self.levels = 1
            for place in new:
                self.ask([place])


def ancestors(probes: Sequence[Probe]) -> list[int]:
    """The ancestors of each probe, as the bits of a whole number."""
    found: list[int] = []
    for probe in probes:
        bits = 0
        for place in probe.parents:
            bits |= found[place] | 1 << place
        found.append(bits)
    return found


def most_even(suspects: int, above: Sequence[int]) -> int:
    """The suspect whose verdict leaves the fewest suspects in the worse case."""
    total, places = suspects.bit_count(), bits_of(suspects)

    def left(place: int) -> tuple[int, int]:
        led = (above[place] & suspects).bit_count() + 1  # with it, what is left if it differs
        return max(led - 1, total - led), place

    return min(places, key=left)


def questions(suspects: int, above: Sequence[int], levels: int) -> list[int]:
    """The suspect to look at, then those that would follow it, for either answer."""
    if not suspects or not levels:
        return []
    middle = most_even(suspects, above)
    rest = suspects & above[middle], suspects & ~(above[middle] | 1 << middle)
    return [middle, *(place for part in rest for place in questions(part, above, levels - 1))]


def bits_of(number: int) -> list[int]:
    """The places of the bits that are set."""
    found = []
    while number:
        lowest = number & -number
        found.append(lowest.bit_length() - 1)
        number ^= lowest
    return found
