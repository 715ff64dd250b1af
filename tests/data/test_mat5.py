"""MATLAB 5 files: as SciPy writes and reads them, and what would lead a trusting reader astray."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from kdcompile.core.errors import KDError
from kdcompile.data import mat5
from kdcompile.data.formats.shanghaitech_mat import read_points
from kdcompile.data.mat5 import read_mat

SMALL, LARGE = b" " * 124 + b"\x00\x01IM", b" " * 124 + b"\x01\x00MI"


def _saved(variables, *, compressed=False):
    stream = io.BytesIO()
    savemat(stream, variables, do_compression=compressed)
    return stream.getvalue()


def _annotated(points):
    info = np.empty((1, 1), object)
    info[0, 0] = {"location": np.array(points), "number": len(points)}
    return {"image_info": info}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("points", [((1.0, 2.0),), ((1.5, 2.5), (3.5, 4.0), (7.0, 8.0))])
def test_points_as_published(tmp_path, compressed, points):
    (tmp_path / "a.mat").write_bytes(_saved(_annotated(points), compressed=compressed))
    assert read_points(tmp_path / "a.mat").tolist() == [list(point) for point in points]


@given(
    st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    st.lists(st.integers(0, 3), min_size=2, max_size=4),
    st.booleans(),
)
def test_arrays_are_those_that_scipy_reads(kind, shape, compressed):
    array = np.arange(np.prod(shape), dtype=kind).reshape(shape)
    content = _saved({"a": array, "words": "no number"}, compressed=compressed)
    found = read_mat(content)
    expected = loadmat(io.BytesIO(content))["a"]
    assert found["words"] is None
    assert found["a"].shape == expected.shape
    assert np.array_equal(found["a"], expected)


def test_cells_structs_and_byte_orders():
    cell = np.empty((2, 2), object)
    for i, place in enumerate(np.ndindex(2, 2)):
        cell[place] = np.array([[float(i)]])
    found = read_mat(_saved({"cell": cell, "s": {"b": [1.0, 2.0], "c": {"d": [[3]]}}}))
    assert [float(value[0, 0]) for value in found["cell"]] == [0, 2, 1, 3]  # column by column
    assert found["s"][0]["b"].tolist() == [[1.0, 2.0]]
    assert found["s"][0]["c"][0]["d"].tolist() == [[3.0]]
    flags = struct.pack(">IIII", 6, 8, 6, 0)
    name, size = struct.pack(">I", 0x00010001) + b"a\0\0\0", struct.pack(">IIii", 5, 8, 1, 1)
    body = flags + size + name + struct.pack(">IId", 9, 8, 2.5)
    assert read_mat(LARGE + struct.pack(">II", 14, len(body)) + body)["a"].tolist() == [[2.5]]


def _element(kind, data, size=None):
    padding = b"\0" * (-len(data) % 8)
    return struct.pack("<II", kind, len(data) if size is None else size) + data + padding


def _matrix(own, dimensions, *parts):
    head = _element(6, struct.pack("<II", own, 0))
    head += _element(5, struct.pack(f"<{len(dimensions)}i", *dimensions)) + _element(
        1, b"image_info"
    )
    return _element(14, head + b"".join(parts))


ONE = _element(9, struct.pack("<d", 1.0))


@pytest.mark.parametrize(
    ("element", "problem"),
    [
        (_matrix(6, (1, 2), ONE), "has 1 values"),
        (_matrix(6, (-1, -1), ONE), "negative"),
        (_matrix(6, (1, 1), _element(9, b"1234")), "torn"),
        (_matrix(6, (1, 1), _element(0x00000063, b"")), "type 99 has no numbers"),
        (_matrix(6, (1, 1), struct.pack("<I", 0x00010000) + bytes(4)), "type 0 has no numbers"),
        (_matrix(6, (1, 1)), "type 0 has no numbers"),
        (_matrix(1, (30000, 30000)), "parts are not in"),
        (_matrix(1, (1, 1), ONE), "stands for a matrix"),
        (_matrix(2, (1, 1), _element(5, bytes(4)), _element(1, b"ab")), "torn"),
        (_matrix(2, (1, 1), ONE), "stands for one of type 5"),
        (_element(14, ONE), "stands for one of type 6"),
        (_element(15, zlib.compress(bytes(80))[:-6]), "torn"),
        (_element(15, b"no stream"), "torn"),
        (_element(9, b"12345678", size=9), "reaches over the end"),
        (struct.pack("<I", 0x00050001) + bytes(4), "cannot be in a tag"),
        (b"\x0e\x00", "within a tag"),
    ],
)
def test_a_file_that_would_lead_astray(tmp_path, element, problem):
    with pytest.raises(ValueError, match=problem):
        read_mat(SMALL + element)
    (tmp_path / "a.mat").write_bytes(SMALL + element)
    with pytest.raises(KDError) as caught:
        read_points(tmp_path / "a.mat")
    assert caught.value.code == "annotation-mat"


@pytest.mark.parametrize("variables", [{}, {"image_info": "text"}, {"image_info": [[1.0, 2.0]]},
                                       {"image_info": {"location": [1.0]}}])  # fmt: skip
def test_other_contents_are_refused(tmp_path, variables):
    (tmp_path / "a.mat").write_bytes(_saved(variables))
    with pytest.raises(KDError) as caught:
        read_points(tmp_path / "a.mat")
    assert caught.value.code == "annotation-mat"


def test_bombs_and_towers(monkeypatch):
    tower = _matrix(6, (1, 1), ONE)
    for _ in range(mat5.DEEPEST):
        tower = _matrix(1, (1, 1), tower)
    with pytest.raises(ValueError, match="nested too deep"):
        read_mat(SMALL + tower)
    monkeypatch.setattr(mat5, "MOST", 100)
    with pytest.raises(ValueError, match="over 100 bytes"):
        read_mat(SMALL + _element(15, zlib.compress(bytes(1000))))
    with pytest.raises(ValueError, match="no MATLAB 5"):
        read_mat(b"")
