"""How a step is run: what is chosen, what is said, and that trying leaves no trace."""

import pytest
import torch
from tiny_training import trainer

from kdcompile.core.errors import KDError
from kdcompile.distill import execution
from kdcompile.distill.execution import prepare, undone


class Stage:
    """A step that adds one, and modes that take or refuse."""

    def __init__(self, device="cuda", refuse=()):
        self.device, self.refuse = torch.device(device), refuse
        self.weight, self.compiled = torch.zeros(2), False

    def body(self):
        if self.compiled and "compile" in self.refuse:
            raise RuntimeError("no kernel\nsecond line")
        self.weight += 1

    def compile(self, on):
        self.compiled = on

    def persistent(self):
        return [self.weight]


@pytest.fixture
def timed(monkeypatch):
    """Modes take these milliseconds; a graph is captured without a GPU."""
    ms = {}

    def milliseconds(run, _device):
        for _ in range(3):
            run()
        return ms[run.__name__]

    def captured(stage):
        stage.body()
        if "graph" in stage.refuse:
            raise RuntimeError("operation not permitted when stream is capturing")

        def graph():
            stage.weight += 1

        return graph

    monkeypatch.setattr(execution, "milliseconds", milliseconds)
    monkeypatch.setattr(execution, "_captured", captured)
    return ms


def test_auto_keeps_the_fastest_and_leaves_no_trace(timed):
    timed |= {"body": 5.0, "graph": 2.0}
    stage = Stage()
    run, found = prepare(stage, "auto", None)
    assert found.mode == "graph"
    assert found.ms == {"eager": 5.0, "compile": 5.0, "graph": 2.0}
    assert stage.weight.tolist() == [0, 0]
    run()
    assert stage.weight.tolist() == [1, 1]


def test_what_does_not_run_is_said_and_passed_by(timed):
    timed |= {"body": 5.0, "graph": 2.0}
    stage = Stage(refuse=("compile",))
    _, found = prepare(stage, "auto", None)
    assert found.mode == "eager"
    assert found.failed == dict.fromkeys(("compile", "graph"), "RuntimeError: no kernel")
    assert not stage.compiled
    assert stage.weight.tolist() == [0, 0]


def test_a_slower_graph_is_not_taken(timed):
    timed |= {"body": 1.0, "graph": 2.0}
    assert prepare(Stage(), "auto", None)[1].mode == "eager"


def test_a_resumed_run_keeps_its_mode(timed):
    timed |= {"body": 1.0, "graph": 2.0}
    run, found = prepare(Stage(), "auto", "graph")
    assert (found.mode, found.why, run.__name__) == ("graph", "kept", "graph")


def test_an_asked_mode_that_fails_is_an_error(timed):
    with pytest.raises(KDError) as error:
        prepare(Stage(refuse=("graph",)), "graph", None)
    assert error.value.code == "execution-failed"
    assert "stream is capturing" in error.value.message
    assert '"eager"' in error.value.fix


def test_a_cpu_runs_eagerly_and_refuses_the_rest():
    stage = Stage("cpu")
    run, found = prepare(stage, "auto", None)
    assert (found.mode, found.why) == ("eager", "on a CPU")
    assert run == stage.body
    with pytest.raises(KDError) as error:
        prepare(stage, "graph", None)
    assert error.value.code == "execution-failed"


def test_several_processes_are_not_captured(timed):
    timed |= {"body": 5.0, "graph": 2.0}
    _, found = prepare(Stage(), "auto", None, alone=False)
    assert (found.mode, found.why) == ("eager", "with several processes")
    assert prepare(Stage(), "compile", None, alone=False)[1].mode == "compile"
    with pytest.raises(KDError) as error:
        prepare(Stage(), "graph", None, alone=False)
    assert "several processes" in error.value.message


def test_undone_restores_even_after_a_failure():
    stage = Stage("cpu")
    with pytest.raises(ZeroDivisionError):
        undone(stage, lambda: (stage.body(), 1 / 0))
    assert stage.weight.tolist() == [0, 0]
    assert undone(stage, lambda: 7) == 7


@pytest.mark.parametrize("recipe", ["none", "kd", "skt"])
def test_a_step_compiles_in_one_graph(spec, tmp_path, recipe):
    """Hooks, taps and losses are traced whole, and the compiled networks give the same."""
    training = trainer(spec("distill.steps=4", f"distill.recipe={recipe}"), tmp_path / "work")
    run = training._enter(0, training._plans[0], 4, 0)
    batch = run.sampler.batch(0)
    look = torch.compile(run._teacher, backend="aot_eager", fullgraph=True)
    forward = torch.compile(run.trainable, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    output, maps = run.look(batch.images)
    with torch.no_grad():
        also, features = look(batch.images)
    assert torch.allclose(output, also, atol=1e-6)
    assert len(maps) == len(features)
    seen = run.see(batch)
    plain = run.trainable(batch.images, batch.target, seen)
    plain.sum().backward()
    expected = [p.grad.clone() for p in run.setting.student.parameters()]
    run.setting.student.zero_grad()
    compiled = forward(batch.images, batch.target, seen)
    compiled.sum().backward()
    assert torch.allclose(plain, compiled, rtol=1e-5)
    for parameter, grad in zip(run.setting.student.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, grad, rtol=1e-4, atol=1e-6)
