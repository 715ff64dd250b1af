"""Every kernel compiles for every card we name, without spills; needs no GPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from kdcompile.kernels import _aot
from kdcompile.kernels._registry import kernels
from kdcompile.kernels._runtime import triton_problem

BUDGET = 74  # compilations in one run of the tests, over all PAIRS
# every function for the board that the targets name first; one of each kernel, in the other types,
# for 90, which multiplies by other instructions, and for 120, which does not. 80 and 86 have the
# instructions of 87, and their shared memory is asked of its rows; soak compiles the rest
PAIRS = {87: ["float16", "float32"], 90: ["bfloat16"], 120: ["float32"]}
LATER = {
    80: ["float16"], 86: ["float16"], 87: ["bfloat16"], 90: ["float16", "float32"],
    120: ["float16", "bfloat16"],
}  # fmt: skip
ONE = ["--arch", "90", "--dtype", "float16", "--kernel", "channel_kl", "--jobs", "1"]
LIKE = {87: (80, 86, 87)}

pytestmark = pytest.mark.skipif(triton_problem() is not None, reason=str(triton_problem()))


def _compiled(tmp_path, *requests):
    """What `_aot` prints of each request, all in one process, which imports torch and Triton."""
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),  # a new one: nothing is found compiled
        "TRITON_DEFAULT_FP_FUSION": "1",
        "TRITON_INTERPRET": "0",
    }
    code = "import json, sys; from kdcompile.kernels._aot import main\n"
    code += "for one in json.loads(sys.argv[1]): print('=', main(one), flush=True)"
    command = [sys.executable, "-c", code, json.dumps(requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = [[]]
    for line in done.stdout.splitlines():
        if line.startswith("="):
            assert line == "= 0", (found[-1], done.stderr)
            found.append([])
        else:
            found[-1].append(json.loads(line))
    return found[:-1]


def _asked(arch, dtypes):
    return ["--arch", str(arch), "--jobs", "2", "--dtype", *dtypes]


@pytest.mark.soak
def test_quick_configurations_of_the_other_cards(tmp_path):
    found = _compiled(tmp_path, *(_asked(arch, LATER[arch]) for arch in LATER))
    for arch, rows in zip(LATER, found, strict=True):
        _check_quick(arch, rows)


@pytest.fixture(scope="module")
def of_the_cards(tmp_path_factory):
    """Rows by card, and those of one kernel without and with aligned sizes."""
    asked = [_asked(arch, PAIRS[arch]) for arch in PAIRS]
    *found, plain, aligned = _compiled(
        tmp_path_factory.mktemp("aot"), *asked, ONE, [*ONE, "--aligned"]
    )
    return dict(zip(PAIRS, found, strict=True)), (plain, aligned)


@pytest.mark.slow
@pytest.mark.parametrize("arch", PAIRS)
def test_quick_configurations(arch, of_the_cards):
    _check_quick(arch, of_the_cards[0][arch])


def _check_quick(arch, rows):
    problems = [" ".join(map(str, row.values())) for row in rows if row["problem"]]
    assert not problems, "\n".join(problems)
    assert {row["public"] for row in rows} == set(kernels())
    for row in rows:
        assert row["arch"] == arch
        assert row["spilled_bytes"] == 0
        assert row["shared_bytes"] <= min(_aot.SHARED_BYTES[a] for a in LIKE.get(arch, (arch,)))
        assert row["registers"] > 0


def test_budget():
    counts = {
        (arch, dtype): len(_aot.selected(dtype, arch, False))
        for arch, dtypes in PAIRS.items()
        for dtype in dtypes
    }
    assert sum(counts.values()) <= BUDGET, counts


def test_every_jitted_function_is_in_the_quick_ones():
    everything = {c.kernel for d in _aot.TYPES for _, c in _aot.selected(d, 87, True)}
    quick = {c.kernel for d in PAIRS[87] for _, c in _aot.selected(d, 87, False)}
    assert quick == everything


def test_what_is_a_problem():
    fine = _aot.Resources("k", "", "float16", 86, 64, 0, 101_376)
    assert fine.problem is None
    assert replace(fine, spilled_bytes=8).problem == "spills 8 bytes a thread"
    assert replace(fine, shared_bytes=101_377).problem == (
        "needs 101377 bytes of shared memory of 101376"
    )


def test_exit_code_and_table(monkeypatch, capsys):
    """A compilation that spills and one that fails are both named, and neither stops the rest."""

    def compiled(compilation, dtype, arch, aligned):
        if compilation.label == "bad":
            raise RuntimeError("no such type")
        spilled = 24 if compilation.label == "spilling" else 0
        return _aot.Resources("k", compilation.label, dtype, arch, 40, spilled, 0)

    class Compilation:
        def __init__(self, label):
            self.label, self.kernel = label, test_budget

    found = [("loss", Compilation(label)) for label in ("good", "spilling", "bad", "last")]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_aot, "selected", lambda dtype, arch, everything: found)
    monkeypatch.setattr(_aot, "compile_for", compiled)
    arguments = ["--arch", "87", "--dtype", "float16", "--jobs", "1"]
    assert _aot.main([*arguments, "--table"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[5] == "4 compilations, 2 with a problem"
    assert lines[2].endswith("spills 24 bytes a thread")
    assert lines[3].endswith("does not compile: RuntimeError")
    assert "last" in lines[4]
    del found[1:3]
    assert _aot.main(arguments) == 0
    assert [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()] == [
        "good",
        "last",
    ]


def test_aligned_sizes_and_one_kernel(of_the_cards):
    """Sizes that are multiples of 16 are another compilation."""
    found = of_the_cards[1]
    assert {row["public"] for rows in found for row in rows} == {"channel_kl"}
    assert [row["label"] for row in found[0]] == [row["label"] for row in found[1]]
    assert found[0] != found[1]


def test_not_in_the_interpreter(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stopped:
        _aot.main(["--arch", "87"])
    assert stopped.value.code == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
