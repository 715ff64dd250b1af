"""Each way to write a tensor's change: what comes back, how exactly, and what is refused."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdcompile.core.errors import KDError
from kdcompile.delta import encode, packing
from kdcompile.delta import layer as form
from kdcompile.delta.layer import Layer, parse, raw_size, rebuild

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = st.sampled_from([(), (1,), (0,), (7,), (1, 1), (3, 5), (4, 3, 3, 3), (2, 0), (9, 1)])


def _random(shape, dtype, seed, scale=1.0):
    noise = scale * np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(np.asarray(noise)).to(dtype)


@settings(max_examples=60)
@given(SHAPES, st.sampled_from(FLOATS), st.integers(0, 99), st.sampled_from([0, 1e-6, 0.1, 1e4]))
def test_every_way_gives_the_shape_and_type_and_the_last_is_exact(shape, dtype, seed, scale):
    base = _random(shape, dtype, seed)
    new = base + _random(shape, dtype, seed + 1, scale)
    ways = encode.layers(new, base)
    for way in ways:
        made = rebuild(way, base)
        assert (made.shape, made.dtype) == (new.shape, new.dtype)
        assert len(way.stream) <= raw_size(way, base)
        again = parse(way.record(), way.stream)
        assert torch.equal(rebuild(again, base), made)
    assert torch.equal(rebuild(ways[-1], base), new)


@settings(max_examples=30)
@given(SHAPES, st.sampled_from([torch.int64, torch.uint8, torch.int8, torch.bool]))
def test_integers_come_back_exactly(shape, dtype):
    base = torch.zeros(shape, dtype=dtype)
    new = torch.ones(shape, dtype=dtype)
    for way in encode.layers(new, base):
        assert way.kind in (form.SAME, form.EXACT)
        assert torch.equal(rebuild(way, base), new)


def test_what_did_not_change_has_no_bytes():
    same = _random((3, 4), torch.float32, 0)
    ways = encode.layers(same.clone(), same)
    assert [(way.kind, way.stream) for way in ways] == [(form.SAME, b"")]
    assert torch.equal(rebuild(ways[0], same), same)


def test_minus_zero_is_a_change():
    base, new = torch.zeros(2, 2), -torch.zeros(2, 2)
    last = rebuild(encode.layers(new, base)[-1], base)
    assert torch.signbit(last).all()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(1e-4, 10))
def test_errors_are_bounded_by_the_kind(seed, scale):
    base = _random((6, 3, 3, 3), torch.float64, seed)
    new = base + _random((6, 3, 3, 3), torch.float64, seed + 1, scale)
    change = (new - base).abs().numpy()
    for way in encode.layers(new, base):
        left = (rebuild(way, base) - new).abs().numpy()
        if way.kind == form.HALF:
            assert (left <= change * 2.0**-11 + 2.0**-24 + 1e-15).all()
        if way.kind == form.STEP:
            assert left.max() <= way.step / 2 + 1e-12


def test_a_half_that_overflows_is_not_offered():
    base, new = torch.zeros(3, 3), torch.full((3, 3), 1e6)
    assert form.HALF not in {way.kind for way in encode.layers(new, base)}


def test_more_columns_leave_less_and_a_low_rank_is_found():
    left, right = _random((40, 2), torch.float64, 0), _random((2, 90), torch.float64, 1)
    base = torch.zeros(40, 90, dtype=torch.float64)
    ways = [w for w in encode.layers(left @ right, base) if w.kind == form.RANK]
    errors = [float((rebuild(way, base) - left @ right).norm()) for way in ways]
    assert [way.rank for way in ways] == [1, 2, 4, 8, 16, 32]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.02 * float((left @ right).norm())
    assert len(ways[1].stream) < 300


def test_finer_steps_cost_more_and_leave_less():
    base, new = torch.zeros(16, 100), _random((16, 100), torch.float32, 3)
    ways = sorted(
        (w for w in encode.layers(new, base) if w.kind == form.STEP), key=lambda w: w.step
    )
    errors = [float((rebuild(way, base) - new).norm()) for way in ways]
    sizes = [len(way.stream) for way in ways]
    assert len(ways) > 6
    assert errors == sorted(errors)
    assert sizes == sorted(sizes, reverse=True)


def test_compensation_spares_the_outputs_of_correlated_inputs():
    random = np.random.default_rng(5)
    inputs = random.standard_normal((500, 4)) @ random.standard_normal((4, 36))
    inputs += 0.1 * random.standard_normal(inputs.shape)
    moments = inputs.T @ inputs / len(inputs)
    change = random.standard_normal((12, 36))
    found = encode.compensated(change, 1.0, encode.Feedback.of(moments))
    error, plain = (((q - change) @ inputs.T).std() for q in (found, np.rint(change)))
    assert error < 0.5 * plain


def test_moments_of_inputs_that_are_always_zero():
    found = encode.compensated(np.full((2, 3), 0.7), 1.0, encode.Feedback.of(np.zeros((3, 3))))
    assert np.array_equal(found, np.ones((2, 3)))


def test_what_is_made_is_one_rounded_operation_after_another():
    """By Python's own floats, which know no fused or reordered sums."""
    base = _random((3, 4), torch.float32, 7)
    step, whole = 0.00123, np.arange(-6, 6).reshape(3, 4)
    made = rebuild(Layer(form.STEP, packing.pack(whole.reshape(-1), 4), bits=4, step=step), base)
    for i, j in np.ndindex(3, 4):
        wanted = float(base[i, j]) + int(whole[i, j]) * step
        assert float(made[i, j]) == struct.unpack("<f", struct.pack("<f", wanted))[0]


@given(hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(-127, 127)))
def test_integers_are_packed_and_unpacked(values):
    for bits in packing.BITS:
        small = np.clip(values, -packing.largest(bits), packing.largest(bits))
        data = packing.pack(small, bits)
        assert len(data) == packing.packed_size(len(values), bits)
        assert np.array_equal(packing.unpack(data, len(values), bits), small)
    assert packing.bits_for(values) == next(
        b for b in packing.BITS if np.abs(values).max(initial=0) <= packing.largest(b)
    )
    data = packing.pack(values, 8)
    assert packing.release(packing.squeeze(data), len(data)) == data


def test_eight_bits_are_too_few_for_larger_integers():
    assert packing.bits_for(np.array([128])) is None


def test_packed_integers_come_near_to_their_entropy():
    values = np.rint(np.random.default_rng(0).standard_normal(20_000) / 1.5).astype(np.int64)
    _, counts = np.unique(values, return_counts=True)
    entropy = float((counts * np.log2(len(values) / counts)).sum() / 8)
    bits = packing.bits_for(values)
    assert len(packing.squeeze(packing.pack(values, bits))) < 1.02 * entropy


BOMB = packing.squeeze(b"\0" * 10**6)
RECORDS = [
    [9, 0, 0.0], [True, 0, 0.0], ["3", 0, 0.0], [form.STEP, 0, 0.0], [form.SAME, 0, 0.0, 1],
    [form.STEP, 0, 0.0, 3, 0.1], [form.STEP, 0, 0.0, 4, "x"], [form.STEP, 0, 0.0, [], 0.1],
    [form.STEP, 0, 0.0, 4, float("inf")], [form.RANK, 0, 0.0, 0], [form.RANK, 0, 0.0, 10**9],
    [form.RANK, 0, 0.0, 1.5], [form.HALF, 0, None], [form.HALF, 0, 10**400],
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_records_that_are_none_are_refused(record):
    with pytest.raises(KDError) as error:
        parse(record, b"")
    assert error.value.code == "delta-corrupt"


@pytest.mark.parametrize(
    ("layer", "base"),
    [
        (Layer(form.EXACT, BOMB), torch.zeros(4)),
        (Layer(form.HALF, BOMB[:-2]), torch.zeros(500_000)),
        (Layer(form.HALF, b"\0"), torch.zeros(4)),
        (Layer(form.HALF, BOMB + b"\0"), torch.zeros(500_000)),
        (Layer(form.HALF, b"\0" * 8), torch.zeros(4, dtype=torch.int64)),
        (Layer(form.STEP, b"", bits=4, step=1.0), torch.zeros(4)),
        (Layer(form.RANK, b"\0" * 99, rank=5), torch.zeros(4, 90)),
        (Layer(form.SAME, b"x"), torch.zeros(4)),
    ],
)
def test_streams_of_another_tensor_are_refused(layer, base):
    with pytest.raises(KDError) as error:
        rebuild(layer, base)
    assert error.value.code == "delta-corrupt"


def test_no_more_is_held_than_the_base_needs():
    import tracemalloc

    bomb = packing.squeeze(b"\0" * 10**8)
    tracemalloc.start()
    with pytest.raises(KDError):
        packing.release(bomb, 1000)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
