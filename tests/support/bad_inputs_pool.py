"""Pools of unlabelled photos that must be refused: `kdcompile plan --label`."""

import shutil
from pathlib import Path

from bad_inputs import MODEL, BadInput, project, replace

LABEL = ("plan", "--label", "1")
POOL = ("--set", "data.unlabelled=pool")
LIST = ("--set", "data.unlabelled=pool.txt")
SURE, UNSURE = "torch.relu(self.body(image))", "torch.relu(self.body(image)).log()"


def _pool(folder: Path) -> None:
    """A photo that no split holds: one of training, without its line there."""
    data = folder / "data"
    (data / "pool").mkdir()
    (data / "images" / "train3.png").rename(data / "pool" / "train3.png")
    replace(data / "train.txt", "train3.png\n", "")


def _listed(folder: Path) -> None:
    project(folder)
    _pool(folder)
    (folder / "data" / "pool.txt").write_text("pool/train3.png\nimages/train0.png\n")


def _known(folder: Path) -> None:
    project(folder)
    (folder / "data" / "pool").mkdir()
    shutil.copy(folder / "data" / "images" / "test0.png", folder / "data" / "pool")


def _damaged(folder: Path) -> None:
    project(folder)
    _pool(folder)
    (folder / "data" / "pool" / "b.png").write_bytes(b"\x89PNG")


def _unsure(folder: Path) -> None:
    """A teacher that takes the logarithm of nothing."""
    project(folder, model=MODEL.replace(SURE, UNSURE))
    _pool(folder)


CASES = [
    BadInput(
        "pool-that-is-not-named", project, LABEL, "pool-unset",
        fixed=lambda folder: (_pool(folder), (*LABEL, *POOL))[1], says=("data.unlabelled",),
    ),
    BadInput(
        "pool-that-is-not-there", project, (*LABEL, *POOL), "pool-missing",
        fixed=_pool, says=("'pool'", "data.unlabelled"),
    ),
    BadInput(
        "pool-of-known-photos", _known, (*LABEL, *POOL), "pool-empty",
        fixed=lambda folder: (shutil.rmtree(folder / "data" / "pool"), _pool(folder), None)[2],
        says=("all 1 are in the splits",),
    ),
    BadInput(
        "pool-with-a-training-photo", _listed, (*LABEL, *LIST), "pool-labelled",
        fixed=lambda folder: replace(folder / "data" / "pool.txt", "images/train0.png\n", ""),
        says=("images/train0.png", "train split"),
    ),
    BadInput(
        "pool-with-a-damaged-photo", _damaged, (*LABEL, *POOL), "image-unreadable",
        fixed=lambda folder: (folder / "data" / "pool" / "b.png").unlink(), says=("b.png",),
    ),
    BadInput(
        "pool-that-the-teacher-has-no-answer-to", _unsure, (*LABEL, *POOL), "output-nonfinite",
        fixed=lambda folder: replace(folder / "model.py", UNSURE, SURE),
        says=("the teacher's output", "train0.png"),
    ),
    BadInput("label-of-none", project, ("plan", "--label", "0"), "", exit=2,
             fixed=lambda folder: (_pool(folder), (*LABEL, *POOL))[1], says=("--label",)),
]  # fmt: skip
