import os
from pathlib import Path

import pytest

from kdcompile.backends.worker import TICKS_PER_S, affinity
from kdcompile.bench.crowded import crowded


def _machine(root: Path, own_s: float, busy_s: float, idle_s: float) -> None:
    """A /proc with one thread of this process, and CPUs that were busy so long in all."""
    task = root / f"proc/{os.getpid()}/task/1"
    task.mkdir(parents=True, exist_ok=True)
    (task / "schedstat").write_text(f"{int(own_s * 1e9)} 0 7\n")
    busy, idle = (round(s * TICKS_PER_S) for s in (busy_s, idle_s))
    first, *more = affinity()
    rows = [f"cpu{first} {busy} 0 0 {idle} 0 0 0 0 0 0"]
    rows += [f"cpu{n} 0 0 0 0 0 0 0 0 0 0" for n in more]
    (root / "proc/stat").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(
    ("own", "busy", "idle", "said"),
    [(9.0, 10.0, 10.0, ""), (5.0, 20.0, 0.0, "75% of the CPUs' time went to other processes")],
)
def test_what_others_had_is_told_where_it_is_much(tmp_path, own, busy, idle, said):
    _machine(tmp_path, 1.0, 50.0, 50.0)

    def run() -> str:
        _machine(tmp_path, 1.0 + own, 50.0 + busy, 50.0 + idle)
        return "done"

    found, words = crowded(run, tmp_path)
    assert found == "done"
    assert words.startswith(said)
    assert bool(words) is bool(said)


def test_a_machine_that_tells_nothing_is_not_called_crowded(tmp_path):
    assert crowded(lambda: 1, tmp_path) == (1, "")
