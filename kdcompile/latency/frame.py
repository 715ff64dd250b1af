"""The whole frame of a deployed sample, from an image file to the result, and its parts.

What is timed is the sample of the bundle itself, `infer.py`, in a worker of its own that the one
function of every latency asks for blocks (`sampler.measure`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from kdcompile.core.files import file_sha256, scratch
from kdcompile.latency.frame_sample import Pictures, Shipped, described, no_photos, packed
from kdcompile.latency.frame_times import FrameTimes, reduced
from kdcompile.latency.sampler import Tools, measure
from kdcompile.latency.settings import Effort, Mode
from kdcompile.latency.subject import DEFAULT, Subject
from kdcompile.remote import frame_worker
from kdcompile.remote.archive import program_zip
from kdcompile.remote.frame import SAMPLE
from kdcompile.remote.open import Place, open_place
from kdcompile.stats.samples import Samples

PROGRAM = frame_worker.__name__
EFFORT = Effort(processes=3, blocks=20, seconds=20.0)
LEAST = 2  # undisturbed blocks that an interval is made of
SERVED = ("tensorrt", "onnxruntime")  # backends that the frame's worker tells the version of


class _Whole(Mode):
    """As the sample runs: on the threads of its own session."""

    def threads_at(self, about: Mapping[str, Any]) -> int | None:
        return None


def measure_frame(
    shipped: Shipped,
    pictures: Pictures,
    via: str | None,
    effort: Effort = EFFORT,
    seed: int = 0,
) -> FrameTimes:
    """Time the sample on image files that take turns, at a place.

    Args:
        shipped: the sample.
        pictures: at least one.
        via: the place, as `open_place` reads it. Pillow must be installed there.
        effort: how much.
        seed: of the interval.

    Raises:
        KDError: `frame-images`, there are none, or the network takes no image; `sample-failed`,
            `pillow-missing`; those of `sampler.measure`.
    """
    (samples,) = frame_samples([shipped], pictures, via, effort)
    return reduced_samples(samples, described(shipped, pictures), seed)


def frame_samples(
    samples: Sequence[Shipped], pictures: Pictures, via: str | None, effort: Effort = EFFORT
) -> list[Samples]:
    """What `measure_frame` reduces, of deployed samples that take turns: one each.

    Raises:
        KDError: those of `measure_frame`.
    """
    if not pictures:
        raise no_photos("there are no image files to time it on")
    with scratch() as folder:
        subjects = []
        for place, shipped in enumerate(samples):
            inside = Path(folder) / str(place)
            inside.mkdir()
            path = packed(inside, shipped, pictures)
            backend = shipped.backend if shipped.backend in SERVED else DEFAULT
            hashed = file_sha256(path)
            subjects.append(
                Subject(SAMPLE, path, hashed, "engine", shipped.precision, backend, record={})
            )
        tools = Tools(open_place=partial(_open, source=program_zip(PROGRAM)))
        return measure(subjects, via, effort, _Whole(), tools=tools)


def _open(via: str | None, backend: str, source: bytes) -> Place:
    return open_place(via, backend, source)


def reduced_samples(samples: Samples, mode: str, seed: int) -> FrameTimes:
    """The frame of what the sampler took."""
    every = list(samples.blocks(disturbed=True))
    kept, disturbed = [block for block in every if block.disturbed is None], None
    if len(kept) < LEAST:
        disturbed = next((b.disturbed for b in every if b.disturbed is not None), None)
        kept = every
    parts = samples.runs[-1].environment["state"].get("parts_ms", {})
    found = reduced([median(block.ms) for block in kept], parts, mode, seed)
    return replace(found, disturbed=disturbed)
