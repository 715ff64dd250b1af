"""benchmarks/kernels.py without a GPU: the rows, the floor, the order of things, file and table."""

import csv
import importlib.util
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from kdcompile.kernels import _runtime
from kdcompile.kernels._registry import Case, Kernel, Setting, kernels

ROOT = Path(__file__).parents[2]
CARD = {"card": "NVIDIA H100", "torch": "2.11.0", "triton": "3.6.0", "commit": "abc"}
H100 = 3e12, {"float16": 8e14, "bfloat16": 8e14, "tf32": 3e14}


@pytest.fixture(scope="module")
def script():
    """benchmarks/kernels.py as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(
            "kernel_benchmark", ROOT / "benchmarks" / "kernels.py"
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # a dataclass looks its own module up
        spec.loader.exec_module(module)
        yield module
        del sys.modules[spec.name]
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def rows(script):
    """benchmarks/kernel_rows.py, which the script imports."""
    return sys.modules["kernel_rows"]


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch):
    """The cases below say what ran without running it."""
    monkeypatch.setattr(_runtime, "_ran", {})


def _case(device="meta", dtype=torch.float16, layout=None, leaves=True, flops=0):
    x = torch.ones(8, 4, device=device, dtype=dtype, requires_grad=leaves)

    def loss():
        _runtime._ran["kd_kl"] = "triton"
        return (2 * x).float().sum() if leaves else 2 * x

    return Case(loss, lambda: loss(), [x] if leaves else [], 3_000_000, flops)


def _kernel(flops=0, **options):
    setting = Setting("tiny", lambda *place: _case(*place, flops=flops), **options)
    return Kernel("kd_kl", "f(x) = 2 x", "x read once.", lambda dtype: [], [setting])


def test_floor(rows):
    ceilings = rows.Ceilings(*H100)
    case = _case(flops=3e12)
    assert ceilings.floor(_case(), "float16", "highest") == rows.Floor(pytest.approx(1e-3))
    assert ceilings.floor(case, "float16", "highest") == rows.Floor(pytest.approx(3.75), True)
    assert ceilings.floor(case, "float32", "high").ms == pytest.approx(10)
    assert ceilings.floor(case, "float32", "highest").ms == pytest.approx(30)


def test_rows_of_the_registry(rows):
    found = rows.rows_of(["kd_kl"])
    assert ("kd_kl", "221184 x 150", "float16", "contiguous") in [row.names for row in found]
    assert {row.kernel.name for row in rows.rows_of([])} == set(kernels())
    with pytest.raises(SystemExit, match=r"no kernel \['kd_kll'\]; there are .*kd_kl"):
        rows.rows_of(["kd_kll"])


class _Gpu:
    """A clock that counts calls: the first thing timed takes 1 ms, the next 2 ms and so on."""

    device = "cuda"

    def __init__(self):
        self.timed, self.replays = [], 0

    def name(self):
        return "NVIDIA H100"

    def quantiles_ms(self, run):
        run()
        if run not in self.timed:
            self.timed.append(run)
        own = self.timed.index(run) + 1.0
        return 0.9 * own, own, 1.1 * own

    def peak_mb(self, run):
        run()
        return 12.0

    def replay(self, run):
        self.replays += 1
        return lambda: run()


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: lambda: function())


def _row(rows, kernel, dtype=torch.float16):
    return rows.Row(kernel, kernel.settings[0], dtype, torch.contiguous_format)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("leaves", [True, False])
def test_every_implementation_is_timed_in_turns(script, rows, leaves):
    gpu, case = _Gpu(), _case("cpu", leaves=leaves)
    found = script.measure(_row(rows, _kernel()), case, rows.Ceilings(*H100), gpu)
    assert [(t.impl, t.median_ms) for t in found] == [
        ("eager", 1.0), ("torch.compile", 2.0), ("kernel", 3.0)
    ]  # fmt: skip
    assert found[0].quantiles_ms == pytest.approx((0.9, 1.0, 1.1))
    assert found[0].peak_mb == 12.0
    assert [t.differs for t in found] == [0.0, 0.0, 0.0]
    assert found[0].spread == 0.0
    assert gpu.replays == 0
    assert all(leaf.grad is None for leaf in case.leaves)


@pytest.mark.usefixtures("no_compiler")
def test_a_graph_is_replayed_beside_the_eager_call(script, rows):
    gpu = _Gpu()
    row = _row(rows, _kernel(graph=True))
    found = script.measure(row, _case("cpu"), rows.Ceilings(*H100), gpu)
    assert [t.impl for t in found] == ["eager", "torch.compile", "kernel", "kernel (eager call)"]
    assert gpu.replays == 3


@pytest.mark.usefixtures("no_compiler")
def test_float32_products_have_a_tf32_row(script, rows):
    seen = []

    def loss():
        _runtime._ran["kd_kl"] = "triton"
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return torch.ones(())

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    case = Case(loss, loss, [], 3_000_000, 3_000_000_000_000)
    row = _row(rows, _kernel(dtypes=[torch.float32]), torch.float32)
    found = script.measure(row, case, rows.Ceilings(*H100), _Gpu())
    assert [t.impl for t in found] == ["eager", "torch.compile", "kernel", "kernel (tf32)"]
    assert [t.floor.ms for t in found] == pytest.approx([30, 30, 30, 10])
    assert set(seen) == {("highest", False), ("high", True)}
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


def test_what_fails_is_a_row(script, rows, monkeypatch):
    def refuse(function, dynamic):
        def compiled():
            raise RuntimeError("cannot lower\nsecond line")

        return compiled

    monkeypatch.setattr(torch, "compile", refuse)
    row, case = _row(rows, _kernel()), _case("cpu")
    found = script.measure(row, case, rows.Ceilings(*H100), _Gpu())
    assert [t.problem for t in found] == ["", "", "RuntimeError: cannot lower"]
    monkeypatch.setitem(_runtime._ran, "kd_kl", "reference: tensors on the CPU")
    quiet = Case(lambda: torch.ones(()), lambda: torch.ones(()), [], 3_000_000)
    problems = [t.problem for t in script.measure(row, quiet, rows.Ceilings(*H100), _Gpu())]
    assert "RuntimeError: no kernel ran: reference: tensors on the CPU" in problems
    written = rows.records(row, found, CARD)
    assert [r["impl"] for r in written] == ["eager", "kernel", "torch.compile (failed)"]
    assert [written[2][name] for name in rows.COLUMNS[5:10]] == [""] * 5


def _timings(rows, kernel, compiled, floor=1.0, by_products=False):
    return [
        rows.Timing(name, (ms, ms, ms), rows.Floor(floor, by_products), 8.0)
        for name, ms in (("kernel", kernel), ("eager", 9.0), ("torch.compile", compiled))
    ]


def test_a_wrong_kernel_is_not_timed(script, rows, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    case = _case("cpu")
    wrong = Case(lambda: 1.1 * case.kernel(), case.reference, case.leaves, 3_000_000)
    found = script.measure(_row(rows, _kernel()), wrong, rows.Ceilings(*H100), _Gpu())
    assert [t.problem for t in found] == ["", "", "ValueError: differs from the reference by 0.1"]
    void = Case(lambda: case.kernel() * float("nan"), case.reference, case.leaves, 3_000_000)
    found = script.measure(_row(rows, _kernel()), void, rows.Ceilings(*H100), _Gpu())
    assert found[-1].problem == "ValueError: differs from the reference by nan"


def test_upstream_gradient_in_float16(script):
    """As large as float16 bears, so that the gradient of a mean can be compared at all."""
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    wide = torch.ones(4, requires_grad=True)
    for factor, expected in ((1e-8, 65536), (1e-3, 65536), (100, 256), (1e4, 1.5)):
        case = Case(x.sum, lambda f=factor: (x.float() * f).sum(), [x], 8)
        assert script.loss_scale(case) == expected
    assert script.loss_scale(Case(wide.sum, wide.sum, [wide], 16)) == 1.5
    assert script.loss_scale(Case(wide.sum, wide.sum, [], 16)) == 1.5


def test_difference(script):
    a, b = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert script.difference(a, a) == 0
    assert script.difference((b, 1.1 * a), (b, a)) == pytest.approx(0.1)
    assert script.difference(a, b) > 1


def test_goals(rows):
    plain = _row(rows, _kernel())
    card = "NVIDIA H100 80GB HBM3"
    assert rows.verdict(plain, _timings(rows, 1.4, 2.0), card) == (
        "1.4 x floor met, torch.compile met"
    )
    assert rows.verdict(plain, _timings(rows, 2.06, 2.0), card) == (
        "1.4 x floor missed, torch.compile missed"
    )
    within = _timings(rows, 2.06, 2.0, by_products=True)
    assert rows.verdict(plain, within, card).endswith("torch.compile met")
    asked = _row(rows, _kernel(reach_ms={torch.float16: 1.5}))
    assert rows.verdict(asked, _timings(rows, 1.5, 1.0), card) == "1.5 ms met"
    assert rows.verdict(asked, _timings(rows, 1.6, 9.0), card) == "1.5 ms missed"
    assert rows.verdict(asked, _timings(rows, 1.6, 9.0), "NVIDIA L4") == "1.5 ms on an H100"


def test_table_and_file(rows, tmp_path, capsys):
    row = _row(rows, _kernel())
    timings = [*_timings(rows, 1.25, 2.5), rows.Timing("other", problem="Error: [/no] [64]")]
    console = Console(width=180)
    console.print(rows.table("kd_kl", [(row, timings)], "NVIDIA H100"))
    text = capsys.readouterr().out
    ours = next(line for line in text.splitlines() if "│ kernel  " in line)
    assert [cell.strip() for cell in ours.split("│")[5:14]] == [
        "1.2500", "1.2500", "1.2500", "0.0%", "1.0000", "1.25", "7.20", "2.00", "8.0"
    ]  # fmt: skip
    assert "1.4 x floor met" in ours
    assert "failed: Error: [/no] [64]" in text
    path = tmp_path / "kernels.csv"
    for _ in range(2):
        rows.append(path, rows.records(row, timings, CARD))
    with path.open(newline="") as file:
        kept = list(csv.reader(file))
    assert tuple(kept[0]) == rows.COLUMNS
    assert len(kept) == 9
    assert kept[1] == [
        "kd_kl", "tiny", "float16", "contiguous", "kernel", "1.2500", "1.2500", "1.2500", "1.0000",
        "8.0", "NVIDIA H100", "2.11.0", "3.6.0", "abc",
    ]  # fmt: skip
    path.write_text("kernel,p50\n")
    with pytest.raises(SystemExit, match="move it away"):
        rows.append(path, [])


def test_commit(rows, tmp_path, monkeypatch):
    monkeypatch.delenv("KDCOMPILE_COMMIT", raising=False)
    for variable in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{variable}_NAME", "a")
        monkeypatch.setenv(f"GIT_{variable}_EMAIL", "a@b")
    assert rows.commit(tmp_path, tmp_path / "kernels.csv") == "unknown"
    rows._git(tmp_path, "init", "-q")
    rows._git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    (tmp_path / "kernels.csv").write_text("results")
    head = rows.commit(tmp_path, tmp_path / "kernels.csv")
    assert re.fullmatch("[0-9a-f]{10}", head)
    assert rows.commit(tmp_path, Path("/elsewhere.csv")) == f"{head}+dirty"
    monkeypatch.setenv("KDCOMPILE_COMMIT", "given")
    assert rows.commit(tmp_path, tmp_path / "kernels.csv") == "given"


def test_gate_runs_the_tests_without_the_interpreter(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "tests" / "kernels").mkdir(parents=True)
    (tmp_path / "tests" / "kernels" / "test_kd_kl.py").touch()
    calls = []

    def run(command, cwd, env, check):
        calls.append((command, cwd, env["TRITON_INTERPRET"], env["KDCOMPILE_TUNE"]))
        return SimpleNamespace(returncode=5)

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(script, "find_spec", lambda name: True)
    assert script.gate(["kd_kl"], tmp_path) == 5
    command, *others = calls[0]
    assert command[command.index("-n") + 1] == "14"
    assert command[1:4] == ["-P", "-m", "pytest"]
    assert command[-1] == str(tmp_path / "tests" / "kernels" / "test_kd_kl.py")
    assert others == [tmp_path, "0", "0"]
    assert script.gate(["kd_kl", "other"], tmp_path) == 1
    assert "test_other.py is missing" in capsys.readouterr().out


def test_list_and_exit_codes(script, monkeypatch, tmp_path, capsys):
    assert script.main(["--list", "--kernel", "kd_kl"]) == 0
    assert "331.8 MB       0.0 GFLOP  kd_kl  221184 x 150  float16" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main([]) == 4
    assert "no CUDA GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert script.main([]) == 4
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("KDCOMPILE_TUNE", "0")
    assert script.main([]) == 4
    assert "KDCOMPILE_TUNE is 0" in capsys.readouterr().err
    monkeypatch.delenv("KDCOMPILE_TUNE")
    monkeypatch.setattr(_runtime, "triton_problem", lambda: None)
    monkeypatch.setattr(script, "gate", lambda names: 1)
    assert script.main(["--kernel", "kd_kl"]) == 1
    assert "the gate is red" in capsys.readouterr().err


def test_references_are_compiled_ahead_in_processes(script, rows, monkeypatch, tmp_path):
    asked, made = [], []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count, mp_context):
            assert mp_context.get_start_method() == "spawn"
            asked.append(count)
            super().__init__(1)

    def compiler(function, dynamic):
        made.append(function)
        return function

    row = _row(rows, _kernel())
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(script, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(script, "rows_of", lambda names: [row])
    monkeypatch.setattr(script, "_one", lambda *_: _timings(rows, 1.0, 2.0))
    monkeypatch.setattr(rows.Row, "case", lambda self, device: _case("cpu"))
    gpu = _Gpu()
    gpu.ceilings = lambda: rows.Ceilings(*H100)
    for ahead in (0, 4, 4):  # what the file has needs no compiling
        assert script.run([row], tmp_path / f"{ahead}.csv", gpu, Console(width=180), ahead)
    assert asked == [4]
    assert len(made) == 1


@pytest.mark.usefixtures("no_compiler")
def test_a_whole_run(script, rows, monkeypatch, tmp_path):
    """Everything but the GPU: rows are kept one by one, with where they were measured."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setenv("KDCOMPILE_COMMIT", "abc")
    gpu = _Gpu()
    gpu.ceilings = lambda: rows.Ceilings(*H100)
    row = _row(rows, _kernel())
    monkeypatch.setattr(rows.Row, "case", lambda self, device: _case("cpu"))
    out = tmp_path / "kernels.csv"
    assert script.run([row, row], out, gpu, Console(width=180))
    assert script.run([row], out, gpu, Console(width=180))  # is there already
    with out.open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert len(kept) == 6
    assert {(r["card"], r["commit"]) for r in kept} == {("NVIDIA H100", "abc")}
    monkeypatch.setattr(rows.Row, "case", lambda self, device: _case("nowhere"))
    monkeypatch.setenv("KDCOMPILE_COMMIT", "another")
    with pytest.raises(RuntimeError):
        script.run([row], out, gpu, Console(width=180))
