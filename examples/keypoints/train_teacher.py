"""Train the example's teacher and write `teacher.safetensors` (about a minute on one core).

python train_teacher.py [--steps 500]
"""

from pathlib import Path

from kdcompile.examples.teacher_training import run_script

HERE = Path(__file__).parent
OPTIONS = ("distill.recipe=none", "data.train=train:1000", "data.val=val:100", "distill.batch=24")

if __name__ == "__main__":
    run_script(HERE, __doc__, OPTIONS, steps=500)
