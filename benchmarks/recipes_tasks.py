"""What the recipes are tried on, and the networks that the trials start from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from canvases_64 import AT_64

HERE = Path(__file__).parent
EXAMPLES, CLASSES = HERE.parent / "examples", HERE / "recipe_tasks"
KEPT = HERE / ".recipes"  # teachers and deployed students, made once
TEACHER_STEPS, DEPLOYED_STEPS = 600, 300
OLD = range(7)


@dataclass(frozen=True)
class Task:
    """A training set that every recipe which fits is tried on.

    In sets `{seed}` stands for the seed, which draws another set, and `{photos}` for a folder that
    the command names: such a task is run where one is named, on a GPU if there is one.

    metric: of the test split; higher: whether more of it is better. only: the recipes that it is
    for beside `none` and `kd`; all where it is empty. but: those that take over 20 s on it, and
    are tried on others.
    """

    name: str
    folder: Path
    sets: tuple[str, ...]
    metric: str
    higher: bool
    summary: str
    only: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    @property
    def has_photos(self) -> bool:
        """Whether it needs a folder of photos."""
        return any("{photos}" in text for text in self.sets)

    def suits(self, recipe: str) -> bool:
        """Whether the recipe is tried on it."""
        asked = not self.only or recipe in ("none", "kd", *self.only)
        return asked and recipe not in self.but


@dataclass(frozen=True)
class Check:
    """What one recipe is for, against a rival that lacks it.

    arms: by name the fields that they differ by, the rival first. value, also: what is measured.
    last: judged after the last step, and not where it validated best.
    """

    recipe: str
    sets: tuple[str, ...]
    arms: tuple[tuple[str, tuple[str, ...]], ...]
    value: str
    higher: bool
    claim: str
    also: tuple[str, ...] = ()
    last: bool = False


COUNTING = Task(
    "counting", EXAMPLES / "digits",
    (
        *AT_64, "data.train=train:32:{seed}", "distill.steps=200", "distill.batch=8",
        "distill.evaluations=3", "distill.lr=4e-3",
    ),
    "mae", False, "counting digits among distractors: 32 canvases, a quarter of the width",
    but=("hard", "m2mkd"),
)  # fmt: skip
TASKS: Sequence[Task] = (
    COUNTING,
    Task("scarce", CLASSES, ("data.train=scarce:{seed}",), "top1", True,
         "classes of digits: 6 labelled scans a class", but=("hard", "class-relation")),
    Task("longtail", CLASSES, ("data.train=longtail:{seed}",), "top1", True,
         "classes of digits: 60 scans of the first class, each further one has 0.6 of them",
         only=("trg", "nd", "reliability", "tf-kd", "logit-std")),
    Task("shift", CLASSES, ("data.train=scarce:{seed}", "data.test=shifted-test"), "top1", True,
         "6 clean scans a class; tested at a site whose scans are turned, blurred and noisy",
         only=("hard", "mixup", "logit-std")),
    Task("cifar", EXAMPLES / "cifar10",
         ("data.root={photos}", "student.init=random", "distill.steps=560",
          "distill.evaluations=4", "distill.lr=2e-3"),
         "top1", True, "classes of CIFAR photos: 9,000 of them four times, half the width"),
)  # fmt: skip

_FILE = "student.weights=" + str(KEPT)
_BROKEN = f'teachers=[{{ model = "model.py:teacher", weights = "{KEPT / "broken.safetensors"}" }}]'
CHECKS: Sequence[Check] = (
    Check(
        "partitioned",
        (
            "data.train=both:{seed}", "distill.lr=3e-3",
            f"teacher.weights={KEPT / 'other.safetensors'}",
            "student.init=file", _FILE + "/deployed-{seed}.safetensors", "distill.steps=200",
        ),
        (("kd", ("distill.recipe=kd",)), ("partitioned", ("distill.recipe=partitioned",))),
        "flips", False,
        "of the digits that the deployed student knew fewer are lost when a teacher from another"
        " site refreshes it",
        ("top1", "shifted"), last=True,
    ),
    Check(
        "class-relation",
        (
            "data.train=new:{seed}", "teacher.model=model.py:old_teacher", "distill.lr=1e-3",
            f"teacher.weights={KEPT / 'old_teacher.safetensors'}",
            "student.init=file", _FILE + "/old-{seed}.safetensors", "distill.steps=60",
        ),
        (
            ("fine-tuned", ("distill.recipe=none",)),
            ("class-relation", ("distill.recipe=class-relation",)),
        ),
        "balanced", True,
        "three new classes are learnt from their photos alone, and more of the seven old ones is"
        " kept (mean accuracy of both groups)", ("old", "new"),
        last=True,
    ),
    Check(
        "mixture", ("data.train=scarce:{seed}",),
        (
            ("averaged", ("distill.recipe=kd", "teacher.model=model.py:averaged",
                          f"teacher.weights={KEPT / 'averaged.safetensors'}")),
            ("mixture", ("distill.recipe=mixture", _BROKEN)),
        ),
        "top1", True, "with a broken teacher beside a good one routing beats their average",
    ),
    Check(
        "reliability", ("data.train=scarce:{seed}", "teacher.model=model.py:corrupted"),
        (("kd", ("distill.recipe=kd",)), ("reliability", ("distill.recipe=reliability",))),
        "top1", True, "a teacher that is wrong for three classes of ten does less harm",
    ),
)  # fmt: skip


def make_networks(seeds: Sequence[int]) -> None:
    """Train the teachers and the deployed students that are not there yet."""
    import torch

    from kdcompile.models.factory import build_model, write_weights
    from kdcompile.models.weights import read_weights

    KEPT.mkdir(exist_ok=True)
    _train("teacher", "model.py:teacher", ("data.train=teach",), TEACHER_STEPS)
    _train("other", "model.py:teacher", ("data.train=shifted-all", "data.val=shifted-val"), 300)
    old = ("data.train=old-train", "data.val=old-val", "data.test=old-test")
    _train("old_teacher", "model.py:old_teacher", old, TEACHER_STEPS)
    for seed in seeds:
        own = (f"seed={seed}",)
        _train(f"deployed-{seed}", "model.py:student", ("data.train=train", *own), DEPLOYED_STEPS)
        _train(f"old-{seed}", "model.py:old_student", (*old, *own), DEPLOYED_STEPS)
    good, _ = read_weights(KEPT / "teacher.safetensors")
    broken = {n: t.roll(3, 0) if n.startswith("head") else t for n, t in good.items()}
    write_weights(KEPT / "broken.safetensors", broken)
    both = {f"good.{n}": t for n, t in good.items()} | {f"broken.{n}": t for n, t in broken.items()}
    assert set(both) == set(build_model("model.py:averaged", CLASSES).state_dict())
    write_weights(KEPT / "averaged.safetensors", {n: t.clone() for n, t in both.items()})
    assert all(torch.isfinite(t.float()).all() for t in both.values())


def _train(name: str, model: str, sets: Sequence[str], steps: int) -> None:
    from kdcompile.config.load import load_spec
    from kdcompile.examples.teacher_training import train_teacher

    path = KEPT / f"{name}.safetensors"
    if path.exists():
        return
    own = ["distill.recipe=none", f"distill.steps={steps}", f"teacher.model={model}", *sets]
    spec = load_spec(CLASSES / "kdcompile.toml", own)
    state = train_teacher(spec, KEPT / f"work-{name}", path)
    print(f"{name}: validation {state.scores}")
