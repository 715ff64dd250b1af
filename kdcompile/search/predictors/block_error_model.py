"""Regression model of block errors: predicts a block that was not measured from its size.

log error = w . features + noise, with a Gaussian prior on w: the mean and the deviation of a
prediction are those of Bayesian linear regression (Bishop 2006, 3.3). The same deviations, which
need no measurement, give the blocks to measure first; nothing else is decided by them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcompile.models.blocks import BLOCKS, inner_width, window
from kdcompile.models.cuts import Cut
from kdcompile.search.predictors.block_distillation import BlockResult
from kdcompile.search.spaces.staged import Block

Floats = NDArray[np.float64]
PRIOR_SD = 1.0  # of a weight: errors change by a factor e over a feature's unit
NOISE = 0.15  # log deviation of the errors that no feature explains, before any is known
REPEAT = 0.1  # log deviation of one block trained from several seeds (the digits example)
FLOOR = 1e-6  # errors below are distinguished by nothing


def features(cuts: Sequence[Cut], blocks: Sequence[Block]) -> Floats:
    """Blocks of a teacher with these cuts as numbers, [N, F].

    One feature for each cut, one for each kind of block, and four logarithms: of the width over the
    cut's, the width that enters, the depth over the cut's, and the weights; and the octaves of
    resolution lost against the cut, before and after it.
    """
    rows = []
    for block in blocks:
        cut = cuts[block.index]
        enters = cuts[block.index - 1].channels if block.index else block.in_width
        earlier = cuts[block.index - 1].stride if block.index else 1
        before = block.before / block.scale
        numbers = [
            np.log(block.width / cut.channels),
            np.log(block.in_width / enters),
            np.log(block.depth / max(1, cut.depth)),
            np.log(convolution_weights(block) / (9 * cut.channels**2)) / 2,
            np.log2(before / earlier),
            np.log2(before * block.stride / cut.stride),
        ]
        indices = [block.index == i for i in range(len(cuts))]
        rows.append([*indices, *(block.block == kind for kind in BLOCKS), *numbers])
    return np.array(rows, np.float64).reshape(len(rows), len(cuts) + len(BLOCKS) + 6)


@dataclass(frozen=True)
class Regression:
    """The posterior over the weights: mean [F], covariance [F, F]; and the noise's deviation."""

    cuts: Sequence[Cut]
    mean: Floats
    covariance: Floats
    noise: float

    @classmethod
    def of(cls, cuts: Sequence[Cut], results: Sequence[BlockResult]) -> "Regression":
        """From measured blocks; without any it is the prior."""
        blocks = [result.block for result in results]
        logs = np.log([max(result.error, FLOOR) for result in results])
        x = features(cuts, blocks)
        if not results:
            size = x.shape[1]
            return cls(cuts, np.zeros(size), np.eye(size) * PRIOR_SD**2, NOISE)
        noise = NOISE
        for _ in range(10):  # noise and weights in turn
            precision: Floats = x.T @ x / noise**2 + np.eye(x.shape[1]) / PRIOR_SD**2
            covariance = np.linalg.inv(precision).astype(np.float64)
            mean = covariance @ (x.T @ logs) / noise**2
            used = float(np.trace(x @ covariance @ x.T)) / noise**2  # degrees of freedom
            squares = float(np.square(logs - x @ mean).sum())
            # two observations' worth of the prior noise, so that a perfect fit stays unsure
            noise = float(np.sqrt((squares + 2 * NOISE**2) / (max(0.0, len(logs) - used) + 2)))
        return cls(cuts, np.asarray(mean, np.float64), covariance, noise)

    def predict(self, blocks: Sequence[Block]) -> list[tuple[float, float]]:
        """(error, its deviation) of each block."""
        if not blocks:
            return []
        x = features(self.cuts, blocks)
        logs = np.minimum(x @ self.mean, 0.0)  # the mean of the cut's maps has an error of 1
        sds = np.sqrt(np.einsum("nf,fg,ng->n", x, self.covariance, x) + self.noise**2)
        return [
            (float(np.exp(log)), float(np.exp(log) * np.sqrt(np.expm1(min(sd**2, 4.0)))))
            for log, sd in zip(logs, sds, strict=True)
        ]


def measure_first(
    cuts: Sequence[Cut], blocks: Sequence[Block], measured: Sequence[Block], number: int
) -> list[Block]:
    """The `number` unmeasured blocks that are most informative about the rest, in order.

    Each next one has the largest deviation given those before it. This reads no result at all.
    """
    known = set(measured)
    rest = [block for block in dict.fromkeys(blocks) if block not in known]
    if not rest:
        return []
    x = features(cuts, rest)
    covariance = np.eye(x.shape[1]) * PRIOR_SD**2
    for row in features(cuts, measured):
        covariance = _after(covariance, row)
    chosen: list[int] = []
    for _ in range(min(number, len(rest))):
        spread = np.einsum("nf,fg,ng->n", x, covariance, x)
        spread[chosen] = -1.0
        chosen.append(int(spread.argmax()))
        covariance = _after(covariance, x[chosen[-1]])
    return [rest[i] for i in chosen]


def errors_of(
    blocks: Sequence[Block], results: Mapping[Block, BlockResult], regression: Regression
) -> list[tuple[float, float]]:
    """(error, its deviation) of each block: measured where it was, else predicted."""
    missing = [block for block in blocks if block not in results]
    predicted = dict(zip(missing, regression.predict(missing), strict=True))
    return [_own(results[b]) if b in results else predicted[b] for b in blocks]


def _own(result: BlockResult) -> tuple[float, float]:
    """A measured error, and its deviation over crops and over seeds."""
    return result.error, float(np.hypot(result.error_sd, REPEAT * result.error))


def _after(covariance: Floats, row: Floats) -> Floats:
    """The covariance once a block with these features is measured."""
    gain = covariance @ row
    made: Floats = covariance - np.outer(gain, gain) / (row @ gain + NOISE**2)
    return made


def convolution_weights(block: Block) -> int:
    """Weights of a block's convolutions, as it trains, without normalisations."""
    total, inputs, width, inner = 0, block.in_width, block.width, inner_width(block.width)
    for number in range(block.depth):
        strides = block.stride if number == 0 and block.down == "stride" else 1
        taps = window(strides, 1).kernel ** 2
        total += {
            "conv": inputs * width * taps,
            "separable": inputs * taps + inputs * width,
            "repvgg": inputs * width * (taps + 1),
            "bottleneck": inputs * inner + inner * inner * taps + inner * width,
        }[block.block]
        inputs = width
    return total
