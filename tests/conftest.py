"""Shared fixtures. Nothing here needs a network or a GPU."""

import __future__

import gc
import inspect
import logging
import os
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from longest_first import pytest_collection_modifyitems as pytest_collection_modifyitems
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from told_skips import pytest_sessionfinish as pytest_sessionfinish
from torch import _ops

from kdcompile.core.logs import CONSOLE

# a tenth of the time of the tests was the collection of garbage among what their modules hold
gc.set_threshold(20_000, 10, 10)

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
# of each of pytest-xdist's workers: they would sweep each other's files away
os.environ["KDCOMPILE_CACHE"] = tempfile.mkdtemp(prefix="kdcompile-tests-")
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="kdcompile-tests-")  # no calibration
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of the tests that import onnxruntime themselves
os.environ.setdefault("KDCOMPILE_TUNE", "0")  # tests measure nothing and leave no cache behind

# the same examples in every run, and none that fails for taking long beside other work;
# `--hypothesis-profile random` draws others
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("same")

DRAW, PRINT = FigureCanvasAgg.draw, FigureCanvasSVG.print_svg
SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _short_timings():
    """A build times teacher and student for 9 s, and no test depends on what it finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcompile.core.measurement.BLOCK_SECONDS", 0.002)
        yield


@pytest.fixture(autouse=True, scope="session")
def _plain_registrations():
    """torch.export defines a function for each of 6,000 entries, and evaluates its annotations."""
    later = __future__.annotations.compiler_flag
    text = textwrap.dedent(inspect.getsource(_ops.OperatorBase.py_impl))
    made = {}
    exec(compile(text, _ops.__file__, "exec", later, dont_inherit=True), vars(_ops), made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ops.OperatorBase, "py_impl", made["py_impl"])
        yield


@pytest.fixture(autouse=True, scope="session")
def _blank_figures():
    """Hundreds of tests make a report, and those with `drawn` look at its figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "draw", FigureCanvasAgg.get_renderer)
        patch.setattr(FigureCanvasSVG, "print_svg", lambda _, file, **more: file.write(b"<svg>"))
        yield


@pytest.fixture(scope="module")
def drawn():
    """Figures are drawn, and not left blank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "draw", DRAW)
        patch.setattr(FigureCanvasSVG, "print_svg", PRINT)
        yield


@pytest.fixture(autouse=True)
def _console_of_one_test():
    """A command that ran with -q leaves no quiet console to the tests after it."""
    root, log = logging.getLogger(), logging.getLogger("kdcompile")
    level = log.level
    yield
    root.handlers[:] = [one for one in root.handlers if one.get_name() != CONSOLE]
    log.setLevel(level)


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(('../shared', *parts))} is not here")
    return path


@pytest.fixture(scope="session")
def shanghaitech() -> Path:
    """ShanghaiTech A beside the checkout."""
    return _shared("data", "shanghaitech_a")


@pytest.fixture(scope="session")
def csrnet_weights() -> Path:
    """The trained CSRNet teacher beside the checkout."""
    return _shared("teachers", "csrnet_sha", "weights.safetensors")
