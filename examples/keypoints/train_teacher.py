"""Train the example's teacher and write `teacher.safetensors` (about a minute on one core).

python train_teacher.py [--steps 500]
"""

import argparse
from pathlib import Path

from kdcompile.config.load import load_spec
from kdcompile.examples.teacher_training import train_teacher

HERE = Path(__file__).parent
OPTIONS = ("distill.recipe=none", "data.train=train:1000", "data.val=val:100", "distill.batch=24")


def main() -> None:
    """Write the weights in half precision and print the validation metric."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    steps = parser.parse_args().steps
    spec = load_spec(HERE / "kdcompile.toml", [*OPTIONS, f"distill.steps={steps}"])
    state = train_teacher(spec, HERE / ".teacher", HERE / "teacher.safetensors")
    scores = ", ".join(f"{name} {value:.4f}" for name, value in state.scores.items())
    print(f"validation {scores} at step {state.best_step}")


if __name__ == "__main__":
    main()
