"""The steps of the battery, the most valuable first: what each runs on a GPU, and small on a CPU.

On a CPU the same programs run at toy size, kernels in Triton's interpreter and engines in ONNX
Runtime, so that what would break there breaks here; what a CPU cannot do is skipped with a reason.
"""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
MAIN = ("adapter_cosine", "skt_tap", "gram_relation", "kd_kl")
OTHERS = (
    "token_graph", "absmax_histogram", "channel_kl", "feature_mse", "attention_transfer",
    "batch_relation", "density_loss", "fake_quant", "crop_augment", "norm_direction",
)  # fmt: skip
TOY = ("density_loss", "fake_quant")  # quick in the interpreter
AHEAD = 4  # processes that compile references at full size, a tenth of the card's memory each
Command = list[str]


@dataclass(frozen=True)
class Place:
    """Where the battery runs: the backend, its folders, and how many processes it may start."""

    backend: str  # cuda or cpu
    work: Path
    jobs: int

    @property
    def results(self) -> Path:
        """What comes back."""
        return self.work / "results"

    @property
    def is_toy(self) -> bool:
        """Whether everything is small, for a dry run."""
        return self.backend == "cpu"


@dataclass(frozen=True)
class Step:
    """One step: its commands, one after the other, each with exit code 0 done and 5 go on later.

    seconds: the most that it may take in a call. needs: groups of files that must be there.
    tests: the command is pytest, and where it skips everything the step counts as skipped.
    """

    name: str
    seconds: int
    commands: Callable[[Place], Sequence[Command]]
    needs: tuple[str, ...] = ()
    on_gpu_only: str = ""  # why a CPU skips it
    tests: bool = False


def script(name: str, *arguments: object) -> Command:
    """A program of this folder."""
    return [sys.executable, str(BENCHMARKS / f"{name}.py"), *map(str, arguments)]


def pytest(*arguments: object) -> Command:
    """The test runner, which must not import the package from the tree."""
    quiet = ["-q", "-rs", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    return [sys.executable, "-P", "-m", "pytest", *quiet, *map(str, arguments)]


def _smoke(place: Place) -> list[Command]:
    out = place.results / "smoke.jsonl"
    if place.is_toy:
        toy = ("--device", "cpu", "--size", "tiny", "--jobs", 1, "--kernel", *TOY)
        return [script("gpu_smoke", "--out", out, *toy)]
    return [script("gpu_smoke", "--out", out, "--jobs", place.jobs)]


def _gate(place: Place) -> list[Command]:
    files = [ROOT / "tests" / "kernels" / f"test_{name}.py" for name in (*MAIN, *OTHERS)]
    report = f"--junitxml={place.results / 'gate.xml'}"
    if place.is_toy:
        toy = ROOT / "tests" / "kernels" / "test_fake_quant.py"
        return [pytest(report, "-p", "no:xdist", toy, "-k", "upstream or strided")]
    # a warning of other versions of the packages is no fault of a kernel
    return [pytest(report, "-W", "default", "-n", place.jobs, "--dist", "load", *files)]


def _warm(place: Place) -> list[Command]:
    """What the list of the cache has and the cache lacks is compiled, and the launchers."""
    cache = place.work / "cache"
    toy = ("--kernel", "density_loss", "--most", 2) if place.is_toy else ()
    listed = (cache / "launches.jsonl").is_file()
    first = [] if listed else [script("gpu_warm", "rows", "--folder", cache, *toy)]
    launchers = () if place.is_toy else ("--launchers",)
    jobs = 1 if place.is_toy else place.jobs
    return [*first, script("gpu_warm", "fill", "--folder", cache, "--jobs", jobs, *launchers)]


def _rows(*names: str) -> Callable[[Place], list[Command]]:
    def commands(place: Place) -> list[Command]:
        out = ("--no-gate", "--out", place.results / "kernels.csv")
        if place.is_toy:
            toys = [word for name in TOY for word in ("--kernel", name)]
            return [script("kernels", *out, "--toy", *toys)] if names == MAIN else []
        chosen = [word for name in names for word in ("--kernel", name)]
        return [script("kernels", *out, "--ahead", AHEAD, *chosen)]

    return commands


def _ncu(place: Place) -> list[Command]:
    return [script("gpu_ncu", "--rows", place.results / "kernels.csv",
                   "--out", place.results / "ncu.csv")]  # fmt: skip


def _distill(part: str, *more: object) -> Callable[[Place], list[Command]]:
    def commands(place: Place) -> list[Command]:
        work = ("--work", place.work / "kept" / "distill", "--out", place.results / "distill")
        if place.is_toy:
            toy = place.work / "toy"
            small = ("batch=2", "crop=16", "evaluations=1")
            sets = [w for s in small for w in ("--set", f"distill.{s}")]
            own = ("--data", toy, "--teacher", toy / "w.safetensors", *sets,
                   "--spec", toy / "kdcompile.toml", "--set", "student.crops=2")  # fmt: skip
            short = ("--rounds", 1, "--round-steps", 2, "--starts", "inherit",
                     "--terms", "none", "unlabelled", "--steps", 2)  # fmt: skip
            return [*_toy(place), script("distill", part, *work, *own, *short)]
        return [script("distill", part, *work, *_photos(place), *more)]

    return commands


def _toy(place: Place) -> list[Command]:
    """The toy task, where it is not written yet."""
    folder = place.work / "toy"
    return [] if (folder / "kdcompile.toml").is_file() else [script("gpu_toy", folder)]


def _photos(place: Place) -> tuple[object, ...]:
    """The data set and its teacher, as `gpu.py pack --photos --teacher` lays them out."""
    photos = place.work / "photos"
    return ("--data", photos / "data", "--teacher", photos / "teacher.safetensors")


def _test_cuda(place: Place) -> list[Command]:
    workers = ("-p", "no:xdist") if place.is_toy else ("-n", max(1, place.jobs // 4))
    workers = (*workers, "-W", "default")
    report = f"--junitxml={place.results / 'test_cuda.xml'}"
    return [pytest(report, *workers, ROOT / "tests" / "distill" / "test_cuda.py")]


def _unpack(place: Place) -> list[Command]:
    parts = place.work / "tensorrt"
    return [["bash", str(parts / "unpack.sh"), str(parts), str(place.work / "trt")]]


def _via(place: Place) -> str:
    return f"python:{place.work / 'trt' / 'bin' / 'python'}"


def _engines(place: Place) -> list[Command]:
    out = ("--work", place.work / "kept" / "engines", "--out", place.results / "engines.json")
    if place.is_toy:
        sets = ("distill.steps=0", "quantize.images=2", "student.crops=2",
                "gates.accuracy.max_increase=100000%", "gates.accuracy.margin=100000%",
                "gates.parity.min_sqnr_db=-200")  # fmt: skip
        toy = ("--backend", "onnxruntime", "--spec", place.work / "toy", "--images", 2,
               "--photos", 1, "--turns", 2, "--iterations", 1)  # fmt: skip
        sets_given = (w for s in sets for w in ("--set", s))
        return [*_toy(place), script("engines", "measure", *out, *toy, *sets_given)]
    student = BENCHMARKS / "models" / "csrnet_quarter_sha.safetensors"
    sets = ("compile.workspace_mb=4096", "gates.accuracy.max_increase=25%",
            "gates.accuracy.margin=40%")  # fmt: skip
    own = ("--target", "h100", "--via", _via(place), *_photos(place), "--student", student)
    return [script("engines", "measure", *out, *own, *(w for s in sets for w in ("--set", s)))]


def _calibrate(place: Place) -> list[Command]:
    name, seconds = ("cpu", 20) if place.is_toy else ("h100", 150)
    via = () if place.is_toy else ("--via", _via(place))
    command = ("-P", "-m", "kdcompile", "targets", "calibrate", name, "--seconds", seconds, *via)
    return [[sys.executable, *map(str, command)]]


def _ranking(place: Place) -> list[Command]:
    if place.is_toy:
        toy = ("--seconds", 1, "--most", 2, "--precision", "fp32")
        return [script("ranking", *toy, "-o", place.results / "ranking_cpu.json")]
    own = ("--target", "h100", "--via", _via(place), "--seconds", 150)
    return [script("ranking", *own, "-o", place.results / "ranking_h100.json")]


def _searched(place: Place) -> list[Command]:
    out = ("--out", place.results / "searched_card.json")
    if place.is_toy:
        sets = ("distill.batch=2", "distill.crop=16", "search.space=layers", "search.finalists=0",
                "distill.evaluations=1", "student.crops=2")  # fmt: skip
        toy = ("--spec", place.work / "toy", "--target", "cpu", "--precision", "fp32",
               "--steps", 1, "--speedup", 1.5)  # fmt: skip
        sets_given = (w for s in sets for w in ("--set", s))
        return [*_toy(place), script("searched_card", *out, *toy, *sets_given)]
    sets = ("--set", "search.measure=6", "--set", "compile.workspace_mb=4096")
    own = ("--target", "h100", "--via", _via(place), *_photos(place), *sets)
    return [script("searched_card", *out, *own, "--steps", 2000)]


NO_PROFILER = "ncu profiles a GPU"
NO_BOARD = "TensorRT needs a GPU; the steps after it take ONNX Runtime"
FIRST = (
    Step("smoke", 90, _smoke),
    Step("warm", 90, _warm),
    Step("gate", 120, _gate, tests=True),
    Step("main rows", 240, _rows(*MAIN)),
    Step("other rows", 300, _rows(*OTHERS), on_gpu_only="toy rows are in the step before"),
    Step("ncu", 60, _ncu, on_gpu_only=NO_PROFILER),
    Step("speed", 120, _distill("speed", "--rounds", 3), needs=("photos",)),
    Step("test_cuda", 100, _test_cuda, tests=True),
    Step("ablation", 420, _distill("ablation", "--starts", "inherit", "--terms", "none", "kd",
         "skt", "unlabelled", "--steps", 300, "--seconds", 40), needs=("photos",)),
)  # fmt: skip
SECOND = (
    Step("tensorrt", 60, _unpack, needs=("tensorrt",), on_gpu_only=NO_BOARD),
    Step("engines", 400, _engines, needs=("photos", "tensorrt")),
    Step("calibrate", 200, _calibrate, needs=("tensorrt",)),
    Step("ranking", 200, _ranking, needs=("tensorrt",)),
    Step("searched", 500, _searched, needs=("photos", "tensorrt")),
)
STEPS = {step.name: step for step in (*FIRST, *SECOND)}


def reason_to_skip(step: Step, place: Place) -> str | None:
    """Why a step cannot run here, or None."""
    if place.is_toy:
        return step.on_gpu_only or None
    missing = [name for name in step.needs if not (place.work / name).is_dir()]
    if missing:
        return f"not brought here whole: {', '.join(missing)}"
    if step.name == "ncu" and shutil.which("ncu") is None:
        return "ncu is not on the path"
    return None
