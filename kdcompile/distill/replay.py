"""The batch that made a loss non-finite, kept with the weights that met it."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from kdcompile.data.augment import Batch
from kdcompile.distributed import Processes
from kdcompile.errors import KDError
from kdcompile.models.factory import write_weights


def save_replay(
    work: Path,
    processes: Processes,
    step: int,
    batch: Batch,
    networks: Mapping[str, Mapping[str, Tensor]],
    terms: Mapping[str, float],
) -> Path:
    """Write `replay-STEP.safetensors`: `images`, `target`, and the state of each network.

    Its metadata has the step and the terms, as text.
    """
    rank = "" if processes.is_alone else f"-rank{processes.rank}"
    path = work / f"replay-{step}{rank}.safetensors"
    tensors = {"images": batch.images, "target": batch.target}
    for name, state in networks.items():
        tensors |= {f"{name}.{key}": value for key, value in state.items()}
    metadata = {"step": str(step), **{name: repr(value) for name, value in terms.items()}}
    write_weights(path, tensors, metadata)
    return path


def nonfinite(step: int, terms: Mapping[str, float], kept: Path | None) -> KDError:
    """The error that names the step, the terms at fault and where the batch lies."""
    bad = [name for name, value in terms.items() if value - value != 0]  # NaN and infinity
    at_fault = f"{' and '.join(bad)} not finite" if bad else "the gradient is not finite"
    shown = ", ".join(f"{name} = {value:.4g}" for name, value in terms.items())
    return KDError(
        "loss-nonfinite",
        f"step {step}: {at_fault} ({shown})",
        where=f"batch and weights kept in {kept}" if kept else "[distill]",
        fix="lower distill.lr, or the weight of the term that overflows; the weights before this "
        "step are in the file",
    )
