"""The battery's compiled kernels and its first step, as a machine without the packages has them."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# what the machine is not known to have; PyTorch needs jinja2, filelock and typing-extensions itself
ABSENT = ("pydantic", "pydantic_core", "click", "rich", "onnxslim", "safetensors", "pytest",
          "hypothesis", "markdown_it", "annotated_types")  # fmt: skip
BARE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(code):
    return [sys.executable, "-c", code]


def _compiles(folder, code, **variables):
    """A process in which Triton compiles, with its cache in a folder; what it prints."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder),
                   "PYTHONPATH": str(ROOT / "benchmarks"), **variables}  # fmt: skip
    done = subprocess.run(
        python(code), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LIST = """
from pathlib import Path
import gpu_warm
folder = Path({folder!r})
print(gpu_warm.list_rows(folder, ["density_loss"], 2))
print(gpu_warm.fill(folder, 1)["found"])
"""
# another machine: its Triton's own files have another hash, as with another Python
ADOPT = """
from pathlib import Path
import triton.runtime.cache as cache
own = cache.triton_key()
cache.triton_key = lambda: own + "of another Python"
import gpu_warm
folder = Path({folder!r})
print(gpu_warm.adopt(folder))
done = gpu_warm.fill(folder, 1)
print(done["found"], done["listed"], done["problems"])

import itertools, json
from kernel_rows import rows_of
from static_launches import recorded
from triton import knobs
from triton.runtime import driver
from kdcompile.kernels import _tune
driver.set_active(gpu_warm.StandIn())
hits = {{}}
def listen(metadata, cache_hit, **_):
    hits[metadata["hash"]] = cache_hit
knobs.compilation.listener = listen
listing = gpu_warm.Listing(folder)
for row, index in itertools.product(rows_of(["density_loss"]), range(4)):
    with _tune.config(index):
        steps = recorded(row)
    for launch in (launch for step in steps for launch in step.launches):
        before = len(listing.lines)
        listing.add(launch.function, launch.arguments, launch.options)
        if len(listing.lines) == before:  # one of those that were compiled
            launch.function.device_caches.clear()  # as in a process that has compiled nothing
            launch.function.run(**launch.arguments, **launch.options, grid=(1,), warmup=True)
        listing = gpu_warm.Listing(folder)
print(list(hits.values()))
"""


def test_a_cache_made_here_is_found_elsewhere_by_another_triton_and_by_a_launch(tmp_path):
    made, moved = str(tmp_path / "cache"), str(tmp_path / "there")
    assert _compiles(made, LIST.format(folder=made)).split() == ["2", "0"]
    Path(made).rename(moved)
    adopted, found, launched = _compiles(moved, ADOPT.format(folder=moved)).splitlines()
    assert (adopted, found) == ("2", "2 2 []")
    assert launched == "[True, True]"


def test_the_smoke_step_on_a_machine_without_the_packages(tmp_path):
    """Only PyTorch, Triton and NumPy: neither the battery nor its first step imports more."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    refused = subprocess.run(
        python("import click"), env=environment, capture_output=True, check=False
    )
    assert refused.returncode == 1
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "run", "--backend", "cpu",
               "--minutes", "1", "--out", str(tmp_path / "out"), "--steps", "smoke"]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    assert "1 passed, 0 failed, 0 skipped" in done.stdout
    lines = (tmp_path / "out" / "work" / "results" / "smoke.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert all(json.loads(line)["ok"] for line in lines)
