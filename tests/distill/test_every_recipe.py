"""What holds of every recipe: it trains, goes on where it was stopped, compiles, combines."""

import json
import math

import pytest
import torch
from forked_job import two_processes
from run_recipes import train_all
from tiny_recipes import trainer
from tiny_training import PowerCutError, stopped_at

import kdcompile.distill.train as train_module
from kdcompile.core.errors import KDError
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.registry import ELSEWHERE, find_recipe, recipes

QUICK = ("crd", "mixture", "partitioned")  # those with a memory, a gate and a frozen student
NAMES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in recipes()
]
LOGITS = ("kd", "logit-std", "dist", "srd", "tf-kd", "nd", "reliability")
MAPS = ("fitnet", "at", "fsp", "vid", "ft", "kr", "ickd", "ghnd", "cwd", "skt")
RELATIONS = ("pkt", "rkd", "cckd", "spkd", "crd", "trg")
OTHERS = ("mixup", "hard", "partitioned", "class-relation", "mixture", "m2mkd")
NO_LOSS = ("pcoreset", "skillpack")


def test_the_library_is_whole():
    assert {*LOGITS, *MAPS, *RELATIONS, *OTHERS} <= set(recipes())
    assert set(NO_LOSS) == set(ELSEWHERE)


@pytest.mark.parametrize("name", recipes())
def test_what_it_says_of_itself(name):
    kind = find_recipe(name)
    about = kind.about
    assert all((about.summary, about.formula, about.source, about.cost, about.evidence))
    assert bool(kind.tasks) == bool(kind.why)
    for objective in OBJECTIVES.values():
        if kind.tasks and objective.kind not in kind.tasks:
            with pytest.raises(KDError) as caught:
                kind.refuse_task(objective.kind)
            assert caught.value.code == "recipe-task"
            continue
        for reduction in ("mean", "paper"):
            assert kind.defaults(objective, reduction)


@pytest.mark.parametrize("name", recipes())
def test_it_combines_with_skt(name, tmp_path):
    """One step with the terms of both; recipes that cannot be had together say so."""
    if "counting" not in (find_recipe(name).tasks or ("counting",)) or name in ("skt", "auto"):
        with pytest.raises(KDError) as caught:
            find_recipe(f"skt+{name}")
        assert caught.value.code == "recipe-combine"
        return
    kind = find_recipe(f"skt+{name}")
    training = trainer(f"skt+{name}", tmp_path, steps=1)
    state = training.run()
    terms = state.metrics[-1]["terms"]
    assert {"intra", "inter"} <= set(terms)
    assert set(terms) <= set(kind.defaults(OBJECTIVES["counting"], "mean"))
    assert all(torch.isfinite(torch.tensor(list(terms.values()))))


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_training_goes_on(name, tmp_path, monkeypatch):
    """Bit for bit."""
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)  # one after each step
    whole = trainer(name, tmp_path, "whole").run()
    with pytest.raises(PowerCutError):
        stopped_at(trainer(name, tmp_path, "cut"), 3).run()
    resumed = trainer(name, tmp_path, "cut")
    assert resumed._state.step == 3
    found = resumed.run()
    assert [row["loss"] for row in whole.metrics[1:]] == [row["loss"] for row in found.metrics[1:]]
    assert all(torch.equal(whole.best[n], found.best[n]) for n in whole.best)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_one_graph(name, tmp_path):
    """torch.compile traces student, taps and recipe whole, and gives the same."""
    training = trainer(name, tmp_path, steps=2)
    run = training._enter(0, training._plans[0], 2, 0)
    torch._dynamo.reset()
    batch = run.sampler.batch(0)
    forward = torch.compile(run.trainable, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        seen = run.see(run.recipe.view(batch))
        batch = run.recipe.view(batch)
    states = {n: t.clone() for n, t in run.trainable.state_dict().items()}
    torch.manual_seed(0)
    plain = run.trainable(batch.images, batch.target, seen)
    run.trainable.load_state_dict(states)
    torch.manual_seed(0)
    compiled = forward(batch.images, batch.target, seen)
    assert torch.allclose(plain, compiled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name, tmp_path):
    """The same terms within the precision, finite, with gradients."""
    training = trainer(name, tmp_path, steps=2)
    run = training._enter(0, training._plans[0], 2, 0)
    batch = run.sampler.batch(0)
    with torch.no_grad():
        batch = run.recipe.view(batch)
    torch.manual_seed(0)
    exact = run.trainable(batch.images, batch.target, run.see(batch))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run.trainable(batch.images, batch.target, run.see(batch))
    assert rounded.dtype == torch.float32
    assert torch.allclose(exact, rounded, rtol=0.1, atol=0.05)
    rounded.sum().backward()
    found = [p.grad for p in training.student.parameters() if p.grad is not None]
    assert found
    assert all(grad.isfinite().all() for grad in found)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(QUICK, id="quick"),
        pytest.param([n for n in recipes() if n not in QUICK], id="rest", marks=pytest.mark.soak),
    ],
)
def test_two_processes_train_one_student(names, tmp_path):
    """Every process has the same parameters in the end, and the losses are numbers."""
    done = two_processes(lambda: train_all(tmp_path, names), tmp_path)
    assert [process.code for process in done] == [0, 0], done[0].stderr + done[1].stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert set(first) == set(names)
    assert first == second
    assert all(math.isfinite(loss) for row in first.values() for loss in row["losses"])
