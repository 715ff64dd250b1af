"""What kernel files declare, and the page made of it."""

import csv
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

from kdcompile.kernels import _docs, _runtime
from kdcompile.kernels._registry import Case, Kernel, Setting, kernels

ROOT = Path(__file__).parents[2]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FIRST = [(k, s) for k in kernels().values() for s in k.settings]
NAMES = [f"{k.name} {s.name}" for k, s in FIRST]
CARD = {"card": "NVIDIA H100", "torch": "2.11.0", "triton": "3.6.0", "commit": "abc"}


@pytest.mark.parametrize("kernel", kernels().values(), ids=kernels())
def test_a_kernel_and_its_public_function(kernel):
    """One file named like its function, whose docstring says how far results repeat."""
    module = importlib.import_module(f"kdcompile.kernels.{kernel.name}")
    function = getattr(module, kernel.name)
    assert module.KERNEL is kernel
    assert callable(getattr(module, f"{kernel.name}_reference"))
    assert re.search("[Dd]eterminis", inspect.getdoc(function))
    assert "Raises:" in inspect.getdoc(function)
    assert (ROOT / "tests" / "kernels" / f"test_{kernel.name}.py").is_file()
    assert kernel.formula.strip()
    assert kernel.traffic.strip()
    assert kernel.settings
    assert len({setting.name for setting in kernel.settings}) == len(kernel.settings)


@pytest.mark.skipif(_runtime.triton_problem() is not None, reason=str(_runtime.triton_problem()))
@pytest.mark.parametrize("kernel", kernels().values(), ids=kernels())
def test_compilations_fit_their_functions(kernel):
    """Every argument has a type or a value, and each jitted function is part of `make test`."""
    found = [c for dtype in DTYPES for c in kernel.compilations(dtype)]
    for compilation in found:
        names, label = set(compilation.kernel.arg_names), compilation.kernel.__name__
        types, constants = set(compilation.types), set(compilation.constants)
        assert names <= types | constants, f"{label} lacks {sorted(names - types - constants)}"
        assert constants <= names, f"{label} has no {sorted(constants - names)}"
        assert not types & constants, f"{label}: both a type and a value for {types & constants}"
        assert set(compilation.launch) <= {"num_warps", "num_stages"}
    quick = {c.kernel.__name__ for c in found if c.quick}
    assert quick == {c.kernel.__name__ for c in found}


@pytest.mark.parametrize(("kernel", "setting"), FIRST, ids=NAMES)
def test_settings_have_sizes_without_memory(kernel, setting):
    """Cases can be built on the meta device, in every type and format that is to be timed."""
    for dtype in setting.dtypes:
        for layout in setting.layouts:
            case = _docs.sized(setting, dtype, layout)
            assert all(leaf.is_meta and leaf.requires_grad for leaf in case.leaves)
            assert case.floor_bytes > 0
            assert case.floor_flops >= 0
            inputs = sum(leaf.numel() * leaf.element_size() for leaf in case.leaves)
            assert case.floor_bytes >= 2 * inputs  # at the least read once, its gradient written
    assert set(setting.reach_ms) <= set(setting.dtypes)


@pytest.mark.parametrize("kernel", kernels().values(), ids=kernels())
def test_one_setting_is_larger_than_the_cache(kernel):
    """More than twice the 50 MB of an H100's L2, or bound by products."""
    cases = [_docs.sized(s, s.dtypes[0], s.layouts[0]) for s in kernel.settings]
    assert any(case.floor_bytes > 100e6 or case.floor_flops > 1e10 for case in cases)


def test_page_is_up_to_date():
    page, results = ROOT / "docs" / "kernels.md", ROOT / "benchmarks" / "kernels.csv"
    counts = ROOT / "benchmarks" / "kernels_static.csv"
    times = ROOT / "benchmarks" / "kernels_cpu.csv"
    files = [str(page), "--csv", str(results), "--static", str(counts), "--cpu", str(times)]
    assert _docs.main([*files, "--check"]) == 0, "make kernels-docs"
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / link).is_file(), link


def _kernel():
    setting = Setting("tiny", lambda *place: Case(torch.ones, torch.ones, [], 3_000_000))
    return Kernel("kd_kl", "f(x) = 2 x", "x read once.", lambda dtype: [], [setting])


def _line(impl, *figures, **other):
    names = ("p20_ms", "p50_ms", "p80_ms", "floor_ms", "peak_mb")
    place = {"kernel": "kd_kl", "setting": "tiny", "dtype": "float16", "layout": "contiguous"}
    return {**place, "impl": impl, **dict(zip(names, figures, strict=True)), **CARD, **other}


def _write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_page_without_and_with_measurements(tmp_path):
    found, path = {"kd_kl": _kernel()}, tmp_path / "kernels.csv"
    text = _docs.rendered(found, _docs.measured(path))
    assert "f(x) = 2 x" in text
    assert "Traffic: x read once. Full" in text
    assert "Deterministic" in text
    assert "| tiny | float16 | contiguous | 3.0 MB | - | not measured yet |  |  |  |  |" in text
    nothing = [""] * 5
    _write(
        path,
        [
            _line("kernel", "9", "9", "9", "0.5", "1", commit="old"),
            _line("eager", "8", "8", "8", "0.5", "1", commit="old"),
            _line("kernel", "0.9", "1.0", "1.1", "0.5", "1"),
            _line("kernel (tf32)", "0.7", "0.8", "0.9", "0.4", "1"),
            _line("torch.compile (failed)", *nothing),
        ],
    )
    text = _docs.rendered(found, _docs.measured(path))
    assert "| - | 0.5 ms | 1.0 ms, TF32 0.8 ms | 50% |  | failed |" in text
    assert "Measured on NVIDIA H100 at commit abc." in text
    _write(path, [*_read(path), _line("kernel (failed)", *nothing), _line("eager", *"12345")])
    assert "|  | failed, TF32 0.8 ms |  | 2 ms | failed |" in _docs.rendered(
        found, _docs.measured(path)
    )


def test_page_is_written_below_the_marker(tmp_path, capsys):
    page = tmp_path / "kernels.md"
    page.write_text(f"By hand.\n\n{_docs.MARKER}\nold\n")
    arguments = [str(page), "--csv", str(tmp_path / "none.csv")]
    assert _docs.main([*arguments, "--check"]) == 1
    assert "make kernels-docs" in capsys.readouterr().out
    assert "old" in page.read_text()
    assert _docs.main(arguments) == 0
    assert page.read_text().startswith(f"By hand.\n\n{_docs.MARKER}\n\nKernels run")
    assert _docs.main([*arguments, "--check"]) == 0
    page.write_text("no marker")
    with pytest.raises(SystemExit):
        _docs.main(arguments)
