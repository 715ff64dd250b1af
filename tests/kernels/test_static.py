"""benchmarks/kernels_static.py: launches, bytes and instructions that are counted without a GPU."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdcompile.kernels import _docs
from kdcompile.kernels._runtime import jit, tl, triton_problem

ROOT = Path(__file__).parents[2]
CHECKED = ("--kernel", "kd_kl", "--setting", "4096 x 1000", "--arch", "90")
SASS = """\
\t//## File "/a/_loss.py", line 4
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
\t//## File "/a/_loss.py", line 8
        /*0010*/                   LDG.E.128 R3, desc[UR4][R2.64] ;
.L_x_0:
\t//## File "/a/_loss.py", line 9
        /*0020*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
\t//## File "/a/_loss.py", line 8
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/              @!P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);
        /*0080*/                   NOP;
"""

pytestmark = pytest.mark.skipif(triton_problem() is not None, reason=str(triton_problem()))


@pytest.fixture(scope="module")
def static():
    """The script and its modules."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import kernel_rows
        import kernels_static
        import static_code
        import static_cpu
        import static_launches
        import static_traffic

        yield SimpleNamespace(
            script=kernels_static, code=static_code, launches=static_launches,
            traffic=static_traffic, rows=kernel_rows, cpu=static_cpu,
        )  # fmt: skip
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_the_loops_of_a_disassembly(static):
    code = static.code.analysed(list(static.code.instructions(SASS)), 40, 0, 1024)
    outer, inner = sorted(code.loops, key=lambda loop: loop.depth)
    assert (outer.instructions, inner.instructions) == (3, 2)
    assert (outer.tensor_cores, inner.tensor_cores) == (0, 1)
    assert code.straight == 2  # the endless branch and the padding are nothing that runs
    assert code.widest_load == 128
    assert code.barriers == 1


def test_what_a_warp_executes(static):
    """An outer loop of 5 rounds, an inner one of 20 in all: 2 + 5 * 3 + 20 * 2."""
    code = static.code.analysed(list(static.code.instructions(SASS)), 40, 0, 1024)
    trips = {("_loss.py", 8): 5.0, ("_loss.py", 9): 20.0}
    assert static.script.executed(code, trips) == (57.0, 20.0)


def test_blocks_of_a_multiprocessor(static):
    card = static.script.Card(132, 1e9, 1e12, shared_bytes=200_000)
    code = static.code.analysed([], 128, 0, 60_000)
    assert card.blocks(code, warps=4) == 3  # by shared memory; 4 by registers
    assert card.blocks(static.code.analysed([], 255, 0, 0), warps=8) == 1


def test_counts_that_grew(static):
    line = dict.fromkeys(static.script.COLUMNS, "100") | {"triton": "3.9.0"}
    assert static.script.grown(line, line | {"moved_mb": "105"}) == []
    (problem,) = static.script.grown(line, line | {"moved_mb": "105.1"})
    assert "moved_mb 100 to 105.1" in problem
    assert static.script.grown(line, line | {"warp_instructions_m": "106"})
    # another compiler gives other instructions, and the same bytes
    other = line | {"warp_instructions_m": "106", "moved_mb": "106", "triton": "3.10.0"}
    (problem,) = static.script.grown(line, other)
    assert "moved_mb" in problem


def test_a_tensor_that_half_of_the_cache_holds_comes_from_memory_once(static):
    card = static.script.Card(1, 1e9, 1e12, cache_bytes=100)
    tensors = {"1": [500.0, 50.0], "2": [500.0, 51.0], "3": [30.0, 50.0]}
    assert card.from_memory({"tensors": tensors}) == 50 + 500 + 30


def test_a_step_at_full_size_takes_no_memory(static, monkeypatch):
    monkeypatch.setenv("KDCOMPILE_TUNE", "0")
    row = next(r for r in static.rows.rows_of(["kd_kl"]) if r.setting.name == "221184 x 150")
    forward, backward = static.launches.recorded(row)
    assert [launch.function.fn.__name__ for launch in forward.launches] == ["kd_kl_fwd_kernel"]
    # of the blocks' partial losses; these tests fill new memory
    assert [name for name in forward.torch_operators if name != "fill_"] == ["sum"]
    assert [launch.function.fn.__name__ for launch in backward.launches] == ["kd_kl_bwd_kernel"]
    assert forward.launches[0].arguments["student"].numel() == 221184 * 150


def test_bytes_of_pytorchs_own_operators(static):
    """A copy in another order is no view; a sum of a row that is expanded reads the row."""
    step = static.launches.Step()
    maps = torch.ones(2, 3, 4)
    with static.launches.Unwritten(step):
        maps.movedim(1, 0).contiguous()
    assert [name for name in step.torch_operators if name != "fill_"] == ["clone"]
    step, row = static.launches.Step(), torch.ones(8).expand(100, 8)
    with static.launches.Unwritten(step):
        maps.contiguous()
        row.sum()
    assert step.torch_operators == ["sum"]
    assert step.torch_bytes == 8 * 4 + 4


def test_host_time_of_a_step(static, monkeypatch):
    monkeypatch.setenv("KDCOMPILE_TUNE", "0")
    ticks = iter([0, 9_000_000, 10, 1_000_010, 20, 3_000_020, 30, 2_000_030])
    monkeypatch.setattr(static.cpu.time, "process_time_ns", lambda: next(ticks))
    assert static.cpu.median_ms(lambda: None, 4) == 2.5
    monkeypatch.undo()
    row = next(r for r in static.rows.rows_of(["kd_kl"]) if r.setting.name == "4096 x 1000")
    assert static.cpu.measured(row, 3) > 0
    monkeypatch.setattr(static.cpu, "MOST_BYTES", -1)
    assert static.cpu.measured(row, 3) is None


def test_small_cases(static):
    """Sides keep their proportions; a batch of eight and the rows of a table shrink."""
    small = static.cpu.small
    assert small((8, 64, 576, 768), 8) == (1, 64, 72, 96)
    assert small((8, 1, 72, 96), 8) == (1, 1, 9, 12)
    assert small((64, 256, 7, 7), 8) == (64, 256, 7, 7)
    assert small((221184, 150), 8) == (3456, 150)
    assert small((1000, 2048), 8) == (1000, 2048)
    with static.cpu.Small(8):
        assert torch.randn(8, 3, 64, 64).shape == torch.rand((8, 3, 64, 64)).shape == (1, 3, 8, 8)
        assert torch.randint(10, (65536,)).shape == (1024,)


def test_the_page_has_both_cards_and_the_cpu(static, tmp_path):
    line = dict.fromkeys(static.script.COLUMNS, "1") | {"arch": "90", "spilled_bytes": "0"}
    board = line | {"arch": "87", "spilled_bytes": "24", "predicted_ms": "7.125"}
    host = dict.fromkeys(static.cpu.COLUMNS, "1") | {"cpu_ms": "0.250", "cpu": "a CPU"}
    for name, lines in (("counts", [line, board]), ("host", [host])):
        with (tmp_path / name).open("w") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
    (found,) = _docs.predicted(tmp_path / "counts", tmp_path / "host").values()
    text = "\n".join(_docs._predictions(found))
    assert (
        "| 1 + 1 | 0.250 ms | 1.00 | 1.0 M | 1 | 1 | 1.000 ms | 1 | 7.12 ms | sm_87: 24 B |" in text
    )
    assert "is measured (a CPU)" in text
    (found,) = _docs.predicted(tmp_path / "counts", tmp_path / "none").values()
    assert "measured" not in "\n".join(_docs._predictions(found))


def test_traffic_of_a_copy(static, device):
    """A kernel that copies 1,000 numbers: 4,000 bytes each way, and whole sectors."""
    if device.type != "cpu":
        pytest.skip("counted in the interpreter")
    own = {
        "source": torch.arange(1.0, 1001.0),
        "target": torch.empty(1000),
        "n": 1000,
        "block": 256,
    }
    launch = static.launches.Launch(_copy, (4, 1, 1), own, {"num_warps": 4})
    found = static.traffic.traffic(launch)
    assert (found.loaded, found.stored, found.atomics) == (4000, 4000, 0)
    assert found.sectors == 8000
    assert sum(row[0] for row in found.tensors.values()) == 8000
    assert torch.equal(own["source"], own["target"])


@jit
def _copy(source, target, n, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(target + at, tl.load(source + at, at < n), at < n)


@pytest.mark.slow
def test_no_count_of_the_checked_rows_has_grown():
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels_static.py"), "--check", *CHECKED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no count has grown" in done.stdout
