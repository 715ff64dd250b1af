"""A pipe or a device in place of a user's file is refused: it would be read for ever."""

import os
from pathlib import Path

import pytest

from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.readers import read_text
from kdcompile.data.entry import read_list
from kdcompile.data.formats.imagefolder import _table
from kdcompile.data.formats.points_jsonl import _lines
from kdcompile.data.formats.shanghaitech_mat import read_points
from kdcompile.data.photo import read_pixels

READERS = {
    "image": lambda path: read_pixels(path, 3),
    "split": read_list,
    "points": _lines,
    "labels": lambda path: _table(path.parent, path, "train"),
    "mat": read_points,
}


@pytest.fixture(params=["pipe", "device", "link"])
def endless(request, tmp_path):
    path = tmp_path / "a"
    if request.param == "pipe":
        os.mkfifo(path)
        return path
    if request.param == "link":
        path.symlink_to("/dev/zero")
        return path
    return Path("/dev/zero")


@pytest.mark.parametrize("name", READERS)
def test_a_reader_refuses_it(endless, name):
    with pytest.raises(KDError, match="regular file") as caught:
        READERS[name](endless)
    assert caught.value.where
    assert caught.value.fix


def test_it_is_not_hashed_and_a_file_is(endless, tmp_path):
    for read in (file_sha256, read_text):
        with pytest.raises((OSError, ValueError), match="regular file"):
            read(endless)
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfa")
    assert read_text(tmp_path / "marked") == "a"
