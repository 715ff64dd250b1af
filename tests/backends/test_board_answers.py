"""Whatever a board answers is an error block in bounded memory, or a worker's answer."""

import copy
import hashlib
import io
import json
import os
import subprocess
import zipfile
from queue import Empty

import numpy as np
import pytest
from click.testing import CliRunner
from hostile_place import GOOD, HELLO, Clock, HostilePlace, framed, reply, start

from kdcompile.cli import cli
from kdcompile.core.errors import EXIT_FIXABLE, KDError
from kdcompile.remote import answers, bounded, client, open, process
from kdcompile.remote.agent.messages import HEAD, MARK, MOST_BYTES, message
from kdcompile.remote.agent.worker import PROTOCOL
from kdcompile.remote.process import Answers, BadAnswer

WRONG = {
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
    "no-json": b"{",
    "a-list": b"[]",
    "a-note": b'{"note": 1}',
    "and-more": b'{"id": 2, "ok": {"exists": false, "bytes": 0, "sha256": null}, "more": 1}',
    "a-field-more": b'{"id": 2, "ok": {"exists": false, "bytes": 0, "sha256": null, "more": 1}}',
}
GOOD_STAT = reply({"exists": False, "bytes": 0, "sha256": None}, 2)
WRONG_BYTES = {name: framed(body) for name, body in WRONG.items()} | {
    "too-long": framed(b"{" * (MOST_BYTES + 1)),
    "a-length-of-2-to-the-63": framed(b"{}", 1 << 63),
    "a-length-too-short": framed(GOOD_STAT[HEAD:], len(GOOD_STAT) - HEAD - 1),
    "another-mark": b"\0KDC" + GOOD_STAT[4:] + b"x" * process.MOST_BEFORE,
    "text-without-an-end": b"x" * (process.MOST_BEFORE + 5),
    "text-after-it": framed(b"{}") + b"and the weather is fine",
    "answers-to-nobody": reply({}, 9) * 17,
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


@pytest.mark.parametrize("wrong", WRONG_BYTES)
def test_a_wrong_answer_is_an_error_block(wrong):
    place = HostilePlace(*start(), WRONG_BYTES[wrong], *start())
    error = refused(lambda: place.call("stat", path="x"))
    assert refused(lambda: place.call("hello")) is error  # and not the next line


def test_there_are_as_many_wrong_answers_as_were_asked_for():
    assert len(WRONG_BYTES) >= 18


@pytest.mark.parametrize("op", GOOD)
def test_a_right_answer_is_taken(op):
    place = HostilePlace(*start(), reply(GOOD[op], 2))
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
    place = HostilePlace(*start(), reply(answer, 2))
    refused(lambda: place.call(op))


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("hello", {"modes": ["graph"]}),
        ("hello", {"backend_version": "ten"}),
        ("hello", {"gpu": {"name": "Orin"}}),
        ("hello", {"protocol": PROTOCOL - 1}),
        ("hello", {"machine": {"driver_version": None, "cores": True}}),
        ("hello", {"machine": {"driver_version": None, "governor": [["schedutil"]]}}),
        ("hello", {"machine": {"driver_version": None, "clock_limits": {"gpu": {"a": {}}}}}),
        ("build", {"backend": "custom"}),
        ("build", {"backend": "custom", "custom": 1}),
        ("run", {"outputs": {"density": [-1]}}),
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
    place = HostilePlace(*start(), reply(GOOD[op] | change, 2))
    refused(lambda: place.call(op))


@pytest.mark.parametrize(
    ("op", "more"),
    [
        ("hello", {"machine": HELLO["machine"] | {
            "cpu": "A78", "usable_cores": 4, "threads": {"OMP_NUM_THREADS": "1"},
            "cpu_boost": None, "clock_limits": {"gpu": {"max_hz": 7, "governor": "nv"}, "dla": 1},
            "cpu_quota": "max 100000", "governor": ["performance", "schedutil"], "cpu_max_hz": 9,
        }}),
        ("build", {"backend": "custom", "custom": "1.0"}),
        ("build", {"tensorrt": "10.3.0", "profile": {"a": [[1], [2], [3]]}, "dla_fallback": ["x"]}),
    ],
)  # fmt: skip
def test_what_else_a_worker_tells_is_taken(op, more):
    place = HostilePlace(*start(), reply(GOOD[op] | more, 2))
    assert place.call(op) == GOOD[op] | more


@pytest.mark.parametrize("op", GOOD)
def test_no_answer_has_another_field(op):
    place = HostilePlace(*start(), reply(GOOD[op] | {"another": 1}, 2))
    assert "another: Extra inputs" in refused(lambda: place.call(op)).message


def test_samples_that_were_asked_for_are_there():
    answer = {"wall": {"p50_ms": 1.0}}
    assert HostilePlace(*start(), reply(answer, 2)).call("time") == answer
    for samples in ({}, {"wall": []}, {"other": [1.0]}):
        place = HostilePlace(*start(), reply(answer | {"samples": samples}, 2))
        refused(lambda place=place: place.call("time", samples=True))


@pytest.mark.parametrize("first", [reply(1, None), reply({"work": "x"}, 7)])
def test_a_wrong_start_is_an_error_block(first):
    refused(lambda: HostilePlace(first, reply(HELLO, 1)))


def test_a_wrong_hello_is_an_error_block():
    refused(lambda: HostilePlace(*start(HELLO | {"disk_mb": "much"})))


def test_a_worker_that_cannot_start_says_so_without_a_number():
    error = {"code": "tensorrt-missing", "message": "none", "fix": "install"}
    told = message({"id": None, "error": error})
    with pytest.raises(KDError) as raised:
        HostilePlace(start()[0], told)
    assert (raised.value.code, raised.value.exit_code) == ("tensorrt-missing", 4)


def test_only_the_first_answer_may_be_an_error_without_a_number():
    error = {"code": "tensorrt-missing", "message": "none", "fix": "install"}
    place = HostilePlace(*start(), message({"id": None, "error": error}))
    refused(lambda: place.call("stat", path="x"))


def test_the_wait_is_for_the_whole_answer():
    """The clock moves at each look: with 60 s for the answer, it looks no more than so often."""
    clock, looks = Clock(step=5.0), []
    answers = Answers(clock)

    def get(timeout):
        looks.append(timeout)
        raise Empty

    answers._waiting.get = get
    with pytest.raises(TimeoutError):
        answers.next(1, 60.0)
    assert 60.0 <= clock.now <= 75.0
    assert 10 <= len(looks) <= 12


def test_text_before_the_first_message_is_skipped_and_bounded():
    greeting = b"Welcome\n\0kd" * 3000 + b"\0"
    answers = Answers(Clock())
    answers.take_all(io.BytesIO(greeting + reply({}, 1)))
    assert answers.next(1, 60.0) == {"id": 1, "ok": {}}
    assert answers.next(2, 60.0) is None
    with pytest.raises(BadAnswer, match="no message among its first 65536 bytes"):
        Answers(Clock()).take_all(io.BytesIO(b"x" * (process.MOST_BEFORE + 4) + reply({}, 1)))


def test_a_length_is_refused_before_anything_of_it_is_read():
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size):
            self.given += size
            if self.given <= HEAD:
                return framed(b"", MOST_BYTES + 1)[self.given - size : self.given]
            return b"x" * size

    stream = Endless()
    with pytest.raises(BadAnswer, match="8388609 bytes, more than 8 MiB"):
        Answers(Clock()).take_all(stream)
    assert stream.given == HEAD


def test_as_many_bytes_as_are_allowed_are_an_answer():
    body = message({"id": 1, "ok": {}})[HEAD:]
    answers = Answers(Clock())
    answers.take_all(io.BytesIO(framed(body + b" " * (MOST_BYTES - len(body)))))
    assert answers.next(1, 60.0) == {"id": 1, "ok": {}}


def test_the_first_lines_write_the_same_messages():
    text = client.boot_source().decode()
    assert f'b"{repr(MARK)[2:-1]}"'.replace("\\x00", "\\0") in text
    told = {"id": None, "ok": {"work": "x"}}
    assert message(told) == framed(json.dumps(told).encode())


SPEAKS = "\x1b]0;owned\x07\x1b[31mred\u202e\x9b2J\ud800"
ESCAPED = r"\x1b]0;owned\x07\x1b[31mred\u202e\x9b2J\ud800"


def test_what_a_board_says_does_not_speak_to_a_terminal():
    hello = HELLO | {"module": SPEAKS, "clocks": {SPEAKS: 1}}
    place = HostilePlace(*start(hello))
    assert place.about["module"] == ESCAPED
    assert place.about["clocks"] == {ESCAPED: 1}
    told = {"code": "file", "message": SPEAKS, "fix": SPEAKS}
    wrong = message({"id": 2, "error": told})
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


def _shared(path):
    """Two members that are the same bytes of the file."""
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("x.npy", b"x" * 5000)
        twin = copy.copy(opened.getinfo("x.npy"))
        twin.filename = "y.npy"
        opened.filelist.append(twin)


def _long(path):
    with path.open("wb") as stream:
        stream.truncate(bounded.MOST_ARRAYS + 1)


@pytest.mark.parametrize(
    "write",
    [
        _shared,
        _long,
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
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
    place = HostilePlace(*start(), reply({}, 2), work=str(tmp_path))
    place.inputs = lambda arrays: "in.npz"
    refused(lambda: place.run({}))


STAT = {"exists": True, "bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}


def test_a_file_that_is_longer_than_it_says_is_not_copied(tmp_path):
    (tmp_path / "there").write_bytes(b"12345" + b"6" * (1 << 20))
    place = HostilePlace(*start(), reply(STAT, 2), *start())
    error = refused(lambda: place.get(str(tmp_path / "there"), tmp_path / "here"))
    assert "more than 5 bytes" in error.message
    assert refused(lambda: place.call("hello")) is error
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_file_that_says_to_be_longer_than_any_is_not_copied(tmp_path):
    place = HostilePlace(*start(), reply(STAT | {"bytes": bounded.MOST_FILE + 1}, 2))
    refused(lambda: place.get(str(tmp_path / "there"), tmp_path / "here"))
    (tmp_path / "there").write_bytes(b"12345")
    HostilePlace(*start(), reply(STAT, 2)).get(str(tmp_path / "there"), tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"12345"
    place = HostilePlace(*start(), reply(STAT, 2))
    refused(lambda: place.get(str(tmp_path / "there"), tmp_path / "here", most=4))


def test_a_program_that_writes_a_file_without_end_is_ended(tmp_path):
    words = ["sh", "-c", "exec cat /dev/zero > file"]
    with pytest.raises(bounded.Unbounded):
        bounded.run(words, "", tmp_path, 20, most=100_000)
    assert (tmp_path / "file").stat().st_size <= 101_000
    words = ["sh", "-c", "read a; echo $a >&2; printf '\\033[2J' >&2; printf %5000s > file; exit 3"]
    assert bounded.run(words, "given\n", tmp_path, 20, 5000) == (3, ["given", r"\x1b[2J"])
    assert (tmp_path / "file").stat().st_size == 5000


def test_a_program_that_never_ends_or_talks_without_end_is_ended(tmp_path):
    for code in ("sleep 60", "exec cat /dev/zero >&2", "exec yes"):
        with pytest.raises(subprocess.TimeoutExpired):
            bounded.run(
                ["sh", "-c", f"exec {code}".replace("exec exec", "exec")], "", tmp_path, 0.3
            )


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b"{}", b"[" * 99_999, json.dumps(GOOD["build"] | {"sha256": 1}).encode()]
)
def test_a_record_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "engine.json").write_bytes(text)
    with pytest.raises(BadAnswer):
        answers.record(tmp_path / "engine.json")


def test_a_record_without_an_end_is_not_read(tmp_path):
    with (tmp_path / "engine.json").open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    with pytest.raises(BadAnswer, match="more than 8 MiB"):
        answers.record(tmp_path / "engine.json")
