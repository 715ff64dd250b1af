"""Milliseconds of a whole frame: measured, or as far as they can be predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WORDS = {  # of `remote.frame.PARTS`, in their order
    "decode": "decode", "preprocess": "preprocess", "inference": "copy and inference",
    "postprocess": "post-process",
}  # fmt: skip
UNPREDICTED = tuple(WORDS[part] for part in WORDS if part != "inference")


@dataclass(frozen=True)
class FrameTimes:
    """A whole frame as it was timed, with its 95 % interval.

    Args:
        ms: the median of the blocks' medians.
        low: lower end of its interval.
        high: upper end.
        n: blocks.
        parts: medians of `remote.frame.PARTS` by name; they need not add up to the frame's.
        mode: which sample on which photos, in words.
        disturbed: what disturbed so many blocks that every block is in the numbers; None else.
    """

    ms: float
    low: float
    high: float
    n: int
    parts: Mapping[str, float]
    mode: str
    disturbed: str | None = None

    def line(self) -> str:
        """The frame and its parts in words."""
        parts = ", ".join(f"{WORDS[name]} {ms:.3g}" for name, ms in self.parts.items())
        return f"whole frame {self.ms:.4g} ms ({self.low:.4g} to {self.high:.4g}): {parts}"


@dataclass(frozen=True)
class PredictedFrame:
    """What a model can tell of a whole frame: a bound from below, as the rest is not predicted.

    Args:
        inference: ms, of the target's latency model.
        band: factor by which that may be off, each way.
        copies: ms of the input and the output over the target's memory; None where the host has
            a memory of its own, the way to which is not known.
    """

    inference: float
    band: float
    copies: float | None

    @property
    def ms(self) -> float:
        """Of the parts that are predicted."""
        return self.inference + (self.copies or 0.0)

    @property
    def low(self) -> float:
        """The least that these take."""
        return self.inference / self.band + (self.copies or 0.0)

    @property
    def missing(self) -> tuple[str, ...]:
        """The parts that nothing predicts."""
        return UNPREDICTED if self.copies is not None else ("copy", *UNPREDICTED)

    def line(self) -> str:
        """What is predicted and what is not, in words."""
        copies = "" if self.copies is None else f", copies over its memory {self.copies:.3g}"
        return (
            f"predicted parts {self.ms:.4g} ms (at least {self.low:.4g}): inference "
            f"{self.inference:.3g}{copies}; not predicted: {', '.join(self.missing)}"
        )


def reduced(
    blocks: Sequence[float], parts: Mapping[str, float], mode: str, seed: int
) -> FrameTimes:
    """The frame of blocks' medians, in ms."""
    import numpy as np  # what only shows a frame does without

    from kdcompile.stats.latency_interval import median_interval

    ms, low, high = median_interval(np.array(blocks, np.float64), seed)
    return FrameTimes(ms, low, high, len(blocks), dict(parts), mode)


def copies_ms(values: float, bandwidth_gbs: float) -> float:
    """Milliseconds in which float32 values are read and written in a memory, at its peak rate."""
    return 2 * 4 * values / (bandwidth_gbs * 1e9) * 1e3
