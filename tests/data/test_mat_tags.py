"""What SciPy's compiled reader cannot be given, found by the fuzzer: it ended the process."""

import io
import struct
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from kdcompile.data import mat_tags
from kdcompile.data.mat_tags import check_tags
from kdcompile.data.shanghaitech_mat import read_points
from kdcompile.errors import KDError


def _saved(*, compressed=False, points=((1.0, 2.0), (3.5, 4.0))):
    stream = io.BytesIO()
    info = np.empty((1, 1), object)
    info[0, 0] = {"location": np.array(points)}
    savemat(stream, {"image_info": info}, do_compression=compressed)
    return stream.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("points", [((1.0, 2.0),), ((1.5, 2.5), (3.5, 4.0), (7.0, 8.0))])
def test_what_scipy_writes_is_sound(tmp_path, compressed, points):
    content = _saved(compressed=compressed, points=points)
    check_tags(content)
    (tmp_path / "a.mat").write_bytes(content)
    assert read_points(tmp_path / "a.mat").tolist() == [list(point) for point in points]


def test_other_contents_and_byte_orders_are_sound():
    stream = io.BytesIO()
    savemat(
        stream,
        {
            "a": np.arange(3, dtype=np.int8),
            "text": "words",
            "z": np.zeros((0, 2)),
            "nested": {"b": [1.0], "c": {"d": True}},
            "complex": np.ones(2) * 1j,
        },
    )
    check_tags(stream.getvalue())
    big = b" " * 124 + b"\x01\x00MI" + struct.pack(">IId", 9, 8, 1.0)
    check_tags(big)


def _element(kind, data, size=None):
    return struct.pack("<II", kind, len(data) if size is None else size) + data


@pytest.mark.parametrize(
    ("element", "problem"),
    [
        (_element(8, b"12345678"), "type 8"),
        (_element(14, _element(0x00010000, b"")), "type 0"),
        (_element(15, zlib.compress(_element(14, _element(99, b"")))), "type 99"),
        (_element(9, b"12345678", size=9), "9 bytes"),
        (_element(0x00050001, b""), "5 bytes"),
        (_element(15, zlib.compress(bytes(80))[:-6]), "torn"),
        (_element(15, b"no stream"), "torn"),
        (b"\x0e\x00", "within a tag"),
    ],
)
def test_a_file_that_would_lead_astray(tmp_path, element, problem):
    content = b" " * 124 + b"\x00\x01IM" + element
    with pytest.raises(ValueError, match=problem):
        check_tags(content)
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(KDError) as caught:
        read_points(tmp_path / "a.mat")
    assert caught.value.code == "annotation-mat"


def test_bombs_and_towers(monkeypatch):
    monkeypatch.setattr(mat_tags, "MOST", 100)
    bomb = _element(15, zlib.compress(_element(14, bytes(0)) * 50))
    with pytest.raises(ValueError, match="over 100 bytes"):
        check_tags(b" " * 124 + b"\x00\x01IM" + bomb)
    tower = b""
    for _ in range(mat_tags.DEEPEST + 1):
        tower = _element(14, tower)
    with pytest.raises(ValueError, match="nested too deep"):
        check_tags(b" " * 124 + b"\x00\x01IM" + tower)
    with pytest.raises(ValueError, match="no MATLAB 5"):
        check_tags(b"")
