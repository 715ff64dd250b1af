"""Recipe `mixture`: its terms, its gate, and its masks."""

import numpy as np
import pytest
import torch
from recipe_ground import CLASSES, Bench, network
from safetensors.torch import save_file
from tiny_training import PowerCutError, stopped_at, trainer
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.distill.recipes.mixture import mask, routed

KINDS = ("counting", "classification", "regression")


def _bench(kind="counting", others=2, shaken=True, side=6, **options):
    """A recipe whose gate and masks differ from photo to photo."""
    nets = [network(kind, 3, 10 + i) for i in range(others)]
    bench = Bench("mixture", kind, others=nets, side=side, **options)
    if shaken:
        torch.manual_seed(7)
        for net in (bench.recipe.gate, *bench.recipe.masks):
            nn.init.normal_(net[2].weight, std=3.0)
            nn.init.normal_(net[2].bias)
    return bench


def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def _mean(kind, outputs, weights, temperature):
    """One photo's mixture, as a target: probabilities of classes."""
    outputs = [_softmax(o / temperature) if kind == "classification" else o for o in outputs]
    return sum(w * o for w, o in zip(weights, outputs, strict=True))


def _distance(objective, kind, student, blend, temperature):
    if kind == "classification":
        p = _softmax(student / temperature)
        return temperature**2 * float((blend * np.log(blend / p)).sum())
    scale = objective.squared if kind == "counting" else objective.scale**2
    return float(np.square(student - blend).mean()) / scale


def _oracle(bench, images):
    """The terms, photo by photo in NumPy; masks are applied to a plain run of the layers."""
    recipe, kind, inputs = bench.recipe, bench.kind, bench.inputs(images)
    temperature, terms = recipe.options.temperature, {}
    gate = recipe.log_gate(inputs).exp().detach().numpy()
    x = images
    for part, net in zip(bench.teacher, recipe.masks, strict=False):
        x = part(x)
        pooled = x.mean((2, 3))
        pooled = pooled.sign() * torch.log1p(pooled.abs())
        x = x / (1 + torch.exp(-net(pooled)))[:, :, None, None]
    masked = bench.teacher[2](x)
    pool = [t.detach().numpy() for t in (inputs.teacher, *inputs.others, masked)]
    student, target = inputs.student.detach().numpy(), inputs.target.numpy()
    rows = {"mixture": [], "gate": [], "masks": []}
    for n in range(len(images)):
        outputs, g = [t[n] for t in pool], gate[n]
        first, second = np.argsort(g)[::-1][:2]
        w = np.zeros_like(g)
        w[[first, second]] = g[[first, second]] / (g[first] + g[second])
        objective = recipe.objective
        blend = _mean(kind, outputs, w, temperature)
        rows["mixture"].append(_distance(objective, kind, student[n], blend, temperature))
        rows["masks"].append(
            _distance(objective, kind, outputs[-1], _mean(kind, [student[n]], [1.0], temperature),
                      temperature)
        )  # fmt: skip
        whole = _mean(kind, outputs, g, 1.0)
        rows["gate"].append(
            -np.log(whole[target[n]]) if kind == "classification"
            else _distance(objective, kind, whole, target[n], 1.0)
        )  # fmt: skip
    terms = {name: float(np.mean(values)) for name, values in rows.items()}
    mean = gate.mean(0)
    terms["balance"] = float(sum(np.log(1 / len(mean) / m) / len(mean) for m in mean))
    return terms


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "side", "others"), [(5, 6, 2), (1, 1, 1), (2, 3, 3)])
def test_the_terms_are_their_formula(kind, number, side, others):
    bench = _bench(kind, others, side=side, temperature=3.0)
    images = bench.images(number)
    found = bench.terms(images)
    assert set(found) == {"mixture", "gate", "balance", "masks"}
    for name, expected in _oracle(bench, images).items():
        assert found[name].item() == pytest.approx(expected, rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("kind", ["counting", "classification"])
def test_the_gradients_are_those_of_the_terms(kind):
    bench = _bench(kind)
    images = bench.images(2)
    student = bench.inputs(images).student.detach().requires_grad_()
    logits = bench.recipe.gate

    def mixture(output):
        with torch.no_grad():  # the gate's statistics are of another output
            fixed = bench.recipe.log_gate(bench.inputs(images))
        bench.recipe.log_gate = lambda inputs: fixed
        found = bench.terms(images, student=output)["mixture"]
        del bench.recipe.log_gate
        return found

    assert torch.autograd.gradcheck(mixture, (student,))
    if kind == "counting":  # cross-entropy is in float32

        def gate(weight, bias):
            terms = torch.func.functional_call(
                bench.recipe, {"gate.2.weight": weight, "gate.2.bias": bias},
                (bench.inputs(images),),
            )  # fmt: skip
            return terms["gate"], terms["balance"]

        assert torch.autograd.gradcheck(gate, (logits[2].weight, logits[2].bias))


def test_gates_and_routes_sum_to_one():
    bench = _bench("classification")
    gate = bench.recipe.log_gate(bench.inputs(bench.images(9))).exp()
    assert torch.allclose(gate.sum(1), torch.ones(9).double())
    routes = routed(gate)
    assert torch.allclose(routes.sum(1), torch.ones(9).double())
    assert ((routes > 0).sum(1) == 2).all()
    assert torch.allclose(routed(gate, gate.shape[1]), gate)  # then it is the weighted mean
    first = routed(gate, 1)
    assert torch.equal(first.argmax(1), gate.argmax(1))
    assert first.max() == 1


def test_gates_start_even():
    bench = _bench(shaken=False)
    gate = bench.recipe.log_gate(bench.inputs(bench.images(4))).exp()
    assert torch.allclose(gate, torch.full((4, 4), 0.25).double())
    assert bench.terms(bench.images(4))["balance"].item() == pytest.approx(0, abs=1e-12)


def test_other_numbers_of_the_teachers_are_other_places_in_the_gate():
    bench = _bench("classification")
    images, last = bench.images(4), bench.recipe.gate[2]
    before, gate = bench.terms(images), bench.recipe.log_gate(bench.inputs(images))
    bench.others = bench.others[::-1]
    order = [0, 2, 1, 3]
    with torch.no_grad():
        last.weight.copy_(last.weight[order])
        last.bias.copy_(last.bias[order])
    assert torch.allclose(bench.recipe.log_gate(bench.inputs(images)), gate[:, order])
    after = bench.terms(images)
    assert all(after[n].item() == pytest.approx(before[n].item()) for n in before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_the_mixture_has_no_loss_to_it(kind):
    bench = _bench(kind, shaken=False)
    inputs = bench.inputs(bench.images(3))
    same = {"teacher": inputs.teacher, "others": [inputs.teacher] * 2, "student": inputs.teacher}
    with torch.no_grad():
        for net in bench.recipe.masks:
            net[2].bias.fill_(100.0)
    assert bench.terms(bench.images(3), **same)["mixture"].item() == pytest.approx(0, abs=1e-9)


def test_the_order_of_a_batch_changes_nothing():
    bench = _bench()
    images, order = bench.images(5), [3, 0, 4, 2, 1]
    target = bench.inputs(images).target
    before = bench.terms(images)
    after = bench.terms(images[order], target=target[order])
    assert all(after[n].item() == pytest.approx(before[n].item()) for n in before)


def test_an_open_mask_is_the_teacher_and_any_mask_is_a_share():
    bench = _bench()
    images = bench.images(3)
    shares = [mask(net, bench.inputs(images).teacher_features[i])
              for i, net in enumerate(bench.recipe.masks)]  # fmt: skip
    assert all(((s > 0) & (s < 1)).all() for s in shares)
    assert not torch.allclose(bench.recipe.masked(images), bench.teacher(images))
    with torch.no_grad():
        for net in bench.recipe.masks:
            net[2].weight.zero_()
            net[2].bias.fill_(100.0)
    assert torch.equal(bench.recipe.masked(images), bench.teacher(images))


def test_masks_bring_the_teacher_near_to_the_student_and_nothing_else_moves():
    bench = _bench(shaken=False)
    images = bench.images(4)
    before = [p.clone() for p in (*bench.teacher.parameters(), *bench.student.parameters())]
    optimizer = torch.optim.Adam(bench.recipe.parameters(), 0.05)
    losses = []
    for _ in range(30):
        losses.append(bench.terms(images)["masks"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    after = (*bench.teacher.parameters(), *bench.student.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)


def test_masks_can_be_left_out():
    bench = _bench(weights={"masks": 0.0})
    assert set(bench.terms(bench.images(2))) == {"mixture", "gate", "balance"}
    assert bench.recipe.gate[2].out_features == 3
    assert len(bench.recipe.masks) == 0


def test_labels_teach_the_gate_and_nearness_to_the_student_does_not():
    bench = _bench()
    terms = bench.terms(bench.images(4))
    parameters = list(bench.recipe.gate.parameters())
    none = torch.autograd.grad(terms["mixture"], parameters, retain_graph=True, allow_unused=True)
    assert none == (None,) * 4
    for name in ("gate", "balance"):
        grads = torch.autograd.grad(terms[name], parameters, retain_graph=True)
        assert all(g.abs().sum() > 0 for g in grads)
    own = list(bench.student.parameters())
    for name in ("gate", "balance", "masks"):
        grads = torch.autograd.grad(terms[name], own, retain_graph=True, allow_unused=True)
        assert all(g is None for g in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near_and_zeros_are_finite(kind):
    bench = _bench(kind, dtype=torch.float32)
    images, inputs = bench.images(3), bench.inputs(bench.images(3))
    half = {
        "student": inputs.student.bfloat16(), "teacher": inputs.teacher.bfloat16(),
        "student_features": [m.bfloat16() for m in inputs.student_features],
    }  # fmt: skip
    found = bench.terms(images)
    for name, value in bench.terms(images, **half).items():
        assert value.item() == pytest.approx(found[name].item(), rel=0.1, abs=0.02), name
    student = torch.zeros_like(inputs.student).requires_grad_()
    zeros = {
        "student": student, "teacher": torch.zeros_like(inputs.teacher),
        "others": [torch.zeros_like(o) for o in inputs.others],
        "student_features": [torch.zeros_like(m) for m in inputs.student_features],
    }  # fmt: skip
    terms = bench.terms(torch.zeros_like(images), **zeros)
    sum(terms.values()).backward()
    grads = [student.grad, *(p.grad for p in bench.recipe.parameters() if p.grad is not None)]
    assert all(torch.isfinite(x).all() for x in (*terms.values(), *grads))


def _sure(answers):
    return 6.0 * nn.functional.one_hot(answers, CLASSES).double()


def _knows(share, seed):
    """A teacher of classes that is right in a share of each class, and otherwise guesses."""

    def answers(target):
        generator = torch.Generator().manual_seed(seed)
        known = torch.rand(len(target), generator=generator) < torch.tensor(share)[target]
        guess = torch.randint(CLASSES, target.shape, generator=generator)
        return _sure(torch.where(known, target, guess))

    return answers


def _taught(seed, learns, teachers):
    """Photos of three brightnesses, and a student that learns them from teachers alone.

    The share of new photos that it knows, and its mean gate by class [classes, teachers].
    """
    student = network("classification", 2, seed)
    bench = Bench(
        "mixture", "classification", student=student, others=[network("classification", 2, 0)],
        temperature=1.0, weights={"masks": 0.0},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (240,), generator=generator)
    noise = torch.randn(240, 1, 6, 6, generator=generator).double()
    images = target[:, None, None, None].double() - 1 + noise
    answers = [teacher(target) for teacher in teachers]
    optimizer = torch.optim.Adam([*student.parameters(), *bench.recipe.parameters()], 0.02)
    for step in range(60):
        batch = torch.arange(40) + step % 5 * 40
        changed = {
            "teacher": answers[0][batch], "others": [a[batch] for a in answers[1:]],
            "target": target[batch],
        }  # fmt: skip
        terms = bench.terms(images[batch], **changed)
        gate = terms["gate"] + 0.01 * terms["balance"] if learns else 0.0
        optimizer.zero_grad()
        (terms["mixture"] + gate).backward()
        optimizer.step()
    with torch.no_grad():
        inputs = bench.inputs(images[200:])
        right = (inputs.student.argmax(1) == target[200:]).double().mean().item()
        gates = bench.recipe.log_gate(bench.inputs(images)).exp()
    return right, torch.stack([gates[target == c].mean(0) for c in range(CLASSES)])


def test_the_gate_leaves_a_broken_teacher_and_beats_the_mean_of_all():
    """One teacher is right nine times of ten, the other takes each class for the next."""
    teachers = [_knows([0.9, 0.9, 0.9], 2), lambda target: _sure((target + 1) % CLASSES)]
    learnt = [_taught(seed, True, teachers) for seed in range(3)]
    even = [_taught(seed, False, teachers) for seed in range(3)]
    assert all(gates[:, 1].max() < 0.1 for _, gates in learnt)
    assert all(gates[:, 1].min() == pytest.approx(0.5) for _, gates in even)
    gains = [a - b for (a, _), (b, _) in zip(learnt, even, strict=True)]
    assert min(gains) > 0.2


def test_the_gate_sends_each_photo_to_the_teacher_that_knows_it():
    teachers = [_knows([1.0, 1.0, 0.0], 3), _knows([0.0, 0.0, 1.0], 4)]
    _, gates = _taught(0, True, teachers)
    assert gates[0, 0] > 0.75
    assert gates[2, 1] > 0.75


@pytest.fixture
def several(spec, tmp_path):
    """The tiny task with another teacher; `other` is its output's width."""

    def load(*sets, other=1, weights="second.safetensors"):
        (tmp_path / "model.py").write_text(
            "from torch import nn\n\ndef build():\n"
            f"    return nn.Sequential(nn.Conv2d(1, {other}, 2, 2))\n"
        )
        torch.manual_seed(0)
        save_file(nn.Sequential(nn.Conv2d(1, other, 2, 2)).state_dict(), tmp_path / weights)
        more = f'[[teachers]]\nmodel = "model.py:build"\nweights = "{weights}"\n'
        return spec("distill.recipe=mixture", *sets, more=more)

    return load


def test_a_teacher_of_another_output_is_refused_with_its_number(several, tmp_path):
    with pytest.raises(KDError) as caught:
        trainer(several(other=2), tmp_path / "work")
    assert caught.value.code == "teacher-output"
    assert "number 1 of [[teachers]] gives (1, 2, 8, 8)" in caught.value.message
    assert "[[teachers]] number 1" in caught.value.where


def test_a_teacher_that_fails_on_a_crop_is_named(several, tmp_path):
    asked = several()
    path = tmp_path / "model.py"
    path.write_text(path.read_text().replace("nn.Conv2d(1", "nn.Conv2d(3"))
    save_file(nn.Sequential(nn.Conv2d(3, 1, 2, 2)).state_dict(), tmp_path / "second.safetensors")
    with pytest.raises(KDError) as caught:
        trainer(asked, tmp_path / "work")
    assert caught.value.code == "teacher-forward"
    assert "number 1" in caught.value.where


def test_a_training_that_is_cut_off_goes_on_as_if_it_was_not(several, tmp_path):
    asked = several("distill.steps=6")
    whole = trainer(asked, tmp_path / "whole").run()
    with pytest.raises(PowerCutError):
        stopped_at(trainer(asked, tmp_path / "cut"), 4).run()
    resumed = trainer(asked, tmp_path / "cut").run()
    assert all(torch.equal(resumed.best[n], value) for n, value in whole.best.items())
    terms = set(whole.metrics[-1]["terms"])
    assert terms == {"hard", "count", "mixture", "gate", "balance", "masks"}
