"""What long work shows, on a terminal and elsewhere, and what `-q` and `-v` leave of it."""

import io
import logging
import re

import pytest

from kdcompile.core import logs, progress
from kdcompile.core.progress import Progress, counted, duration
from kdcompile.distill.state import TrainingProgress


class Clock:
    """A second passes with each step."""

    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _clean_handlers():
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    level = logging.getLogger("kdcompile").level
    yield
    root.handlers[:] = before
    logging.getLogger("kdcompile").setLevel(level)


@pytest.fixture
def begin(monkeypatch):
    """The command line's beginning with that standard error; to be called in the test itself."""

    def on(stream):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        logs.begin()
        return stream

    return on


def _train(clock, rows):
    with TrainingProgress(100, 0, "mae", clock=clock) as shown:
        for step, row in rows.items():
            clock.now = 100.0 + step / 2
            shown.show_row(step, {"stage": "head", "loss": 0.25} | row)


def test_lines_have_stage_step_rate_time_left_and_the_metric(begin):
    console = begin(io.StringIO())
    _train(Clock(), {10: {}, 20: {"val_mae": 3.5}, 50: {}})
    assert console.getvalue().splitlines() == [
        "distill: 20 of 100 steps, 2 a second, 40 s left, stage head, loss 0.25, val mae 3.5",
        "distill: 50 of 100 steps, 2 a second, 25 s left, stage head, loss 0.25, val mae 3.5",
    ]


def test_a_bar_has_the_same(begin):
    terminal = begin(Terminal())
    _train(Clock(), {10: {}, 50: {"val_mae": 3.5}})
    shown = terminal.getvalue()
    assert "distill" in shown
    assert "50 of 100 steps, 2 a second, 25 s left, stage head, loss 0.25, val mae 3.5" in shown
    assert "distill: " not in shown  # no lines beside the bar


@pytest.mark.parametrize(
    ("columns", "kept", "left_out"),
    [
        ("80", "distill ", "loss 2.574"),
        ("80", "400 of 1500 steps, 4 a second, 4 min 35 s left, stage distill", "loss 2.574"),
        ("100", "4 min 35 s left, stage distill, loss 2.574", "val mae"),
        ("120", "4 min 35 s left, stage distill, loss 2.574, val mae 0.1916", "…"),
        ("30", "400 of 1500 ", "a second"),
    ],
)
def test_what_has_no_room_beside_a_bar_is_left_out_whole(
    begin, monkeypatch, columns, kept, left_out
):
    terminal, clock = begin(Terminal()), Clock()
    monkeypatch.setenv("COLUMNS", columns)
    with Progress("distill", 1500, "steps", clock=clock) as shown:
        clock.now += 100
        shown.show(400, "stage distill, loss 2.574, val mae 0.1916")
    told = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert kept in told
    assert left_out not in told
    assert "…" not in told


@pytest.mark.parametrize(
    ("made", "told"),
    [(12, "12 a second"), (999, "999 a second"), (2130, "2130 a second"), (0.5, "2 s each"),
     (0.0005, "2000 s each")],
)  # fmt: skip
def test_a_rate_has_no_exponent(made, told):
    clock = Clock()
    shown = Progress("verify", 10**6, "photos", clock=clock)
    clock.now, shown.done = 200.0, 100 * made
    assert told in shown._words("")


def test_a_line_while_a_bar_is_drawn_is_not_lost(begin):
    terminal = begin(Terminal())
    with Progress("verify", 10, "photos") as shown:
        shown.show(4)
        logging.getLogger("kdcompile").warning("the board is warm")
    assert "the board is warm" in terminal.getvalue()


def test_one_bar_at_a_time(begin):
    terminal = begin(Terminal())
    with Progress("distill", 10, "steps"):
        assert list(counted(range(3), 3, "validation", "photos")) == [0, 1, 2]
    assert "validation" not in terminal.getvalue()
    list(counted(range(3), 3, "validation", "photos"))
    assert "3 of 3 photos" in terminal.getvalue()


def test_a_bar_that_ends_with_an_error_leaves_the_next_one_its_place(begin):
    terminal = begin(Terminal())
    with pytest.raises(KeyError), Progress("distill", 10, "steps"):
        raise KeyError("broken")
    with Progress("verify", 5, "photos") as shown:
        shown.show(5)
    assert "5 of 5 photos" in terminal.getvalue()


def test_lines_come_now_and_then(begin):
    console = begin(io.StringIO())
    clock = Clock()
    shown = Progress("verify", 100, "photos", clock=clock)
    for number in range(1, 31):
        clock.now += 1
        shown.show(number)
    assert [line.split(",")[0] for line in console.getvalue().splitlines()] == [
        f"verify: {number} of 100 photos" for number in (10, 20, 30)
    ]


def test_what_an_earlier_run_did_does_not_count_for_the_rate(begin):
    console = begin(io.StringIO())
    clock = Clock()
    shown = Progress("distill", 1000, "steps", done=900, clock=clock)
    clock.now += 20
    shown.show(910)
    assert console.getvalue() == "distill: 910 of 1000 steps, 2 s each, 3 min 0 s left\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3599, "59 min 59 s"), (7380, "2 h 3 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("level", "told"),
    [
        (logging.WARNING, ["careful"]),
        (logging.INFO, ["distill", "careful"]),
        (logging.DEBUG, ["why", "distill", "careful"]),
    ],
)
def test_levels(begin, level, told):
    console = begin(io.StringIO())
    logs.set_level(level)
    log = logging.getLogger("kdcompile")
    log.debug("why")
    log.info("distill")
    log.warning("careful")
    assert console.getvalue().splitlines() == told
    assert logs.is_quiet() == (level == logging.WARNING)


def test_quiet_draws_no_bar(begin):
    terminal = begin(Terminal())
    logs.set_level(logging.WARNING)
    list(counted(range(3), 3, "verify", "photos"))
    assert terminal.getvalue() == ""


def test_the_file_of_a_store_has_everything_and_the_error(begin, tmp_path):
    console = begin(io.StringIO())
    logs.set_level(logging.WARNING)
    log = logging.getLogger("kdcompile")

    def work():
        with logs.kept_in(tmp_path / "store"):
            log.debug("distill: data: a.png changed")
            raise ValueError("the photo is broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    log.info("not of this store")
    text = (tmp_path / "store" / logs.FILE).read_text()
    assert "INFO kdcompile " in text
    assert "DEBUG distill: data: a.png changed" in text
    assert "ERROR the photo is broken" in text
    assert "not of this store" not in text
    assert console.getvalue() == ""


def test_the_file_is_limited(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "MOST_BYTES", 2000)
    logging.getLogger("kdcompile").setLevel(logging.DEBUG)
    for _ in range(3):
        with logs.kept_in(tmp_path):
            for number in range(60):
                logging.getLogger("kdcompile").info("line %d of a build that says much", number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [logs.FILE, f"{logs.FILE}.1"]
    assert all(file.stat().st_size <= 2000 for file in files)
    assert "line 59" in files[0].read_text()


@pytest.mark.parametrize("harm", ["opening", "writing"])
def test_a_log_that_cannot_be_written_stops_nothing(begin, monkeypatch, tmp_path, harm):
    console = begin(io.StringIO())

    def full(*_):
        raise OSError(28, "No space left on device")

    if harm == "opening":
        (tmp_path / "store").write_text("a file where the folder should be")
    else:
        monkeypatch.setattr(logs.RotatingFileHandler, "shouldRollover", full)
    with logs.kept_in(tmp_path / "store"):
        logging.getLogger("kdcompile").info("distill")
    assert console.getvalue() == "distill\n"


def test_the_rate_is_of_real_time_by_default():
    assert progress.Progress("x", 1, "y")._clock() > 0
