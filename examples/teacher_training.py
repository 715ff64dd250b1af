"""Train the teacher of an example: the spec's own architecture, on the labels alone."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from kdcompile.config.deploy import Quantize
from kdcompile.config.load import load_spec
from kdcompile.config.spec import Spec
from kdcompile.data.splits import load_splits
from kdcompile.distill.state import State
from kdcompile.distill.train import Trainer
from kdcompile.models.factory import build_model, write_weights
from kdcompile.models.shrunk import initialise


def train_teacher(spec: Spec, work: Path, path: Path) -> State:
    """Train from random weights, resumably, and write what validated best in half precision.

    Args:
        spec: recipe `none`; `teacher.model` is trained, `teacher.weights` is not read.
        work: folder of the checkpoint, made if absent.
        path: the safetensors file.
    """
    spec = spec.model_copy(update={"quantize": Quantize()})  # a teacher is never quantised
    torch.manual_seed(0)
    network = build_model(spec.teacher.model, spec.folder)
    initialise(network)
    splits = load_splits(spec.data, spec.folder)
    work.mkdir(exist_ok=True)
    unused = build_model(spec.teacher.model, spec.folder)  # recipe none asks no teacher
    state = Trainer(spec, unused, network, splits.train, splits.val, work).run()
    halved = {n: t.half() if t.is_floating_point() else t for n, t in state.best.items()}
    write_weights(path, halved)
    return state


def run_script(folder: Path, about: str | None, options: Sequence[str], steps: int) -> None:
    """A script that trains the teacher of `kdcompile.toml` and prints its validation metrics.

    Args:
        folder: of the spec; `teacher.safetensors` is written there.
        about: the script's help.
        options: what the spec is trained with, as of `--set`.
        steps: unless `--steps` says another number.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--steps", type=int, default=steps)
    length = parser.parse_args().steps
    spec = load_spec(folder / "kdcompile.toml", [*options, f"distill.steps={length}"])
    state = train_teacher(spec, folder / ".teacher", folder / "teacher.safetensors")
    scores = ", ".join(f"{name} {value:.4f}" for name, value in state.scores.items())
    print(f"validation {scores} at step {state.best_step}")
