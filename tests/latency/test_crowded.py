import pytest
from benching import Machine

from kdcompile.latency import interference as module
from kdcompile.latency.interference import crowded, quietest


@pytest.mark.parametrize(("own", "others", "share"), [(0.9, 0.0, 0.0), (0.5, 1.5, 0.75)])
def test_what_others_had_is_a_share_of_the_cpus(tmp_path, monkeypatch, own, others, share):
    machine = Machine(tmp_path)
    monkeypatch.setattr(module, "affinity", lambda: [0, 1])
    monkeypatch.setattr(module.os, "getpid", lambda: 7)

    def run() -> str:
        machine.pass_(10.0, own=own, others=others)
        return "done"

    assert crowded(run, tmp_path) == ("done", pytest.approx(share, abs=0.01))


def test_a_machine_that_tells_nothing_is_not_called_crowded(tmp_path):
    assert crowded(lambda: 1, tmp_path) == (1, 0.0)


@pytest.mark.parametrize(
    ("shares", "kept", "runs"),
    [
        ([0.10, 0.0], 0.10, 1),  # a tenth is allowed, and is not measured again
        ([0.11, 0.10, 0.0], 0.10, 2),
        ([0.5, 0.2, 0.3, 0.0], 0.2, 3),  # time is over: the quietest one
    ],
)
def test_a_crowded_run_is_repeated_while_time_lasts(monkeypatch, shares, kept, runs):
    taken = []
    monkeypatch.setattr(module, "crowded", lambda run: (run(), shares[len(taken) - 1]))
    found, share = quietest(lambda: taken.append("run") or len(taken))
    assert len(taken) == runs
    assert (share, found) == (kept, 1 + shares.index(kept))
