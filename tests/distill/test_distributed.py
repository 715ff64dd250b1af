"""Two processes of a job: the result of one with twice the batch, and what a lost one does."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from command_line import kdcompile
from forked_job import two_processes
from safetensors.torch import load_file, save_file
from torch import nn

from kdcompile.cli import main
from kdcompile.core.distributed import Processes, lost_rank
from kdcompile.core.errors import KDError

SPEC = """
target = "cpu"
[teacher]
model = "net.py:build"
weights = "teacher.safetensors"
[data]
format = "net.py:photos"
root = "."
files = ["none"]
mean = [0.5]
std = [0.5]
[student]
budget = { width = 0.5 }
crops = 4
[distill]
recipe = "skt"
steps = 12
batch = 2
crop = 16
lr = 1e-2
evaluations = 3
[export]
shape = [1, 1, 16, 16]
[quantize]
images = 4
[gates]
accuracy = { max_increase = "900%", margin = "999%" }
parity = { min_sqnr_db = 0 }
"""
CODE = """
import os
from pathlib import Path
import numpy as np
from torch import nn
from kdcompile.data.photo import Photo


class Net(nn.Sequential):
    # one process is lost in the middle of its training, once
    def forward(self, image):
        fatal = Path(__file__).with_name("fatal")
        if os.environ.get("RANK") == "1" and self.training and fatal.exists():
            left = int(fatal.read_text())
            fatal.write_text(str(left - 1))
            if left == 0:
                fatal.unlink()
                os.kill(os.getpid(), 9)
        return super().forward(image)


def build():
    return Net(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1),
    )


def photos(root, split):
    random = np.random.default_rng({"train.txt": 0, "val.txt": 1, "test.txt": 2}[split])
    made = []
    for i in range(12):
        points = random.uniform(2, 14, (random.integers(1, 5), 2)).astype(np.float32)
        pixels = np.full((16, 16, 1), i, np.uint8)
        for x, y in points.astype(int):
            pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        made.append(Photo(f"{split}{i}", points, array=pixels))
    return made
"""


def _teacher():
    """Counts bright pixels: nine of them are a point."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = torch.eye(3)[1].outer(torch.eye(3)[1]), 0.0
        net[3].weight[0], net[3].bias[0] = 0.0, 0.0
        net[3].weight[0, 0, 1, 1] = 1.0
        net[5].weight.mul_(0.0)
        net[5].weight[0, 0], net[5].bias[:] = 0.3, 0.0
    return net


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kdcompile.toml").write_text(SPEC)
    (tmp_path / "net.py").write_text(CODE)
    save_file(_teacher().state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path


def _by_torchrun(folder, *args):
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "0", "-m", "kdcompile", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment,
        timeout=600,
    )  # fmt: skip


def _forked(folder, monkeypatch, *args):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["kdcompile", *args])
    return two_processes(main, folder)


def _curve(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [
        [row[name] for name in ("step", "loss", "lr", "val_mae") if name in row] for row in rows
    ]


def test_two_processes_train_what_one_trains_with_twice_the_batch(folder, monkeypatch):
    """And one of the two alone exports what both have trained."""
    two = _forked(folder, monkeypatch, "export", "-o", "two.onnx")
    assert [process.code for process in two] == [0, 0], two[0].stderr + two[1].stderr
    assert [process.stdout.count("export: two.onnx") for process in two] == [1, 0]
    (trained,) = (folder / ".kdcompile" / "distill").glob("*/student.safetensors")
    found = json.loads(trained.with_name("result.json").read_text())
    assert found["processes"] == 2
    batch = found["stages"]["distill"]["batch"]
    kdcompile(folder, "distill", "-o", "one", "--set", f"distill.batch={batch}")
    for a, b in zip(_curve(trained.parent), _curve(folder / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    first, second = load_file(trained), load_file(folder / "one" / "student.safetensors")
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-3), name


@pytest.mark.soak
def test_a_lost_process_ends_the_job_and_the_next_one_goes_on(folder):
    (folder / "fatal").write_text("8")
    sets = ("--set", "distill.steps=24", "--set", "distill.recipe=kd")
    lost = _by_torchrun(folder, "distill", *sets)
    assert lost.returncode != 0
    assert not (folder / "fatal").exists()
    assert not list((folder / ".kdcompile" / "distill").glob("*/student.safetensors"))
    again = _by_torchrun(folder, "distill", *sets)
    assert again.returncode == 0, again.stderr
    assert len(list((folder / ".kdcompile" / "distill").glob("*/student.safetensors"))) == 1
    assert not list((folder / ".kdcompile" / "work").glob("distill-*"))


def test_a_loss_that_is_not_finite_in_one_process_names_its_batch(folder, monkeypatch):
    """All stop at the step, and one process runs the batch of the one at fault again."""
    code = CODE.replace(
        "        return super().forward(image)",
        """
        found = super().forward(image)
        is_second = os.environ.get("RANK", "1") == "1"
        return found / 0 if self.training and is_second else found
""",
    )
    (folder / "net.py").write_text(code)
    stopped = _forked(folder, monkeypatch, "distill")
    for process in stopped:
        assert process.code != 0
        assert process.stderr.count("error[loss-nonfinite]: step 1: loss and hard") == 1
    names = {path.name for path in folder.rglob("replay-*.safetensors")}
    assert names == {"replay-1-rank0.safetensors", "replay-1-rank1.safetensors"}
    said = "".join(process.stderr for process in stopped)
    (kept,) = set(re.findall(r"kdcompile distill --replay (\S+) ", said))
    assert kept.endswith("replay-1-rank1.safetensors")
    again = kdcompile(folder, "distill", "--replay", kept, "--json")
    first = json.loads(again.stdout)["nonfinite"][0]
    assert (first["of"], first["name"]) == ("student", "output (Net)")


def test_a_failed_collective_says_what_to_do():
    with pytest.raises(KDError) as error, lost_rank():
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234\ndetails")
    assert error.value.code == "rank-lost"
    assert "Connection closed by peer" in error.value.message
    assert "again" in error.value.fix


def test_one_process_needs_no_group():
    alone = Processes()
    value = torch.ones(2)
    alone.barrier()
    assert alone.is_main
    assert alone.mean(value) is value
    assert alone.gather(value) == [value]
