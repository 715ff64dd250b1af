"""What a file may hold, and how much of it, before anything is believed of it."""

import json
import os
import resource
import time
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from kdcompile.core import readers
from kdcompile.core.readers import (
    hold,
    parse_json,
    parse_toml,
    read_bounded,
    read_json,
    read_text,
    read_toml,
)


@pytest.fixture(params=["pipe", "device", "link", "folder"])
def no_file(request, tmp_path):
    path = tmp_path / "a"
    if request.param == "device":
        return Path("/dev/zero")
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "link":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("read", [lambda p: read_bounded(p, 9), read_text, read_json, read_toml])
def test_only_a_regular_file_is_read(no_file, read):
    with pytest.raises((OSError, ValueError), match=r"regular file|directory"):
        read(no_file)


@pytest.mark.parametrize("most", [0, 1, 70_000])
def test_the_limit_is_of_the_bytes_that_are_read(tmp_path, most):
    path = tmp_path / "a"
    path.write_bytes(b"x" * most)
    assert read_bounded(path, most) == b"x" * most
    path.write_bytes(b"x" * (most + 1))
    with pytest.raises(ValueError, match=f"over {most} bytes"):
        read_bounded(path, most)


def test_a_file_that_says_it_is_empty_is_read_to_the_limit_too():
    path = Path("/proc/self/maps")  # a regular file of 0 bytes, by itself
    assert path.stat().st_size == 0
    assert len(read_bounded(path, 10_000_000)) > 1000
    with pytest.raises(ValueError, match="over 1000 bytes"):
        read_bounded(path, 1000)


def test_a_large_limit_takes_no_memory_of_its_own(tmp_path):
    (tmp_path / "a").write_bytes(b"{}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_json(tmp_path / "a", 1 << 40) == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_text_loses_its_mark_and_lines_end_alike(tmp_path, end):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa" + end + b"b")
    assert read_text(tmp_path / "a") == "a\nb"
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a")


REFUSED = {
    '{"a": 1, "a": 2}': "'a' is there twice",
    '[{"b": {"a": 1, "c": 0, "a": 1}}]': "'a' is there twice",
    "[NaN]": "NaN is no number",
    "-Infinity": "-Infinity is no number",
    "1e999": "1e999 is no finite number",
    "-1E+400": "no finite number",
    "[1.0, " + "9" * 400 + ".5]": "no finite number",
    str(2**64 + 1): "over 64 bits",
    str(-(2**64) - 1): "over 64 bits",
    "9" * 5000: "over 64 bits",
    "[" * 65 + "]" * 65: "nested too deep",
    '{"a":' * 65 + "0" + "}" * 65: "nested too deep",
    '[{"a":' * 33 + "0" + "}]" * 33: "nested too deep",
    '["]",' * 70 + '["["]' + ',"["]' * 70: "nested too deep",
    "[" * 100_000: "nested too deep",
    "{": "Expecting",
    "": "Expecting",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:12])
def test_json_that_no_build_writes(text):
    for content in (text, text.encode()):
        with pytest.raises(ValueError, match=REFUSED[text]):
            parse_json(content)


@pytest.mark.parametrize(
    "value",
    [
        [1e308, -1e-400, 0.1, 2**64, -(2**64), 1e22, 123456789012345678901234.0],
        {"e1000": "9" * 40, "[[[": ["]]]" * 30, '\\"[' * 40, "1e999"]},
        json.loads("[" * 64 + "]" * 64),
        [[1]] * 1000,
        [{"a": []}, None, True],
        "ä",
    ],
)
def test_other_json_is_as_it_is(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert parse_json(text) == value
        assert parse_json(text.encode()) == value


def test_infinite_numbers_are_taken_where_they_are_asked_for():
    assert parse_json('[Infinity, 1e999, "1e999"]', finite=False) == [float("inf")] * 2 + ["1e999"]
    with pytest.raises(ValueError, match="64 bits"):
        parse_json(f"[{10**30}]", finite=False)


def test_values_are_limited_as_bytes_are():
    most = 16_000
    assert len(parse_json(json.dumps([0] * 1000), most)) == 1000
    with pytest.raises(ValueError, match="over 1000 values"):
        parse_json(json.dumps([0] * 1001), most)
    with pytest.raises(ValueError, match="over 1000 values"):
        parse_json(f"[{'[]' * 1001}]", most)


LONG = ".".join("a" * 10_000)


@pytest.mark.parametrize(
    "text",
    [
        f"{LONG} = 1", f"[{LONG}]\nb = 1", f"[[ {LONG} ]]", f"a = {{ {LONG} = 1 }}",
        "'a'.\"b\" . c." * 11 + "d = 1",
    ],
)  # fmt: skip
def test_a_key_in_toml_has_few_parts(text):
    start = time.process_time()
    with pytest.raises(ValueError, match="over 32 parts"):
        parse_toml("x = 0\n" + text)
    assert time.process_time() - start < 1  # tomllib takes the square of the parts


def test_other_toml_is_as_it_is(tmp_path):
    path = tmp_path / "a.toml"
    whole = ".".join("a" * readers.MOST_PARTS)
    path.write_bytes(b"\xef\xbb\xbfa = 1.5\r\nb = '" + b"x" * 300_000 + b"'\r\n")
    assert read_toml(path) == {"a": 1.5, "b": "x" * 300_000}
    assert list(parse_toml(f"{whole} = 1")) == ["a"]
    with pytest.raises(ValueError, match="nested too deep"):
        parse_toml("a = " + "[" * 65 + "]" * 65)
    with pytest.raises(ValueError, match="nested too deep"):
        parse_toml("a = " + "[" * 5000 + "]" * 5000)


class Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    n: float
    deep: list[list[float]] = []


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"n": "1"}, "'n': "), ({"n": True}, "'n': "), ({"n": 1, "m": 1}, "'m': Extra"),
        ({}, "'n': Field required"), ([], "Input"), ({"n": 1, "deep": [[1, "2"]]}, "'deep.0.1': "),
    ],
)  # fmt: skip
def test_a_form_names_the_key_at_fault(value, why):
    with pytest.raises(ValueError, match=why):
        hold(Form, value)
    hold(Form, {"n": 1, "deep": [[2, 3.5]]})
