"""Train the example's teacher and write `teacher.safetensors` (a quarter of an hour on one core).

    python train_teacher.py --data FOLDER [--epochs 22]

FOLDER holds the archive that `kdcompile.toml` names. The weights are chosen by top-1 accuracy on
the validation photos. Run it again after an interruption and it goes on.
"""

import argparse
import logging
from pathlib import Path

from kdcompile.config.load import load_spec
from kdcompile.examples.teacher_training import train_teacher

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
    state = train_teacher(spec, HERE / ".teacher", HERE / "teacher.safetensors")
    print(f"validation top-1 {state.value:.4f} at step {state.best_step}")


if __name__ == "__main__":
    main()
