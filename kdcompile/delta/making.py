"""Make the smallest delta between two sets of weights that is accurate enough."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

from kdcompile.config.spec import Spec
from kdcompile.core.progress import counted
from kdcompile.core.report import Verdict
from kdcompile.data.photo import Photo
from kdcompile.delta import encode
from kdcompile.delta import layer as form
from kdcompile.delta.applying import Made, Written
from kdcompile.delta.file import Delta, check_output, inputs_of, rebuilt, write_delta
from kdcompile.delta.layer import KINDS, Layer
from kdcompile.delta.selection import Biases, Ladder, Option
from kdcompile.delta.student import FEW, LOSS, Floats, Judged, Student, is_proven, judge
from kdcompile.delta.tensors import State, check_same_form, half_size, read_student, weights_hash

log = logging.getLogger("kdcompile")
SIZE = 0.1  # of the fp16 weights
ROUNDS = 2  # of correcting the biases, whose effect is not quite linear
TRIES = 8  # rungs that are looked at below one that is not proven


def make(
    base: Path,
    new: Path,
    output: Path,
    *,
    spec: Spec | None = None,
    size: float = SIZE,
    loss: float = LOSS,
) -> Made:
    """Write the delta from base to new that `size` and `loss` allow, or nothing.

    With a spec the smallest one is searched that its validation photos prove to be within `loss`;
    its test photos then judge it. Without one no accuracy is known, and it is the one with the
    least error of the weights that `size` has room for.

    Args:
        base, new: safetensors of one architecture, or folders of a distill stage.
        output: the file.
        spec: of the student.
        size: of the file, as a share of the new weights in fp16.
        loss: of the metric, as a share (or points over 100), with its 95 % bound.

    Raises:
        KDError: `delta-form`, `delta-weights`, `delta-architecture`; those of the weights, the
            spec's teacher and its data; `delta-output`.
    """
    check_output(output, (base, new, *inputs_of(spec)))
    before, metadata = read_student(base)
    after, _ = read_student(new)
    check_same_form(before, after, new)
    student = None if spec is None else Student(spec, before, metadata, base)
    making = _Making(before, after, student, size * half_size(after), loss)
    rung, verdict, reason = making.search()
    delta = making.delta(rung)
    judged = making.judge(rung) if verdict == "passed" and student is not None else None
    if judged is not None:
        verdict, reason = judged.verdict, judged.reason
    if verdict == "passed":
        write_delta(output, delta)
    content, full = len(delta.to_bytes()), half_size(after)
    return Made(
        verdict=verdict,
        reason=reason,
        output=str(output) if verdict == "passed" else None,
        base=delta.base,
        result=delta.result,
        bytes=content,
        test=judged,
        full_bytes=full,
        share=content / full,
        size=size,
        validation=making.validation,
        tensors={n: _row(one) for n, one in zip(sorted(before), delta.layers, strict=True)},
    )


def _row(layer: Layer) -> Written:
    error = float(f"{layer.error:.2g}")
    return Written(KINDS[layer.kind], len(layer.stream), error, layer.rank, layer.bits)


class Sight:
    """What calibration photos, one in `every`, show of the new weights.

    biases: what those can do about the outputs.
    """

    def __init__(self, student: Student, new: State, every: int = 1) -> None:
        self._student, self._every = student, every
        self._right = student.outputs(new, every)
        self.biases = Biases(student.slopes(new, every))

    def change(self, state: State) -> Floats:
        """What other weights do to the outputs, flat."""
        return self._student.outputs(state, self._every) - self._right


class _Making:
    """The choices there are, and what they come to.

    room: bytes that the file may have.
    """

    def __init__(
        self, base: State, new: State, student: Student | None, room: float, loss: float
    ) -> None:
        self.base, self.new, self.student = base, new, student
        self.room, self.loss = room, loss
        self.validation: Judged | None = None
        self._sight = None if student is None else Sight(student, new)
        self._ladder = Ladder(_options(base, new, student))
        self._base = weights_hash(base)
        self._known: dict[int, Delta] = {}

    def delta(self, rung: int) -> Delta:
        """The delta of a rung of the ladder, its biases corrected where photos are known."""
        if rung not in self._known:
            layers = self._ladder.choice(rung)
            if self._sight is not None and rung < len(self._ladder) - 1:
                layers = self._corrected(layers, self._sight)
            result = weights_hash(rebuilt(layers, self.base))
            self._known[rung] = Delta(self._base, result, layers)
        return self._known[rung]

    def _corrected(self, layers: Sequence[Layer], sight: Sight) -> list[Layer]:
        """With the biases that make good what the other tensors' errors do."""
        found = dict(zip(sorted(self.base), layers, strict=True))
        state = rebuilt(layers, self.base)
        change = sight.change(state)
        for _ in range(ROUNDS):
            better = dict[str, Layer]()
            for name, more in sight.biases.fit(change).items():
                delta = form.values(state[name]) + more - form.values(self.base[name])
                better.update((name, layer) for layer in encode.halves(delta))
            moved = {name: form.rebuild(layer, self.base[name]) for name, layer in better.items()}
            now = sight.change(state | moved)
            if now @ now >= change @ change:
                break
            change, state = now, state | moved
            found |= {n: measured(one, self.base[n], self.new[n]) for n, one in better.items()}
        return list(found.values())

    def _bytes(self, rung: int) -> int:
        return len(self.delta(rung).to_bytes())

    def search(self) -> tuple[int, Verdict, str]:
        """The rung that is wanted, and whether size and validation allow it.

        More bytes are taken to be no less accurate, as the ladder is made, but for a few rungs
        below the largest that there is room for: errors may happen to cancel out.
        """
        if self.student is not None:
            return self._proven(self.student)
        largest = self._largest()
        if largest is None:
            return 0, "failed", f"the smallest delta has {self._bytes(0)} bytes"
        return largest, "passed", "no accuracy was judged: there is no spec"

    def _largest(self) -> int | None:
        """The last rung that there is room for."""
        return _last(lambda rung: self._bytes(rung) <= self.room, len(self._ladder) - 1)

    def _proven(self, student: Student) -> tuple[int, Verdict, str]:
        """The smallest rung that validation proves: with loss to spare, where there is room for it.

        To spare is half of the loss, since other photos take back what the search gained by luck.
        Where nothing of the size proves that, it is the largest one that proves the loss.
        """
        top = len(self._ladder) - 1
        reference = student.errors(self.new, student.val)
        loss = student.search_loss(self.loss)
        errors = cache(lambda rung: self._errors(student, rung, student.val))

        def judged(rung: int, loss: float = loss) -> Judged:
            return judge(student, errors(rung), reference, loss)

        def proves(rung: int, loss: float = loss) -> bool:
            found = judged(rung, loss)
            log.info("delta: %d bytes, validation: %s", self._bytes(rung), found.reason)
            return is_proven(found, student.metric)

        def chosen(rung: int) -> Judged:
            self.validation = judged(rung)
            return self.validation

        if not proves(top):  # the new weights themselves
            return top, "inconclusive", f"validation: {chosen(top).reason}"
        largest = self._largest()
        tried = [] if largest is None else range(largest, max(-1, largest - TRIES), -1)
        proven = next(filter(proves, tried), None)
        if proven is not None:
            rung = _first(lambda rung: proves(rung, loss / 2), 0, proven)
            chosen(rung)
            return rung, "passed", ""
        rung = _first(proves, 0 if largest is None else largest + 1, top)
        chosen(rung)
        reason = f"the smallest that validation proves has {self._bytes(rung)} bytes"
        if largest is not None:
            reason += f"; at {self._bytes(largest)} bytes {judged(largest).reason}"
        return rung, "failed", reason

    def judge(self, rung: int) -> Judged:
        """The verdict of the test photos."""
        assert self.student is not None, "without a spec nothing is judged"
        photos = self.student.test
        reference = self.student.errors(self.new, photos)
        return judge(self.student, self._errors(self.student, rung, photos), reference, self.loss)

    def _errors(self, student: Student, rung: int, photos: Sequence[Photo]) -> Floats:
        return student.errors(rebuilt(self.delta(rung).layers, self.base), photos)


def _options(base: State, new: State, student: Student | None) -> list[list[Option]]:
    """The ways to write each tensor, in the order of names, each with its error.

    The error is what it does to the network's outputs when all other tensors are the new ones, as
    far as biases cannot make it good; without photos, what it does to the weights, as a share of
    them, squared.
    """
    names = sorted(base)
    sight = None if student is None else Sight(student, new, FEW)
    moments: Mapping[str, Floats] = {} if student is None else student.moments(new)
    found = []
    for name in counted(names, len(names), "delta", "tensors"):
        ways = encode.layers(new[name], base[name], moments.get(name))
        found.append([_option(way, name, base, new, sight) for way in ways])
    return found


def _option(layer: Layer, name: str, base: State, new: State, sight: Sight | None) -> Option:
    layer = measured(layer, base[name], new[name])
    if sight is None or not layer.error:
        goal = form.values(new[name])
        change = np.square(goal - form.values(base[name])).sum() / (np.square(goal).sum() or 1.0)
        return Option(layer, float(layer.error**2 * change))
    outputs = sight.change({**new, name: form.rebuild(layer, base[name])})
    return Option(layer, sight.biases.left(outputs))


def measured(layer: Layer, base: Tensor, new: Tensor) -> Layer:
    """The layer with its error, |made - new| / |new - base|."""
    goal = form.values(new)
    left = np.linalg.norm((form.values(form.rebuild(layer, base)) - goal).ravel())
    whole = np.linalg.norm((goal - form.values(base)).ravel())
    return replace(layer, error=float(left / whole) if left else 0.0)


def _last(is_so: Callable[[int], bool], top: int) -> int | None:
    """The last of 0 to top that is so, of what is so up to some point."""
    low, high = -1, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_so(middle) else (low, middle - 1)
    return None if low < 0 else low


def _first(is_so: Callable[[int], bool], low: int, high: int) -> int:
    """The first of low to high that is so, of what is so from some point on; high is."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_so(middle) else (middle + 1, high)
    return high
