"""Lay out, call by call, what the GPU machine lacks: packages, kernels, photos, TensorRT."""

import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import gpu_files
from gpu_plan import MIB, Call, Machine, planned, text
from gpu_steps import FIRST, MAIN, OTHERS, ROOT, SECOND, script

# packages that the machine is not known to have: small, and none with a CUDA or PyTorch of its own
CARRIED = (
    "annotated-types", "click", "colorama", "execnet", "filelock", "hypothesis", "iniconfig",
    "jinja2", "markdown-it-py", "markupsafe", "mdurl", "onnxslim", "packaging", "pluggy",
    "pydantic", "pydantic-core", "pygments", "pytest", "pytest-xdist", "rich", "safetensors",
    "sortedcontainers", "typing-extensions", "typing-inspection",
)  # fmt: skip
# those that it has: large, or of its PyTorch
TAKEN = (
    "matplotlib", "ml-dtypes", "numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "scipy",
    "sympy", "torch", "triton",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
FILE_BYTES = 7_400_000  # of a part: seven fill a call that brings nothing else
BACK_BYTES = 6 * MIB  # room of every call for what an earlier one brought back
UNUSED = (".pyc", ".pyi")


def site(folder: Path, machine: Machine) -> Path:
    """`site.zip`: the packages for the machine's Python, in the versions that are installed here.

    Raises:
        SystemExit: pip finds no wheel of one.
    """
    path = folder / "site.zip"
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in CARRIED]
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels]
        pip += ["--only-binary=:all:", "--implementation=cp", f"--python-version={machine.python}"]
        pip += [f"--platform={one}_x86_64" for one in PLATFORMS]
        if subprocess.run([*pip, *wanted], check=False).returncode:
            raise SystemExit(f"no wheels for Python {machine.python} of {', '.join(wanted)}")
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as together:
            for wheel in sorted(Path(wheels).glob("*.whl")):
                with zipfile.ZipFile(wheel) as one:
                    for name in one.namelist():
                        if not name.endswith(UNUSED) and ".data/" not in name:
                            together.writestr(name, one.read(name))
    gpu_files.write(path, stream.getvalue())
    return path


def cache(folder: Path, machine: Machine, jobs: int, tests: bool) -> Path:
    """`cache.tar.xz`: kernels of the rows and of the tests, compiled by the machine's Triton."""
    work = folder / "cache"
    triton = folder / f"triton-{machine.triton}"
    if not triton.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(triton)]
        subprocess.run([*pip, f"triton=={machine.triton}"], check=True)
    own = {**os.environ, "TRITON_STORE_BINARY_ONLY": "1", "TRITON_DEFAULT_FP_FUSION": "1",
           "KDCOMPILE_TUNE": "0"}  # fmt: skip
    run = [script("gpu_warm", "rows", "--folder", work)]
    if tests:
        files = [ROOT / "tests" / "kernels" / f"test_{name}.py" for name in (*MAIN, *OTHERS)]
        run.append(script("gpu_warm", "gate", "--folder", work, *files))
    run.append(script("gpu_warm", "fill", "--folder", work, "--jobs", jobs))
    for command in run:  # the tests run in the interpreter of the Triton that is installed here
        path = {} if "gate" in command else {"PYTHONPATH": str(triton)}
        subprocess.run(command, check=True, env={**own, **path}, cwd=ROOT)
    archive = folder / "cache.tar.xz"
    gpu_files.write(archive, gpu_files.packed(work, "xz"))
    return archive


def photos(folder: Path, data: Path, teacher: Path) -> list[Path]:
    """The data set and its teacher in parts."""
    with tempfile.TemporaryDirectory(dir=folder) as together:
        shutil.copytree(data, Path(together) / "data")
        shutil.copy(teacher, Path(together) / "teacher.safetensors")
        return _parts(folder, "photos", Path(together))


def _parts(folder: Path, name: str, source: Path) -> list[Path]:
    found = []
    for part, piece in gpu_files.parts_of(gpu_files.packed(source), f"{name}.tar.gz", FILE_BYTES):
        found.append(folder / part)
        gpu_files.write(found[-1], piece)
    return found


def tree() -> int:
    """Bytes of the project itself."""
    names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return gpu_files.tree_bytes([ROOT / n for n in names if n and (ROOT / n).is_file()])


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def commit() -> str:
    """What is packed, "+dirty" where it differs from its commit."""
    head = _git("rev-parse", "--short=10", "HEAD").strip()
    return f"{head}+dirty" if _git("status", "--porcelain") else head


def lay_out(
    folder: Path, files: Sequence[Path], parts: dict[str, list[Path]], machine: Machine
) -> list[Call]:
    """The calls' folders, `call01` and so on; the plan in `plan.txt` and in words.

    Raises:
        ValueError: what a call must carry is over its limit.
    """
    gpu_files.write(folder / "commit.txt", f"{commit()}\n".encode())
    files = [*files, folder / "commit.txt"]
    base = [*((path.name, path.stat().st_size) for path in files), ("back", BACK_BYTES)]
    sized = {n: [(p.name, p.stat().st_size) for p in paths] for n, paths in parts.items()}
    steps = [(s.name, s.seconds, s.needs) for s in FIRST]
    size = tree()
    calls = planned(steps, sized, base, size, machine)
    print(text(calls, size, machine))
    if "tensorrt" in parts:  # another half hour, which brings the photos again
        second = planned([(s.name, s.seconds, s.needs) for s in SECOND], sized, base, size, machine)
        print("\nanother half hour\n" + text(second, size, machine))
        calls += second
    where = {path.name: path for path in [*files, *(p for ps in parts.values() for p in ps)]}
    for number, call in enumerate(calls, 1):
        own = folder / f"call{number:02d}"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        for name, _ in call.files:
            if name in where:
                os.link(where[name], own / name)
    return calls


def add_back(folder: Path, back: Path) -> None:
    """What an earlier call brought back, into the folder of every call."""
    size = gpu_files.tree_bytes([p for p in back.iterdir() if p.is_file()])
    if size > BACK_BYTES:
        print(f"{back} has {size} bytes of {BACK_BYTES}: what is half done stays here")
    for own in folder.glob("call??"):
        shutil.rmtree(own / "back", ignore_errors=True)
        (own / "back").mkdir()
        for path in back.iterdir():
            if path.is_file() and (size <= BACK_BYTES or gpu_files.KEPT not in path.name):
                shutil.copy(path, own / "back" / path.name)


def pack(
    folder: Path, data: Path | None, teacher: Path | None, tensorrt: Path | None,
    jobs: int, tests: bool, machine: Machine,
) -> None:  # fmt: skip
    """Everything, and then the plan; what an earlier call of the same commit made is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "made.json"
    made = {"commit": commit(), "machine": [machine.python, machine.triton], "tests": tests}
    old = json.loads(stamp.read_text()) if stamp.is_file() else {}
    names = [folder / "site.zip", folder / "cache.tar.xz"]
    if old != made or "+dirty" in made["commit"] or not all(path.is_file() for path in names):
        names = [site(folder, machine), cache(folder, machine, jobs, tests)]
        gpu_files.write_json(stamp, made)
    parts: dict[str, list[Path]] = {}
    if data is not None and teacher is not None:
        parts["photos"] = photos(folder, data, teacher)
    if tensorrt is not None:
        parts["tensorrt"] = _parts(folder, "tensorrt", tensorrt)
    calls = lay_out(folder, names, parts, machine)
    print(f"\n{len(calls)} folders in {folder}; in each call, with its folder carried:")
    print(f"    python3 benchmarks/gpu.py run --carried {folder}/callNN --out FOLDER --minutes 9")
    print("with --minutes 0 where it only brings files; the second half hour adds --second")
