"""Steps a second of plain training and of distillation in plain PyTorch and through the kernels."""

import shutil
import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from distill_arms import Arm, Source, card, changed
from distill_files import Results
from distill_train import fresh, make_trainer, steps_s

from kdcompile.distill.execution import milliseconds
from kdcompile.distill.phase import StageRun
from kdcompile.distill.schedule import stage_plans
from kdcompile.kernels import ran
from kdcompile.kernels._runtime import using

SEED = 0
WARM = 5


@dataclass
class Contender:
    """One way to train: its recipe, how a step runs, and whether the kernels may."""

    name: str
    recipe: str
    execution: str
    kernels: bool
    rates: list[float] = field(default_factory=list)
    losses: dict[str, str] = field(default_factory=dict)

    def choice(self) -> AbstractContextManager[None]:
        """The references, where the kernels may not run."""
        return nullcontext() if self.kernels else using("reference")


def contenders() -> list[Contender]:
    """Plain training, and distillation eager and by kernels."""
    return [
        Contender("speed plain", "none", "auto", kernels=True),
        Contender("speed eager", "skt", "eager", kernels=False),
        Contender("speed kernel", "skt", "auto", kernels=True),
    ]


def measure(
    source: Source, results: Results, rounds: int, steps: int, provenance: Mapping[str, Any]
) -> None:
    """Time all of them in one run, in turns, and keep a row each.

    Args:
        source: of spec, data and start.
        results: where the rows go.
        rounds: each contender's turns.
        steps: of a turn.
        provenance: of the records.
    """
    fresh()
    ready = [(one, _started(one, source)) for one in contenders()]
    for number in range(rounds):
        for one, run in ready:
            first = WARM + number * (steps + 1)
            with one.choice():
                seconds = steps_s(run, range(first - 1, first), range(first, first + steps))
            one.rates.append(steps / seconds)
    for one, run in ready:
        row = {
            "arm": one.name, "seed": SEED, "steps": rounds * steps, "card": card(),
            "minutes": sum(steps / rate for rate in one.rates) / 60,
            "steps_per_s": statistics.median(one.rates), "val_mae": None, "test_mae": None,
        }  # fmt: skip
        with one.choice():
            parts = _parts(run)
        record: dict[str, Any] = {
            "rates": one.rates, "stage": run.describe(), "parts_ms": parts, "losses": one.losses,
        }  # fmt: skip
        results.add(row, record | dict(provenance))
        run.release()


def _started(one: Contender, source: Source) -> StageRun:
    """A stage with networks of its own, its way to run chosen and warmed up."""
    base = source.spec(SEED).distill
    length: dict[str, Any] = {"steps": 1, "epochs": None, "minutes": None, "stages": []}
    options = changed(base, recipe=one.recipe, execution=one.execution, **length)
    arm = Arm(one.name, SEED, "inherit", options)
    folder = source.work / arm.slug
    folder.mkdir(parents=True, exist_ok=True)
    with one.choice():
        trainer = make_trainer(arm, options, source, folder)
        run = StageRun(trainer.setting, stage_plans(options)[0], 0, 10**6)
        run.start(None)
        shutil.rmtree(folder)
        steps_s(run, range(WARM - 1), range(WARM - 1, WARM))
    one.losses = ran()
    return run


def _parts(run: StageRun) -> dict[str, float]:
    """Milliseconds of a step's parts by themselves: the crops, and the teacher on them."""
    table = run.sampler.sent(run.sampler.draw(0))
    images = run.sampler.render(table).images
    parts: dict[str, Callable[[], Any]] = {
        "crops on the host": lambda: run.sampler.draw(0),
        "crops on the device": lambda: run.sampler.render(table),
    }
    if run.recipe.needs_teacher:
        parts["teacher"] = lambda: run.look(images)
    return {name: milliseconds(part, run.device) for name, part in parts.items()}
