"""The file: the same bytes twice, checked against base and result, and refused when it is not."""

import base64
import json
import struct

import pytest
import torch
from delta_site import updated
from safetensors.torch import load, save, save_file

from kdcompile.core.errors import KDError
from kdcompile.delta import apply, make
from kdcompile.delta.file import KEY, read_delta
from kdcompile.delta.tensors import half_size, read_student, weights_hash


@pytest.fixture
def weights(tmp_path):
    """`base` and `new`, of every type of tensor."""
    random = torch.Generator().manual_seed(0)
    base = {
        "conv.weight": torch.randn(8, 4, 3, 3, generator=random),
        "conv.bias": torch.randn(8, generator=random),
        "half.weight": torch.randn(6, 9, generator=random).half(),
        "brain.weight": torch.randn(6, 9, generator=random).bfloat16(),
        "double.weight": torch.randn(4, 4, generator=random).double(),
        "norm.num_batches_tracked": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "one": torch.ones(1),
        "frozen.weight": torch.randn(4, 4, generator=random),
        "none": torch.zeros(0),
    }
    new = updated(base, 0.05)
    new |= {"mask": torch.tensor([True, True]), "frozen.weight": base["frozen.weight"].clone()}
    save_file(base, tmp_path / "base.safetensors", {"architecture": "{}"})
    save_file(new, tmp_path / "new.safetensors", {"architecture": "{}"})
    return tmp_path


def _make(folder, size=1.0, name="d"):
    return make(folder / "base.safetensors", folder / "new.safetensors", folder / name, size=size)


def test_with_all_the_room_it_is_exact(weights):
    made = _make(weights, size=4.0)
    done = apply(weights / "base.safetensors", weights / "d", weights / "out.safetensors")
    state, metadata = read_student(weights / "out.safetensors")
    new, _ = read_student(weights / "new.safetensors")
    assert weights_hash(state) == weights_hash(new) == made.result == done.result
    assert metadata == {"architecture": "{}"}
    assert made.tensors["frozen.weight"].bytes == made.tensors["none"].bytes == 0


@pytest.mark.parametrize("size", [0.6, 0.9, 1.5])
def test_what_is_written_is_as_large_as_it_says_and_makes_what_it_says(weights, size):
    made = _make(weights, size=size)
    new, _ = read_student(weights / "new.safetensors")
    assert made.bytes == (weights / "d").stat().st_size <= size * half_size(new)
    assert made.share == made.bytes / half_size(new)
    apply(weights / "base.safetensors", weights / "d", weights / "out.safetensors")
    state, _ = read_student(weights / "out.safetensors")
    assert weights_hash(state) == made.result
    for name, tensor in state.items():
        assert (tensor.shape, tensor.dtype) == (new[name].shape, new[name].dtype)
        base, _ = read_student(weights / "base.safetensors")
        left = (tensor.double() - new[name].double()).norm()
        whole = (new[name].double() - base[name].double()).norm()
        wanted = made.tensors[name].error if made.tensors[name].kind != "exact" else 0
        assert float(left) == pytest.approx(wanted * float(whole), rel=0.06, abs=1e-9)


def _share_wrong(made, new):
    left, whole = ((t.double()).square().sum() for t in (made.double() - new.double(), new))
    return float(left / whole) if left else 0.0


def test_more_bytes_leave_no_more_error(weights):
    errors = []
    for size in (0.6, 0.8, 1.0, 1.5, 2.5):
        _make(weights, size=size)
        apply(weights / "base.safetensors", weights / "d", weights / "out.safetensors")
        state, new = (read_student(weights / f"{n}.safetensors")[0] for n in ("out", "new"))
        errors.append(sum(_share_wrong(state[name], new[name]) for name in new))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 * errors[0]


def test_the_same_weights_give_the_same_bytes(weights):
    _make(weights, name="a")
    _make(weights, name="b")
    assert (weights / "a").read_bytes() == (weights / "b").read_bytes()


def test_nothing_but_the_header_where_nothing_changed(weights):
    made = make(weights / "base.safetensors", weights / "base.safetensors", weights / "d", size=1)
    assert made.bytes < 500
    assert {one.kind for one in made.tensors.values()} == {"same"}
    apply(weights / "base.safetensors", weights / "d", weights / "out.safetensors")
    assert weights_hash(read_student(weights / "out.safetensors")[0]) == made.base


def test_too_little_room_writes_nothing(weights):
    made = _make(weights, size=0.01)
    assert (made.verdict, made.output) == ("failed", None)
    assert not (weights / "d").exists()


def test_the_hash_is_of_the_tensors_and_not_of_the_file(weights):
    base, _ = read_student(weights / "base.safetensors")
    torch.save(dict(reversed(base.items())), weights / "base.pt")
    assert weights_hash(read_student(weights / "base.pt")[0]) == weights_hash(base)
    other = {**base, "one": torch.zeros(1)}
    assert weights_hash(other) != weights_hash(base)
    _make(weights)
    apply(weights / "base.pt", weights / "d", weights / "out.safetensors")


def test_in_place(weights):
    made = _make(weights)
    base = weights / "base.safetensors"
    apply(base, weights / "d", base)
    assert weights_hash(read_student(base)[0]) == made.result
    with pytest.raises(KDError) as error:
        apply(base, weights / "d", base)
    assert error.value.code == "delta-base"
    assert made.base[:16] in error.value.message
    assert made.result[:16] in error.value.message


# a delta of version 1 with every kind, as it was first written
FIRST = (
    "cAEAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJrZGNvbXBpbGUtZGVsdGEiOiJ7XCJ2ZXJzaW9uXCI6MSxcImJhc2VcIj"
    "pcIjA3ZGYyZTdhYTU2OWUwNDcyYjRjODlmODBkMmVhZTA4OGM1YjEzN2IwMTljMmQxZDhlMTg1YmFmY2RjMTkxODVc"
    "IixcInJlc3VsdFwiOlwiOGUxZjg4NGE2ODUzZjBjMWMzY2RhYTE2ODM1NGRlM2VlM2E1MWU5YjVhNjUyZGU1YWY1MW"
    "ZhZDZmM2IxMmI1YlwiLFwibGF5ZXJzXCI6W1s0LDMwLDAuMSwzXSxbMyw2LDAuMiw0LDAuMDEyM10sWzIsMTAsMC4w"
    "XSxbMSw4LDAuMF0sWzAsMCwwLjBdLFszLDcsMC4zLDIsMC4wMDE3XV19In0sImRhdGEiOnsiZHR5cGUiOiJVOCIsIn"
    "NoYXBlIjpbNjFdLCJkYXRhX29mZnNldHMiOlswLDYxXX19ICAgICv2Fz2jIzk8s7U+OwcvV3+nz/eyoZB/bl1MMXW5"
    "DSFDZYepywC8ALgAAAA4ADwqAAAAAAAAAFPxnKQCQQA="
)
RESULT = "8e1f884a6853f0c1c3cdaa168354de3ee3a51e9b5a652de5af51fad6f3b12b5b"


def test_a_delta_that_was_written_elsewhere_makes_the_same_bits(tmp_path):
    base = {
        "a": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
        "b": torch.arange(12, dtype=torch.float32).bfloat16().reshape(4, 3) / 3,
        "c": torch.arange(5, dtype=torch.float16) / 3,
        "d": torch.tensor(41),
        "e": torch.ones(2, 2),
        "f": torch.arange(40, dtype=torch.float32).reshape(4, 10) / 11,
    }
    save_file(base, tmp_path / "base.safetensors")
    (tmp_path / "d").write_bytes(base64.b64decode(FIRST))
    done = apply(tmp_path / "base.safetensors", tmp_path / "d", tmp_path / "out.safetensors")
    assert done.result == RESULT
    made, _ = read_student(tmp_path / "out.safetensors")
    assert weights_hash(made) == RESULT
    assert int(made["d"]) == 42
    assert torch.equal(made["e"], base["e"])
    assert float(made["c"][-1]) == float((base["c"][-1].double() + 1).half())


def test_a_folder_of_the_distill_stage(weights):
    stage = weights / "stage"
    stage.mkdir()
    (weights / "base.safetensors").rename(stage / "student.safetensors")
    make(stage, weights / "new.safetensors", weights / "d", size=1)
    apply(stage, weights / "d", weights / "out.safetensors")


def _changed(folder, change):
    """The delta with other metadata or data."""
    content = (folder / "d").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][KEY])
    data = load(content)["data"]
    found = change(about, data)
    about, data = found if isinstance(found, tuple) else (about, data)
    (folder / "d").write_bytes(save({"data": data}, {KEY: json.dumps(about)}))


CHANGES = {
    "a newer version": (lambda a, d: a.update(version=2), "delta-newer"),
    "no version": (lambda a, d: a.pop("version"), "delta-corrupt"),
    "a version that is none": (lambda a, d: a.update(version=True), "delta-corrupt"),
    "no hash": (lambda a, d: a.pop("result"), "delta-corrupt"),
    "a short hash": (lambda a, d: a.update(base="ab"), "delta-corrupt"),
    "another result": (lambda a, d: a.update(result="0" * 64), "delta-corrupt"),
    "another base": (lambda a, d: a.update(base="0" * 64), "delta-base"),
    "no layers": (lambda a, d: a.pop("layers"), "delta-corrupt"),
    "a layer less": (lambda a, d: a["layers"].pop(), "delta-corrupt"),
    "a layer more": (lambda a, d: a["layers"].append([0, 0, 0.0]), "delta-corrupt"),
    "a layer that is none": (lambda a, d: a["layers"].insert(0, "x"), "delta-corrupt"),
    "a long stream": (lambda a, d: a["layers"][0].__setitem__(1, 10**9), "delta-corrupt"),
    "a negative stream": (lambda a, d: a["layers"][0].__setitem__(1, -1), "delta-corrupt"),
    "another bit": (lambda a, d: d.__setitem__(50, d[50] ^ 4), "delta-corrupt"),
    "a byte more": (lambda a, d: (a, torch.cat([d, d[:1]])), "delta-corrupt"),
    "floats": (lambda a, d: (a, d.float()), "delta-corrupt"),
    "a list": (lambda a, d: ([a], d), "delta-corrupt"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_edited_delta_is_refused_and_nothing_written(weights, name):
    change, code = CHANGES[name]
    _make(weights)
    _changed(weights, change)
    with pytest.raises(KDError) as error:
        apply(weights / "base.safetensors", weights / "d", weights / "out.safetensors")
    assert error.value.code == code
    assert error.value.where
    assert error.value.where != "the delta"
    assert error.value.fix
    assert not (weights / "out.safetensors").exists()


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_a_cut_delta_is_refused(weights, share):
    _make(weights)
    content = (weights / "d").read_bytes()
    (weights / "d").write_bytes(content[: int(share * len(content))])
    with pytest.raises(KDError) as error:
        read_delta(weights / "d")
    assert (error.value.code, error.value.where) == ("delta-corrupt", str(weights / "d"))


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04" * 20])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(KDError) as error:
        read_delta(tmp_path / "d")
    assert error.value.code == "delta-foreign"


def test_weights_are_no_delta(weights):
    with pytest.raises(KDError) as error:
        read_delta(weights / "base.safetensors")
    assert error.value.code == "delta-foreign"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["base", "new"])
def test_what_is_no_number_is_refused(weights, which, value):
    state, _ = read_student(weights / f"{which}.safetensors")
    state["conv.bias"][2] = value
    save_file(state, weights / f"{which}.safetensors")
    with pytest.raises(KDError) as error:
        _make(weights)
    assert error.value.code == "weights-nonfinite"
    assert which in error.value.where


FORMS = {
    "a tensor less": lambda s: s.pop("one"),
    "a tensor more": lambda s: s.update(two=torch.ones(1)),
    "another shape": lambda s: s.update(one=torch.ones(2)),
    "another type": lambda s: s.update(one=torch.ones(1).half()),
}


@pytest.mark.parametrize("name", FORMS)
def test_another_architecture_is_refused(weights, name):
    state, _ = read_student(weights / "new.safetensors")
    FORMS[name](state)
    save_file(state, weights / "new.safetensors")
    with pytest.raises(KDError) as error:
        _make(weights)
    assert error.value.code == "delta-form"
    assert "one" in error.value.message or "two" in error.value.message


def test_values_that_a_half_cannot_hold(weights):
    state, _ = read_student(weights / "new.safetensors")
    state["conv.bias"] *= 1e8
    save_file(state, weights / "new.safetensors")
    made = _make(weights, size=1.5)
    assert made.tensors["conv.bias"].kind in ("same", "exact")
    assert _make(weights, size=5.0).tensors["conv.bias"].kind == "exact"
