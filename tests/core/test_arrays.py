"""An archive of arrays gives what its bytes hold, and nothing is made before that is known."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest

from kdcompile.core.arrays import TooLargeError, check_finite, open_arrays, read_arrays

GOOD = {
    "x": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "f": np.asfortranarray(np.eye(3)[:2]),
    "big": np.arange(3, dtype=">i4"), "scalar": np.array(1.5, np.float32),
    "names": np.array(["a", "bcd"]), "none": np.zeros((0, 5), np.float16), "t": np.array([True]),
}  # fmt: skip


def npz(save=np.savez, **arrays):
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def npy(header, data=b"", version=b"\x01\x00"):
    text = str(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def archive(*parts, how=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as opened:
        for name, content in parts:
            opened.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_it_reads_what_numpy_writes(tmp_path, save):
    content = npz(save, **GOOD)
    (tmp_path / "a.npz").write_bytes(content)
    for source in (content, tmp_path / "a.npz"):
        found = read_arrays(source)
        assert list(found) == list(GOOD)
        for name, array in GOOD.items():
            assert found[name].dtype == array.dtype
            assert found[name].flags.f_contiguous == array.flags.f_contiguous
            assert found[name].flags.writeable
            np.testing.assert_array_equal(found[name], array)


def test_arrays_that_are_not_asked_for_are_not_unpacked(tmp_path):
    content = bytearray(npz(np.savez, a=np.arange(4), b=np.arange(4, 9)))
    at = content.index(np.arange(4, 9).tobytes())
    content[at] ^= 1
    with open_arrays(bytes(content)) as found:
        assert found["a"].tolist() == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="b: Bad CRC"):
            found["b"]
        with pytest.raises(KeyError):
            found["c"]


def header(shape="(3,)", descr="'<f4'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


REFUSED = {
    "asks for memory": (header("(10**12,)"), b"", "a.npy|malformed|header"),
    "asks for more": (header("(1000000000000,)"), bytes(12), "has 12 bytes"),
    "asks for less": (header("(2,)"), bytes(12), "has 12 bytes"),
    "negative": (header("(-3,)"), bytes(12), "a: "),
    "two negatives": (header("(-3, -1)"), bytes(12), "has 12 bytes"),
    "no bytes each": (header("(1000000000,)", "'<U0'"), b"", "neither real numbers nor text"),
    "objects": (header("(1,)", "'|O'"), b"cposix\nsystem\n.", "neither real numbers"),
    "complex": (header("(1,)", "'<c8'"), bytes(8), "neither real numbers"),
    "structure": (header("(1,)", "[('a', '<f4')]"), bytes(4), "neither real numbers"),
    "dates": (header("(1,)", "'<M8[s]'"), bytes(8), "neither real numbers"),
    "deep": ("(" * 5000, b"", "a: "),
    "many axes": (header("(" + "1," * 70 + ")"), bytes(4), "a: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_is_held_against_what_is_there(case):
    head, data, why = REFUSED[case]
    content = archive(("a.npy", npy(head, data)))
    with open_arrays(content) as found, pytest.raises(ValueError, match=why):
        found["a"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no .npz archive"),
        (b"PK\x03\x04" + bytes(60), "no .npz archive"),
        (npz(a=np.zeros(3))[:-30], "no .npz archive"),
        (npy(header(), bytes(12)), "no .npz archive"),
        (archive(("a.txt", b"")), "'a.txt' in it is no array"),
        (archive(("a.npy", npy(header(), bytes(12))), how=zipfile.ZIP_BZIP2), "packs nothing"),
    ],
)
def test_what_is_no_archive_of_arrays(content, why):
    with pytest.raises(ValueError, match=why):
        read_arrays(content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_is_there_once():
    part = ("a.npy", npy(header(), bytes(12)))
    with pytest.raises(ValueError, match="'a' is there twice"):
        read_arrays(archive(part, part))


def test_what_unpacks_to_too_much_is_told_by_the_directory(monkeypatch):
    content = npz(np.savez_compressed, a=np.zeros(4_000_000, np.uint8))
    assert len(content) < 10_000
    monkeypatch.setattr(zlib, "decompressobj", None)  # nothing is unpacked
    with pytest.raises(TooLargeError, match="over 4000000") as caught:
        read_arrays(content, 4_000_000)
    assert caught.value.size == 4_000_128


def test_a_directory_that_says_less_than_is_packed_is_torn():
    content = bytearray(npz(np.savez_compressed, a=np.zeros(1000, np.uint8)))
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 200)
    with pytest.raises(ValueError, match="a: "):
        read_arrays(bytes(content))


def test_encrypted_parts_are_refused():
    content = bytearray(npz(a=np.zeros(3)))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ValueError, match="packs nothing"):
        read_arrays(bytes(content))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_are_finite_where_that_is_asked(bad):
    check_finite({"a": np.ones(3, np.float16), "b": np.arange(3)})
    with pytest.raises(ValueError, match="b is not of finite numbers"):
        check_finite({"a": np.ones(3), "b": np.array([0.0, bad])})
    with pytest.raises(ValueError, match="a is of int64"):
        check_finite({"a": np.arange(3)}, "f")
