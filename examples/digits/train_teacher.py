"""Train the example's teacher and write `teacher.safetensors` (about 10 minutes on two cores).

    python train_teacher.py [--steps 2500]

It sees 4,000 canvases of 64x64 of the training scans and is chosen by validation MAE on such; it
counts larger ones as they are.
"""

from pathlib import Path

from kdcompile.examples.teacher_training import run_script

HERE = Path(__file__).parent
OPTIONS = (
    "distill.recipe=none",
    "data.train=train:4000",
    "data.val=val:100",
    "export.shape=[1,1,64,64]",
    "distill.lr=2e-3",
    "distill.batch=24",
    "distill.crop=64",
)

if __name__ == "__main__":
    run_script(HERE, __doc__, OPTIONS, steps=2500)
