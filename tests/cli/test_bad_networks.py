"""Networks and settings that must be refused, each as a user meets it on the command line."""

import importlib.util
import types

import onnx
import pytest
from bad_inputs import MODEL as COUNTER
from command_line import CommandLine, contents, refusal
from computing_tensorrt import start
from near_place import Near, NearGpu
from onnx_graphs import chain, table_of
from played_tensorrt import Driver
from safetensors.torch import save_file

from kdcompile.calib.trt_cache import write_cache
from kdcompile.models.factory import build_model

VERSION = "8.6.1"
has_tensorrt = importlib.util.find_spec("tensorrt") is not None
MODEL = (
    COUNTER
    + """
class Determinant(nn.Module):
    def forward(self, image):
        return torch.linalg.det(image)[:, :1, None, None]

class Unusual(Counter):
    def __init__(self):
        super().__init__()
        self.odd = Determinant()

    def forward(self, image):
        return super().forward(image) + 1e-9 * self.odd(image)
"""
)
POINTS = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    rng = np.random.default_rng(len(split))
    made = []
    for index in range({"train": 4, "val": 3, "test": 3}[split]):
        points = rng.choice(256, 20 + 9 * index, replace=False)
        array = np.zeros((16, 16, 3), np.uint8)
        array.reshape(256, 3)[points] = 255
        xy = np.stack([points % 16, points // 16], 1).astype(np.float32)
        made.append(Photo(f"{split}{index}", xy, array=array))
    return made
"""
SPEC = """
target = "h100"
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "data.py:photos"
root = "."
train = "train"
val = "val"
test = "test"
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
[student]
family = "model.py:Counter"
budget = { width = 1.0 }
[distill]
recipe = "none"
steps = 1
batch = 2
crop = 16
[export]
shape = [1, 3, 16, 16]
[quantize]
images = 4
[compile]
backend = "tensorrt"
[gates]
speedup = { min = 1.5 }
"""


@pytest.fixture
def command(monkeypatch, capsys):
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def at_h100(tmp_path, monkeypatch):
    """Every place is a played H100."""
    with NearGpu(VERSION, tmp_path / "there").installed(monkeypatch) as place:
        yield place


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A spec; its store is shared, so that a network is trained and exported once."""
    root = tmp_path_factory.mktemp("project")
    for name, text in (("model.py", MODEL), ("data.py", POINTS), ("kdcompile.toml", SPEC)):
        (root / name).write_text(text)
    save_file(build_model("model.py:build", root).state_dict(), root / "w.safetensors")
    onnx.save(chain(2), root / "other.onnx")
    write_cache(table_of(chain(2)), root / "other.cache", VERSION)
    (root / "no.cache").write_text("image: 3c010a14\n")
    return root


@pytest.fixture
def parser(tmp_path, monkeypatch):
    """Every place is an H100 with the parser of TensorRT-RTX: a real one."""
    rtx = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

    def serve():
        module = types.SimpleNamespace(**{**vars(rtx), "__version__": "11.4.0"})
        return start(module, Driver("9.0"))

    with Near(serve, tmp_path / "there").installed(monkeypatch) as place:
        yield place


@pytest.fixture
def compiling(project, command, tmp_path, monkeypatch):
    """`compiling(words, ...)` -> what the command gave; nothing half-made stays behind it."""
    monkeypatch.chdir(tmp_path)

    def run(name, *sets):
        words = [word for value in sets for word in ("--set", value)]
        known = _entries(project, name)
        found = command(name, project, *words, *(["-o", tmp_path / "out"]))
        assert _entries(project, name) == known
        assert not (tmp_path / "out").exists()
        return found

    return run


def _entries(project, stage_name):
    """What the store has of a stage, and whatever else is unfinished in it."""
    store = project / ".kdcompile"
    unfinished = [path for path in store.rglob("*") if "tmp" in path.name]
    return sorted(store.glob(f"{stage_name}/*/artifact.json")), unfinished


@pytest.mark.rtx
def test_an_unsupported_operator_is_named_with_its_module(compiling, parser):
    block = refusal(
        compiling("compile", "student.family=model.py:Unusual"),
        "onnx-refused", "Det n0 (module odd): ", "operators that this backend has",
    )  # fmt: skip
    assert "where: here" in block


@pytest.mark.parametrize(
    ("sets", "code", "message", "fix"),
    [
        (["quantize.cache=other.cache"], "calib-cache-model", "of another network", "calibrate"),
        (["quantize.cache=no.cache"], "calib-cache-format", "line 1 is 'image", "line 1 is such"),
        (["quantize.cache=gone.cache"], "cache-missing", "no such file", "quantize.cache=PATH"),
    ],
)
def test_a_calibration_cache_is_refused(
    project, compiling, at_h100, sets, code, message, fix, monkeypatch
):
    monkeypatch.chdir(project)
    refusal(compiling("calibrate", *sets), code, message, fix)


@pytest.mark.parametrize(
    ("sets", "code", "message", "fix"),
    [
        (
            ["export.shape={min=[1,3,32,32], opt=[1,3,16,16], max=[1,3,64,64]}"],
            "spec-invalid", "min <= opt <= max", "kdcompile schema",
        ),
        (
            ["compile.dla=2"], "spec-invalid", "compile.dla", "kdcompile schema",
        ),
        (
            ["target=jetson"], "board-mismatch", "compute capability 9.0", "--target",
        ),
        (
            ["quantize.precision=bf16", "compile.backend=onnxruntime"], "precision-unsupported",
            "bf16", "quantize.precision=auto",
        ),
    ],
)  # fmt: skip
def test_what_no_board_could_build_is_refused(compiling, at_h100, sets, code, message, fix):
    refusal(compiling("compile", *sets), code, message, fix)


@pytest.mark.skipif(has_tensorrt, reason="TensorRT is installed here")
@pytest.mark.parametrize("name", ["compile", "build"])
def test_a_build_without_tensorrt_is_exit_4(compiling, project, name):
    """Before anything is trained."""
    before = contents(project)
    found = compiling(name)
    refusal(found, "tensorrt-missing", "No module named", "python3-libnvinfer", exit_code=4)
    assert contents(project) == before
