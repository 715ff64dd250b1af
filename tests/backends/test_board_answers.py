"""Whatever a board answers is an error block in bounded memory, or a worker's answer."""

import copy
import io
import json
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from hostile_place import GOOD, HELLO, Clock, HostilePlace, line, start

from kdcompile.cli import cli
from kdcompile.core.errors import EXIT_FIXABLE, KDError
from kdcompile.remote import answers, open, process
from kdcompile.remote.process import Answers, BadAnswer

WRONG_LINES = {
    "ok-is-a-number": b'{"id": 2, "ok": 1}',
    "ok-is-null": b'{"id": 2, "ok": null}',
    "ok-is-a-list": b'{"id": 2, "ok": []}',
    "error-is-a-text": b'{"id": 2, "error": "x"}',
    "error-is-a-list": b'{"id": 2, "error": [1]}',
    "error-is-empty": b'{"id": 2, "error": {}}',
    "error-of-a-number": b'{"id": 2, "error": {"code": 1, "message": "m", "fix": "f"}}',
    "error-whose-code-speaks": b'{"id": 2, "error": {"code": "a\\u001b[2J", "message": "m", '
    b'"fix": "f"}}',
    "error-without-a-fix": b'{"id": 2, "error": {"code": "file", "message": "m"}}',
    "error-and-ok": b'{"id": 2, "ok": {}, "error": {"code": "c", "message": "", "fix": ""}}',
    "neither": b'{"id": 2}',
    "an-earlier-id": b'{"id": 1, "ok": {"exists": false, "bytes": 0, "sha256": null}}',
    "a-later-id": b'{"id": 3, "ok": {"exists": false, "bytes": 0, "sha256": null}}',
    "no-id": b'{"ok": {"exists": false, "bytes": 0, "sha256": null}}',
    "an-id-that-is-true": b'{"id": true, "ok": {"exists": false, "bytes": 0, "sha256": null}}',
    "a-text-for-an-id": b'{"id": "2", "ok": {"exists": false, "bytes": 0, "sha256": null}}',
    "deep": b'{"id": 2, "ok": ' + b"[" * 99_999 + b"]" * 99_999 + b"}",
    "deeper-than-any-answer": b'{"id": 2, "ok": {"exists": false, "bytes": 0, "sha256": null, '
    b'"more": ' + b"[" * 40 + b"]" * 40 + b"}}",
    "not-a-number": b'{"id": 2, "ok": {"exists": true, "bytes": NaN, "sha256": null}}',
    "infinite": b'{"id": 2, "ok": {"exists": true, "bytes": 1e999, "sha256": null}}',
    "an-endless-integer": b'{"id": 2, "ok": {"exists": true, "bytes": ' + b"9" * 400 + b"}}",
    "empty": b'{"id": 2, "ok": {}}',
    "an-endless-line": b"{" * ((8 << 20) + 1),
    "answers-to-nobody": b'{"id": 2, "ok": {"exists": false, "bytes": 0}}\n' * 17,
}


def refused(action):
    with pytest.raises(KDError) as error:
        action()
    assert (error.value.code, error.value.exit_code) == ("board-answer", EXIT_FIXABLE)
    assert error.value.where == "ssh://board"
    assert error.value.fix
    block = str(error.value)
    assert len(block) < 1000
    assert all(c.isprintable() or c == "\n" for c in block)
    return error.value


@pytest.mark.parametrize("wrong", WRONG_LINES)
def test_a_wrong_answer_is_an_error_block(wrong):
    place = HostilePlace(*start(), WRONG_LINES[wrong] + b"\n", *start())
    error = refused(lambda: place.call("stat", path="x"))
    assert refused(lambda: place.call("hello")) is error  # and not the next line


def test_there_are_as_many_wrong_answers_as_were_asked_for():
    assert len(WRONG_LINES) >= 18


@pytest.mark.parametrize("op", GOOD)
def test_a_right_answer_is_taken(op):
    place = HostilePlace(*start(), line(GOOD[op], 2))
    assert place.call(op) == GOOD[op]


def _fields(value, path=()):
    """Every field of an answer, however deep."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from _fields(inner, (*path, key))


@pytest.mark.parametrize(
    ("op", "path"), [(op, path) for op, good in GOOD.items() for path in _fields(good)]
)
def test_a_field_of_another_type_is_refused(op, path):
    """Each field that is read, given an object or a text, whichever it is not."""
    answer = copy.deepcopy(GOOD[op])
    *outer, last = path
    inside = answer
    for key in outer:
        inside = inside[key]
    inside[last] = [{"x": 1}] if isinstance(inside[last], dict | str | None) else "x"
    place = HostilePlace(*start(), line(answer, 2))
    refused(lambda: place.call(op))


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("hello", {"modes": ["graph"]}),
        ("hello", {"backend_version": "ten"}),
        ("hello", {"gpu": {"name": "Orin"}}),
        ("hello", {"gpu": {"name": "Orin", "compute_capability": "sm_87"}}),
        ("stat", {"exists": True}),
        ("stat", {"bytes": -1}),
        ("load", {"inputs": {"image": {"dtype": "float32", "shape": [1 << 20, 1 << 20]}}}),
        ("time", {"wall": None}),
        ("time", {"wall": {"p50_ms": -1.0}}),
        ("power", {"unit": "W"}),
        ("power", {"mode": "enqueue"}),
        ("power", {"idle": {"samples": [[0.2, {}], [0.1, {}]]}}),
        ("power", {"busy": {"samples": [], "seconds": 0.0, "inferences": 1}}),
        ("power", {"busy": {"samples": [], "seconds": 1.0, "inferences": 0}}),
    ],
)
def test_a_value_that_no_worker_gives_is_refused(op, change):
    place = HostilePlace(*start(), line(GOOD[op] | change, 2))
    refused(lambda: place.call(op))


def test_samples_that_were_asked_for_are_there():
    answer = {"wall": {"p50_ms": 1.0}}
    assert HostilePlace(*start(), line(answer, 2)).call("time") == answer
    for samples in ({}, {"wall": []}, {"other": [1.0]}):
        place = HostilePlace(*start(), line(answer | {"samples": samples}, 2))
        refused(lambda place=place: place.call("time", samples=True))


@pytest.mark.parametrize("first", [b'{"id": null, "ok": 1}\n', b'{"id": 7, "ok": {"work": "x"}}\n'])
def test_a_wrong_start_is_an_error_block(first):
    refused(lambda: HostilePlace(first, line(HELLO, 1)))


def test_a_wrong_hello_is_an_error_block():
    refused(lambda: HostilePlace(*start(HELLO | {"disk_mb": "much"})))


def test_a_worker_that_cannot_start_says_so_without_a_number():
    error = {"code": "tensorrt-missing", "message": "none", "fix": "install"}
    told = json.dumps({"id": None, "error": error}).encode() + b"\n"
    with pytest.raises(KDError) as raised:
        HostilePlace(start()[0], told)
    assert (raised.value.code, raised.value.exit_code) == ("tensorrt-missing", 4)


NOISE = b'{"note": 1}\n'


def test_lines_that_keep_coming_do_not_put_the_end_off():
    """The clock moves at each line: with 60 s for the answer, not all of them are read."""
    clock = Clock(step=5.0)
    answers = Answers(clock)
    answers.take_all(io.BytesIO(NOISE * 15 + line({}, 1)))
    with pytest.raises(TimeoutError):
        answers.next(1, 60.0)
    assert 60.0 <= clock.now <= 75.0


def test_noise_is_dropped_and_an_endless_line_is_not_kept():
    class Endless:
        given = 0

        def readline(self, size):
            self.given += size
            return b"x" * size

    stream, answers = Endless(), Answers(Clock())
    with pytest.raises(BadAnswer, match="more than 8 MiB"):
        answers.take_all(stream)
    assert stream.given == process.MOST_BYTES + 1
    quiet = Answers(Clock())
    quiet.take_all(io.BytesIO(b"Welcome\n" * 100_000))
    assert quiet._lines.qsize() == 1  # the end


SPEAKS = "\x1b]0;owned\x07\x1b[31mred\u202e\x9b2J\ud800"
ESCAPED = r"\x1b]0;owned\x07\x1b[31mred\u202e\x9b2J\ud800"


def test_what_a_board_says_does_not_speak_to_a_terminal():
    hello = HELLO | {"module": SPEAKS, "clocks": {SPEAKS: 1}}
    place = HostilePlace(*start(hello))
    assert place.about["module"] == ESCAPED
    assert place.about["clocks"] == {ESCAPED: 1}
    told = {"code": "file", "message": SPEAKS, "fix": SPEAKS}
    wrong = json.dumps({"id": 2, "error": told}).encode() + b"\n"
    with pytest.raises(KDError) as error:
        HostilePlace(*start(), wrong).call("stat", path="x")
    assert (error.value.message, error.value.fix) == (ESCAPED, ESCAPED)


def test_doctor_shows_no_control_characters(monkeypatch):
    class Opened(HostilePlace):
        def put(self, local):
            return f"/tmp/{SPEAKS}"

        def close(self):
            """Nothing was put there."""

    hello = HELLO | {"module": SPEAKS, "power_mode": SPEAKS, "l4t": SPEAKS}
    monkeypatch.setattr(open, "open_place", lambda *asked: Opened(*start(hello)))
    shown = CliRunner().invoke(cli, ["doctor", "--via", "ssh://board"]).output
    assert shown.count(ESCAPED) == 3  # the file, the module and the power mode
    assert all(line.isprintable() for line in shown.splitlines())


def _saved(path, **arrays):
    np.savez(path, **arrays)


def _packed(path):
    np.savez_compressed(path, x=np.zeros(1 << 20))


def _claims(path):
    """A header of a petabyte."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f8", "fortran_order": False, "shape": (1 << 47,)}
    )
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("x.npy", head.getvalue())


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no npz"),
        lambda path: path.write_bytes(b""),
        lambda path: _saved(path),
        lambda path: _saved(path, x=np.array(["text"])),
        lambda path: _saved(path, x=np.array([{"an": "object"}], object)),
        _packed,
        _claims,
    ],
)
def test_outputs_that_are_no_arrays_are_refused(write, tmp_path):
    write(tmp_path / "run-far-out.npz")
    place = HostilePlace(*start(), line({}, 2), work=str(tmp_path))
    place.inputs = lambda arrays: "in.npz"
    refused(lambda: place.run({}))


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b"{}", b"[" * 99_999, json.dumps(GOOD["build"] | {"sha256": 1}).encode()]
)
def test_a_record_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "engine.json").write_bytes(text)
    with pytest.raises(BadAnswer):
        answers.record(tmp_path / "engine.json")


def test_a_record_without_an_end_is_not_read(tmp_path):
    with (tmp_path / "engine.json").open("wb") as stream:
        stream.truncate(process.MOST_BYTES + 1)
    with pytest.raises(BadAnswer, match="more than 8 MiB"):
        answers.record(tmp_path / "engine.json")
