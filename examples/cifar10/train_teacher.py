"""Train the example's teacher and write `teacher.safetensors` (a quarter of an hour on one core).

    python train_teacher.py --data FOLDER [--epochs 22]

FOLDER holds the archive that `kdcompile.toml` names. The weights are chosen by top-1 accuracy on
the validation photos. Run it again after an interruption and it goes on.
"""

import argparse
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file

from kdcompile.data.splits import load_splits
from kdcompile.distill.train import Trainer
from kdcompile.models.factory import build_model
from kdcompile.models.shrunk import initialise
from kdcompile.spec_file import load_spec

HERE = Path(__file__).parent
OPTIONS = ("distill.recipe=none", "distill.lr=4e-3", "distill.weight_decay=0.05")


def main() -> None:
    """Write the weights in half precision and print the validation metric."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=22)
    asked = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("kdcompile").setLevel(logging.INFO)
    sets = [*OPTIONS, f"distill.epochs={asked.epochs}", f"data.root={asked.data}"]
    spec = load_spec(HERE / "kdcompile.toml", sets)
    torch.manual_seed(0)
    network = build_model(spec.teacher.model, HERE)
    initialise(network)
    splits = load_splits(spec.data, HERE)
    work = HERE / ".teacher"
    work.mkdir(exist_ok=True)
    unused = build_model(spec.teacher.model, HERE)  # recipe none asks no teacher
    state = Trainer(spec, unused, network, splits.train, splits.val, work).run()
    halved = {n: t.half() if t.is_floating_point() else t for n, t in state.best.items()}
    save_file(halved, HERE / "teacher.safetensors")
    print(f"validation top-1 {state.value:.4f} at step {state.best_step}")


if __name__ == "__main__":
    main()
