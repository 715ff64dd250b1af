"""Ways to write the change of one tensor, from none to exact."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcompile.delta import layer as form
from kdcompile.delta import packing
from kdcompile.delta.layer import Layer, as_matrix, values
from kdcompile.delta.tensors import raw_bytes

Floats = NDArray[np.float64]
STEPS = 2.0 ** np.arange(-2, 3.5, 0.5)  # of a step, in root mean squares of the change
RANKS = (1, 2, 4, 8, 16, 32, form.MOST_COLUMNS)
DAMPING = 0.1  # of the mean second moment: with steps this large, more than GPTQ adds
TERNARY = 1.22  # the best step of three levels for a normal distribution, in its deviations


def layers(new: Tensor, base: Tensor, moments: Floats | None = None) -> list[Layer]:
    """Every way that may be worth its bytes; the last one is exact.

    Args:
        new, base: of one shape and type, finite.
        moments: E[x x^T] of the inputs x of the layer whose weight this is, [n, n] for a matrix
            [C_out, n]; None where they are not known.
    """
    if raw_bytes(new) == raw_bytes(base):
        return [Layer(form.SAME)]
    exact = Layer(form.EXACT, packing.squeeze(raw_bytes(new)))
    if not new.is_floating_point():
        return [exact]
    delta = values(new) - values(base)
    found = [Layer(form.SAME), *halves(delta)]
    if new.ndim > 1:
        matrix = delta.reshape(as_matrix(tuple(new.shape)))
        small = [*_steps(matrix, moments), *_ranks(matrix)]
        found += [one for one in small if one.cost < min(exact.cost, 2 * new.numel())]
    return [*found, exact]


def halves(delta: Floats) -> Iterator[Layer]:
    """The change in fp16, unless that overflows."""
    with np.errstate(over="ignore"):
        half = delta.astype("<f2")
    if np.isfinite(half).all():
        yield Layer(form.HALF, packing.squeeze(half.tobytes()))


def _steps(matrix: Floats, moments: Floats | None) -> Iterator[Layer]:
    """Integers times one step, of every step."""
    feedback = None if moments is None else Feedback.of(moments)
    size = float(np.sqrt(np.mean(np.square(matrix))))
    for share in STEPS:
        step = float(f"{share * size:.3g}")
        if not 1e-30 < step < 1e30:
            continue
        found = np.rint(matrix / step) if feedback is None else compensated(matrix, step, feedback)
        whole = found.astype(np.int64)
        bits = packing.bits_for(whole)
        if bits is not None and whole.any():
            stream = packing.squeeze(packing.pack(whole.reshape(-1), bits))
            yield Layer(form.STEP, stream, bits=bits, step=step)


@dataclass(frozen=True)
class Feedback:
    """How the error of one column is made good by others.

    order: of the columns, those with the largest inputs first; factor: the upper Cholesky factor of
    the inverse of the damped moments in that order, [n, n].
    """

    order: NDArray[np.intp]
    factor: Floats

    @classmethod
    def of(cls, moments: Floats) -> "Feedback":
        """That of second moments of inputs, [n, n]."""
        order = np.argsort(-np.diag(moments), kind="stable")
        mean = float(np.mean(np.diag(moments))) or 1.0
        damped = moments[np.ix_(order, order)] / mean + DAMPING * np.eye(len(moments))
        return cls(order, np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T))


def compensated(matrix: Floats, step: float, feedback: Feedback) -> Floats:
    """Integers [C_out, n] whose errors, column by column, the columns after them make good.

    GPTQ (Frantar et al., ICLR 2023), of the change instead of the weights: what matters is the
    error of the layer's output, E[((found step - matrix) x)^2], not that of the weights.
    """
    left, found, factor = matrix[:, feedback.order], np.empty_like(matrix), feedback.factor
    for j, column in enumerate(feedback.order):
        found[:, column] = np.rint(left[:, j] / step)
        error = (left[:, j] - found[:, column] * step) / factor[j, j]
        left[:, j:] -= np.multiply.outer(error, factor[j, j:])
    return found


def _ranks(matrix: Floats) -> Iterator[Layer]:
    """The leading singular columns: the first in 8 bits, then 4, then 2.

    Each scale is the least-squares one for what the columns before have left.
    """
    most = min(min(matrix.shape), form.MOST_COLUMNS)
    if most < 2:
        return
    rows, _, columns = np.linalg.svd(matrix, full_matrices=False)
    left, scales, packed = matrix.copy(), b"", b""
    for index in range(most):
        bits = form.column_bits(index)
        u, v = _integers(rows[:, index], bits), _integers(columns[index], bits)
        outer = np.multiply.outer(u, v)
        weight = float(np.square(outer).sum())
        scale = np.float32((left * outer).sum() / weight if weight else 0)
        left -= np.float64(scale) * outer
        scales += scale.astype("<f4").tobytes()
        packed += packing.pack(np.concatenate([u, v]).astype(np.int64), bits)
        if index + 1 in RANKS:
            yield Layer(form.RANK, packing.squeeze(scales + packed), rank=index + 1)


def _integers(column: Floats, bits: int) -> Floats:
    """A column in integers of so many bits, its largest value the largest of them."""
    most, size = packing.largest(bits), float(np.abs(column).max())
    step = size / most if bits > 2 else TERNARY * float(np.sqrt(np.mean(np.square(column))))
    return np.asarray(np.clip(np.rint(column / (step or 1.0)), -most, most))
