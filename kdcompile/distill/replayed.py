"""`kdcompile distill --replay`: one kept step again, and the first tensor that is not finite."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.data.augment import Batch
from kdcompile.distill.explain import at_rest
from kdcompile.distill.phase import StageRun
from kdcompile.distill.pool_feed import viewed
from kdcompile.distill.qad import switch
from kdcompile.distill.replay import Replay, plain, read_replay
from kdcompile.distill.schedule import StagePlan, stage_plans
from kdcompile.distill.training_context import TrainingContext


@dataclass(frozen=True)
class Bad:
    """A tensor that is not finite: what it is of, its name and shape, and how much of it."""

    of: str
    name: str
    shape: tuple[int, ...]
    values: int
    input_largest: float | None = None  # of a module whose inputs are finite


def replayed(spec: Spec, architecture: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Run a kept step once more, on this machine, and look at everything that it computes.

    Args:
        spec: of the training, or a mended one with the same networks.
        architecture: as the search wrote it.
        path: a file of `save_replay`.

    Returns:
        JSON values: `step`, `stage`, `recipe`, `precision`, `device`, `batch`, the terms as `kept`
        and as found (`terms`), `nonfinite` in order of computation, and `reproduced`.

    Raises:
        KDError: `replay-other`, `replay-unreadable`; what the trainer raises before its first step.
    """
    kept = read_replay(path)
    plan = _plan(spec, kept, path)
    with scratch() as work:
        trainer = at_rest(spec, architecture, work)
        setting = _as_it_was(trainer.setting, kept)
        run = StageRun(setting, plan, 0, 1)
        _load(run, kept, path)
        found, terms = _step(run, kept)
    return {
        "step": kept.moment.step,
        "stage": plan.name,
        "recipe": plan.options.recipe,
        "precision": "bfloat16" if setting.bf16 else "float32",
        "device": setting.device.type,
        "batch": list(kept.batch.images.shape),
        "kept": {name: plain(value) for name, value in kept.moment.terms.items()},
        "terms": {name: plain(value) for name, value in terms.items()},
        "nonfinite": [_json(bad) for bad in found],
        "reproduced": bool(found),
    }


def _plan(spec: Spec, kept: Replay, path: Path) -> StagePlan:
    """The stage, for a sampler of one crop, which is not asked."""
    plans = {plan.name: plan for plan in stage_plans(spec.distill)}
    if kept.moment.stage not in plans:
        raise _other(path, f"it is of stage {kept.moment.stage!r}, which the spec does not have")
    plan = plans[kept.moment.stage]
    return replace(plan, options=plan.options.model_copy(update={"batch": 1}))


def _as_it_was(setting: TrainingContext, kept: Replay) -> TrainingContext:
    """In the precision of the training, whatever this machine would choose."""
    teacher = setting.teacher.bfloat16() if kept.moment.bf16 else setting.teacher.float()
    setting = replace(setting, teacher=teacher, bf16=kept.moment.bf16)
    if setting.layers:
        switch(setting, on=kept.moment.quantised)
    return setting


def _load(run: StageRun, kept: Replay, path: Path) -> None:
    known = set(run.trainable.names)
    try:
        run.setting.student.load_state_dict(dict(kept.networks["student"]))
        run.recipe.load_state_dict(dict(kept.networks["recipe"]))
        if run.setting.first is not None:
            run.setting.first.load_state_dict(dict(kept.networks["first"]))
    except RuntimeError as error:  # torch's only word for names or shapes that differ
        reason = str(error).splitlines()[-1].strip()
        raise _other(path, f"its networks are not those of the spec: {reason}") from error
    if known != set(kept.moment.weights):
        raise _other(path, f"its terms are {', '.join(kept.moment.weights)}")
    run.objective.rescale(kept.moment.scales)


def _other(path: Path, reason: str) -> KDError:
    return KDError(
        "replay-other",
        f"the batch was kept by another training: {reason}",
        where=str(path),
        fix="pass the spec, --target and --set of that training",
    )


def _step(run: StageRun, kept: Replay) -> tuple[list[Bad], dict[str, float]]:
    """What is not finite, in order of computation, and the loss with its terms."""
    setting, device = run.setting, run.device
    images, target = kept.batch.images.to(device), kept.batch.target.to(device)
    setting.student.train()
    torch.manual_seed(kept.moment.seed)
    found = [*_bad("batch", "images", images), *_bad("batch", "target", target)]
    with setting.autocast():
        with torch.no_grad():
            inside = None if kept.batch.inside is None else kept.batch.inside.to(device)
            batch = Batch(images, target, kept.batch.photo.to(device), inside)
            batch = viewed(run.recipe, batch)
        seen = run.see(batch)
        names = [tap.teacher for tap in run.taps] if seen.maps else []
        for name, value in [*zip(names, seen.maps, strict=True), ("", seen.teacher)]:
            found += _bad("teacher", name or "output", value)
        with _watched(setting.student, found):
            terms = run.trainable(batch.images, batch.target, seen)
    named = dict(zip(run.trainable.names, terms, strict=True))
    for name, value in named.items():
        found += _bad("term", name, value)
    loss = torch.stack([named[name] * kept.moment.weights[name] for name in named]).sum()
    found += _bad("loss", "weighted sum of the terms", loss)
    found += _gradients(run, named)
    values = {"loss": loss, **named}
    return found, {name: float(value.detach()) for name, value in values.items()}


@contextmanager
def _watched(network: nn.Module, found: list[Bad]) -> Iterator[None]:
    """Look at what each module gives, the innermost first."""

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        kind = f"{name or 'output'} ({type(module).__name__})"
        given = [x.detach() for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
        fine = given and all(bool(x.isfinite().all()) for x in given)
        largest = max(float(x.abs().max()) for x in given) if fine else None
        found.extend(replace(b, input_largest=largest) for b in _bad("student", kind, output))

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(look, name)))
        yield


def _gradients(run: StageRun, terms: Mapping[str, Tensor]) -> list[Bad]:
    """The gradients of each finite term that are not, and the norm of all of them together."""
    found: list[Bad] = []
    names = [*_named(run.setting.student, ""), *_named(run.recipe, "recipe.")]
    parameters = [parameter for _, parameter in names]
    total: list[Tensor] = []
    for term, value in terms.items():
        if not value.requires_grad or not bool(value.isfinite()):
            continue
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        for (name, _), grad in zip(names, grads, strict=True):
            if grad is not None:
                found += _bad("gradient", f"of {term} by {name}", grad)
                total.append(grad.norm())
    if total and not found:
        found += _bad("gradient", "norm of all", torch.stack(total).norm())
    return found


def _named(module: nn.Module, prefix: str) -> list[tuple[str, Tensor]]:
    return [(prefix + name, p) for name, p in module.named_parameters() if p.requires_grad]


def _bad(of: str, name: str, value: Any) -> Sequence[Bad]:
    """The tensor, where some of it is not finite."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return ()
    count = int((~value.isfinite()).sum())
    return (Bad(of, name, tuple(value.shape), count),) if count else ()


def _json(bad: Bad) -> dict[str, Any]:
    reach = None if bad.input_largest is None else plain(bad.input_largest)
    return {**vars(bad), "shape": list(bad.shape), "input_largest": reach}


def lines(found: Mapping[str, Any]) -> list[str]:
    """The replay as text."""
    text = [
        f"step {found['step']} of stage {found['stage']}, recipe {found['recipe']}: batch "
        f"{'x'.join(map(str, found['batch']))}, {found['precision']} on {found['device']}"
    ]
    for name, value in found["terms"].items():
        shown = [v if isinstance(v, str) else f"{v:.6g}" for v in (value, found["kept"].get(name))
                 if v is not None]  # fmt: skip
        text.append(f"  {name:<8} {shown[0]}" + (f" (was {shown[1]})" if shown[1:] else ""))
    if not found["reproduced"]:
        return [*text, "every tensor, term and gradient is finite here"]
    text.append("not finite, in the order of computation:")
    return text + [f"  {_words(bad)}" for bad in found["nonfinite"]]


def _words(bad: Mapping[str, Any]) -> str:
    size = "x".join(map(str, bad["shape"]))
    share = f": {bad['values']} values of {size}" if size else ""
    reach = bad["input_largest"]
    return f"{bad['of']} {bad['name']}{share}" + (
        "" if reach is None else f"; its input is finite, at most {reach:.4g}"
    )
