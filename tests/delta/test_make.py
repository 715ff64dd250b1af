"""`make` and `apply` with a spec: searched on validation, judged on test, told as it is."""

import numpy as np
import pytest
import torch
from delta_site import SPEC, updated, write_site
from safetensors.torch import load_file, save_file

from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.delta import apply, make, making
from kdcompile.delta.applying import Judged
from kdcompile.delta.making import Sight
from kdcompile.delta.selection import Biases
from kdcompile.delta.student import Student, is_proven
from kdcompile.delta.tensors import read_student, weights_hash
from kdcompile.tasks.metric import MAE, TOP1


def _files(folder):
    return folder / "base.safetensors", folder / "new.safetensors", folder / "d"


def _student(folder, *sets):
    state, metadata = read_student(folder / "base.safetensors")
    return Student(load_spec(folder / "kdcompile.toml", sets), state, metadata, folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A site, and the delta that its photos allow."""
    folder = tmp_path_factory.mktemp("site")
    write_site(folder)
    spec = load_spec(folder / "kdcompile.toml")
    return folder, spec, make(*_files(folder), spec=spec, size=1.0, loss=0.01)


def test_the_smallest_that_validation_proves_is_written_and_judged(made):
    folder, _, found = made
    assert (found.verdict, found.output) == ("passed", str(folder / "d"))
    assert (found.validation.images, found.test.images) == (40, 80)
    assert found.test.high <= 0.01 * found.test.reference
    assert found.validation.high <= 0.005 * found.validation.reference  # with half to spare
    assert abs(found.test.value - found.test.reference) < 0.01 * found.test.reference
    assert found.bytes == (folder / "d").stat().st_size
    kinds = {one.kind for one in found.tensors.values()}
    assert kinds - {"same", "half", "exact"}
    assert found.tensors["1.num_batches_tracked"].kind == "exact"


def test_less_loss_takes_more_bytes(made):
    folder, spec, found = made
    base, new, _ = _files(folder)
    finer = make(base, new, folder / "finer", spec=spec, size=2.0, loss=0.001)
    assert finer.bytes > found.bytes
    assert finer.test.high < found.test.high


def test_what_is_applied_is_judged_against_new_or_base(made):
    folder, spec, found = made
    base, new, delta = _files(folder)
    done = apply(base, delta, folder / "out.safetensors", spec=spec, new=new, loss=0.01)
    assert (done.verdict, done.result) == ("passed", found.result)
    assert done.test == found.test
    beside = apply(base, delta, folder / "out.safetensors", spec=spec, loss=1.0)
    assert beside.test.reference != found.test.reference


def test_an_update_that_is_worse_here_is_not_applied(made):
    folder, spec, _ = made
    base, _, _ = _files(folder)
    state, about = read_student(base)
    worse = {n: t * 0 if n == "6.weight" else t for n, t in state.items()}
    save_file(worse | {"6.bias": worse["6.bias"] + 9}, folder / "worse.safetensors", about)
    make(base, folder / "worse.safetensors", folder / "w", size=1.0)
    done = apply(base, folder / "w", folder / "no.safetensors", spec=spec)
    assert (done.verdict, done.output) == ("failed", None)
    assert not (folder / "no.safetensors").exists()


def test_where_size_and_loss_cannot_both_be_had_it_says_how_far(made):
    folder, spec, _ = made
    base, new, _ = _files(folder)
    found = make(base, new, folder / "no", spec=spec, size=0.55, loss=0.0001)
    assert (found.verdict, found.output, found.test) == ("failed", None, None)
    assert "the smallest that validation proves has" in found.reason
    assert "bytes" in found.reason.partition("; at ")[2]
    assert not (folder / "no").exists()


def test_too_few_photos_decide_nothing(made):
    folder, _, _ = made
    base, new, _ = _files(folder)
    for few, said in (("val=val:5", "validation"), ("test=test:5", "too few")):
        spec = load_spec(folder / "kdcompile.toml", [f"data.{few}"])
        found = make(base, new, folder / "no", spec=spec, size=2.0, loss=0.05)
        assert (found.verdict, found.output) == ("inconclusive", None)
        assert said in found.reason
    assert not (folder / "no").exists()


def test_the_search_leaves_room_for_other_photos(made):
    folder, _, _ = made
    same, more = _student(folder, "data.test=test:40"), _student(folder, "data.test=test:400")
    assert same.search_loss(0.01) == pytest.approx(0.005)
    assert more.search_loss(0.01) == 0.01


def test_a_gain_on_the_photos_of_the_choice_is_not_counted():
    def found(value, high, verdict="passed"):
        return Judged(verdict, "", "mae", value, 10.0, high, 0.05, 40)

    assert is_proven(found(10.1, 0.5), MAE)
    assert is_proven(found(9.9, 0.4), MAE)  # 0.5 wide
    assert not is_proven(found(9.0, 0.4), MAE)  # 1.4 wide
    assert not is_proven(found(10.1, 0.5, "failed"), MAE)
    assert not is_proven(found(10.1, None, "inconclusive"), MAE)
    rate = Judged("passed", "", "top1", 0.95, 0.9, 0.04, 0.05, 40)
    assert not is_proven(rate, TOP1)  # five points better, nine wide


def test_the_same_photos_give_the_same_bytes(made):
    folder, spec, _ = made
    base, new, delta = _files(folder)
    make(base, new, folder / "again", spec=spec, size=1.0, loss=0.01)
    assert (folder / "again").read_bytes() == delta.read_bytes()


def test_photos_of_several_sizes_are_looked_at_in_their_own(tmp_path):
    write_site(tmp_path)
    photos = (tmp_path / "photos.py").read_text()
    wider = photos.replace("(8, 8, 1)", "(8, 8 + 4 * (i % 2), 1)")
    (tmp_path / "photos.py").write_text(wider)
    spec = (tmp_path / "kdcompile.toml").read_text()
    shapes = "min = [1, 1, 8, 8]\nopt = [1, 1, 8, 8]\nmax = [1, 1, 8, 12]"
    spec = spec.replace("[export]\nshape = [1, 1, 8, 8]", f"[export.shape]\n{shapes}")
    (tmp_path / "kdcompile.toml").write_text(spec)
    student = _student(tmp_path)
    state = load_file(tmp_path / "new.safetensors")
    assert len(student.outputs(state)) == 16
    few, slopes = student.outputs(state, 4), student.slopes(state, 4)
    assert len(few) == 4
    assert {len(part) for part in slopes.values()} == {4}
    assert make(*_files(tmp_path), spec=student.spec, size=2.0, loss=0.05).verdict == "passed"


def test_moments_are_those_of_the_outputs(made):
    """E[(w x)^2] = w M w^T, by another way than the one that gathers x."""
    folder, _, _ = made
    student = _student(folder)
    state = load_file(folder / "new.safetensors")
    moments = student.moments(state)
    assert set(moments) == {"0.weight", "4.weight", "6.weight"}
    squares = []

    def keep(module, given, output):
        squares.append(output - module.bias[:, None, None])

    hook = student.model[4].register_forward_hook(keep)
    student.outputs(state)
    hook.remove()
    weight = state["4.weight"].reshape(8, -1).double().numpy()
    wanted = torch.cat(squares).square().mean((0, 2, 3))
    found = np.einsum("on,nm,om->o", weight, moments["4.weight"], weight)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4)


def test_slopes_are_differences_of_the_outputs(made):
    folder, _, _ = made
    student = _student(folder)
    state = load_file(folder / "new.safetensors")
    slopes, right = student.slopes(state), student.outputs(state)
    assert set(slopes) == {"0.bias", "1.bias", "4.bias", "6.bias"}
    for name in slopes:
        assert slopes[name].shape == (len(right), len(state[name]))
        moved = {**state, name: state[name].clone()}
        moved[name][0] += 1e-3
        rise = (student.outputs(moved) - right) / 1e-3
        near = np.isclose(slopes[name][:, 0], rise, rtol=1e-2, atol=1e-3)
        assert near.mean() > 0.8  # but where a ReLU turns


def test_biases_make_good_what_other_errors_do(made):
    folder, _, _ = made
    student = _student(folder)
    new = load_file(folder / "new.safetensors")
    sight = Sight(student, new)
    rough = new | {"4.weight": updated({"w": new["4.weight"]}, 0.01)["w"]}
    change = sight.change(rough)
    for name, more in sight.biases.fit(change).items():
        rough[name] = rough[name] + torch.from_numpy(more).float()
    assert np.square(sight.change(rough)).mean() < 0.3 * np.square(change).mean()


def test_a_network_without_biases_leaves_a_change_as_it_is():
    change = np.array([1.0, -2.0])
    for nothing in (Biases({}), Biases({"b": np.zeros((2, 3))})):
        assert nothing.left(change) == 2.5
        assert nothing.fit(change) == {}


def test_ridge_regression_by_its_formula():
    random = np.random.default_rng(0)
    slopes = {"a": random.standard_normal((30, 2)), "b": random.standard_normal((30, 3))}
    wanted = random.standard_normal(5)
    whole = np.concatenate(list(slopes.values()), 1)
    found = Biases(slopes).fit(-whole @ wanted)
    np.testing.assert_allclose(np.concatenate([found["a"], found["b"]]), wanted, rtol=1e-3)
    noise = random.standard_normal(30)
    assert 0.3 < Biases(slopes).left(noise) <= np.square(noise).mean()


def test_weights_that_name_no_architecture(made):
    folder, spec, _ = made
    _, new, _ = _files(folder)
    save_file(load_file(folder / "base.safetensors"), folder / "plain.safetensors")
    with pytest.raises(KDError) as error:
        make(folder / "plain.safetensors", new, folder / "no", spec=spec)
    assert error.value.code == "delta-architecture"
    assert make(folder / "plain.safetensors", new, folder / "plain", size=1.0).verdict == "passed"


def test_a_rate_of_a_classifier(tmp_path):
    """Logits of several classes, points of top1, and a linear layer."""
    write_site(tmp_path)
    model = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
"""
    (tmp_path / "model.py").write_text(model)
    spec = SPEC.replace('"photos.py:photos"', '"npz"').replace("[data]", "[task]\nkind = "
        '"classification"\n[data]').replace("[1, 1, 8, 8]", "[1, 1, 4, 4]")  # fmt: skip
    for split, number in (("train", 12), ("val", 30), ("test", 60)):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 255, (number, 4, 4)).astype(np.uint8)
        np.savez(tmp_path / f"{split}.npz", x=pixels, y=random.integers(0, 3, number))
        spec = spec.replace(f'"{split}:', f'"{split}.npz#')
    for number in (16, 40, 80):
        spec = spec.replace(f"#{number}", "")
    (tmp_path / "kdcompile.toml").write_text(spec)
    from kdcompile.models.factory import build_model

    base = build_model("model.py:build", tmp_path).state_dict()
    about = read_student(tmp_path / "base.safetensors")[1]
    for name, state in (("teacher", base), ("base", base), ("new", updated(base, 0.3))):
        save_file(state, tmp_path / f"{name}.safetensors", about)
    found = make(*_files(tmp_path), spec=load_spec(tmp_path / "kdcompile.toml"), size=2.0, loss=0.2)
    assert found.test.metric == "top1"
    assert found.verdict == "passed"
    assert found.test.high <= 0.2
    done = apply(tmp_path / "base.safetensors", tmp_path / "d", tmp_path / "out.safetensors")
    assert weights_hash(read_student(tmp_path / "out.safetensors")[0]) == done.result


def _proven_at(monkeypatch, *turns):
    """Let validation prove what is tried at these turns, from 1; the list of what was tried."""
    tried = []

    def luck(judged, metric):
        tried.append(judged)
        return len(tried) in turns

    monkeypatch.setattr(making, "is_proven", luck)
    return tried


def test_what_there_is_room_for_is_taken_where_it_is_proven(made, monkeypatch):
    """Even where rungs above it are not, for accuracy does not quite rise from rung to rung."""
    folder, spec, _ = made
    base, new, _ = _files(folder)
    tried = _proven_at(monkeypatch, 1, 2)  # the new weights themselves, the largest with room
    found = make(base, new, folder / "most", spec=spec, size=1.0, loss=0.9)
    assert found.verdict == "passed"
    assert found.validation == tried[1]
    assert len(tried) > 4  # those below it were tried too


def test_where_the_largest_is_not_proven_one_a_little_smaller_may_be(made, monkeypatch):
    folder, spec, _ = made
    base, new, _ = _files(folder)
    tried = _proven_at(monkeypatch, 1, 4)  # the new weights themselves, the third with room
    found = make(base, new, folder / "third", spec=spec, size=1.0, loss=0.9)
    assert (found.verdict, found.validation) == ("passed", tried[3])

    _proven_at(monkeypatch, 1)
    found = make(base, new, folder / "no", spec=spec, size=1.0, loss=0.9)
    assert found.verdict == "failed"
