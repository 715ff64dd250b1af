import pytest
from benching import Machine

from kdcompile.bench import crowded as module
from kdcompile.bench.crowded import crowded


@pytest.mark.parametrize(
    ("own", "others", "said"),
    [(0.9, 0.1, ""), (0.5, 1.5, "75% of the CPUs' time went to other processes")],
)
def test_what_others_had_is_told_where_it_is_much(tmp_path, monkeypatch, own, others, said):
    machine = Machine(tmp_path)
    monkeypatch.setattr(module, "affinity", lambda: [0, 1])
    monkeypatch.setattr(module.os, "getpid", lambda: 7)

    def run() -> str:
        machine.pass_(10.0, own=own, others=others)
        return "done"

    found, words = crowded(run, tmp_path)
    assert found == "done"
    assert words.startswith(said)
    assert bool(words) is bool(said)


def test_a_machine_that_tells_nothing_is_not_called_crowded(tmp_path):
    assert crowded(lambda: 1, tmp_path) == (1, "")
