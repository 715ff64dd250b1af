"""`kdcompile init`: a packed example, or a commented spec for the user's own teacher."""

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from kdcompile.core.errors import KDError, nearest

EXAMPLES = "kdcompile.examples"
NOT_COPIED = ("__init__.py", "__pycache__")
TEMPLATE = """\
# What kdcompile builds. `kdcompile schema` prints every field; `kdcompile plan` shows the steps.
# Only [teacher] and [data] are needed; every other value below is the default.
# Paths are relative to this file.
# The defaults are for counting people on photos. For classes or values change: task.kind,
# data.format, data.train, data.val, data.test, data.mean, data.std, distill.recipe, distill.crop,
# distill.scale, export.shape. A whole spec of classes: kdcompile init --example cifar10 FOLDER

target = "jetson"                # `kdcompile targets` lists them
seed = 0

[task]
kind = "counting"                # counting: a density map, whose sum is the count;
                                 # classification: logits; regression: one value

[teacher]                        # your trained network
model = "model.py:build"         # a function beside this file that returns the torch module,
                                 # or an installed "package.module:function"
weights = "weights.safetensors"  # its weights: safetensors, a state_dict or a checkpoint of one
# [[teachers]]                   # more of them, for recipe mixture, with the same two fields
# model = "other.py:build"
# weights = "other.safetensors"

[data]                           # photos with points, classes or values
format = "points-jsonl"          # points: points-jsonl, shanghaitech-mat; labels: imagefolder,
                                 # npz; either: "module.py:function"
root = "data"
train = "train.txt"              # one image name a line; the three splits share no image
val = "val.txt"                  # imagefolder: "val", a folder with a folder a class or a
test = "test.txt"                # labels.csv; npz: "file.npz:train@0[:8000]"
annotations = "annotations.jsonl"
# unlabelled = "pool"            # photos without annotations: kdcompile plan --label N
# files = ["*.npz"]             # what a data factory reads, globs under root; all of it by default
mean = [0.485, 0.456, 0.406]     # what the teacher was trained with, per channel, of 0..1;
                                 # grey: one number each, and export.shape [1, 1, ...]
std = [0.229, 0.224, 0.225]
sigma = 1.0                      # width of a point in the training density, in output cells
# max_test = 24                  # judge on fewer test images; the verdict says so

[student]
family = "shrink"                # the teacher with fewer channels; "search": see [search]; or
                                 # "module.py:function"
budget = { width = 0.25 }        # exactly one of: speedup, latency_ms, macs, width
init = "inherit"                 # from the teacher's channels; or "random"; or
                                 # "file", with weights = "student.safetensors"
importance = "activation"        # how inherited channels are ranked; or "taylor"
crops = 32                       # training crops that inheriting looks at

[search]                         # read where family = "search"; needs another budget than width
space = "auto"                   # staged: new blocks; layers: the teacher's own; auto: both
blocks = ["conv", "separable", "repvgg", "bottleneck"]
scales = [1.0, 0.75, 0.5]        # of the input's sides
candidates = 10000               # students whose latency is predicted
finalists = 3                    # of each space, distilled for a short time
finalist_steps = 200
measure = 0                      # best students built and timed: kdcompile search --measure K

[distill]
recipe = "skt"                   # counting; for any task none, kd, ...: `kdcompile recipes`
taps = "auto"                    # or pairs of module names: [["frontend.1", "frontend.1"]]
# steps = 6000                   # the length: one of steps, or epochs = 40, or minutes = 30
batch = 16                       # images a step and process
crop = 512                       # side of the square training crop, pixels: within the images
scale = [0.7, 1.4]               # random zoom of a crop
flip = true
colour = 0.2                     # brightness and contrast jitter
views = 0                        # crops an image that recur; 0: a new one each time
# lr = 0.0001                    # the default where the student inherits; elsewhere 0.001
weight_decay = 0.0001
warmup = 0.05                    # share of the steps
ema = 0.999
clip = 1.0                       # largest gradient norm
reduction = "mean"               # of the feature losses: mean, or as in the paper
balance = "fixed"                # of the terms; gradient: of equal gradient, times their weights
temperature = 4.0                # softens logits
hard = "l2"                      # label loss of regression; or "l1"
evaluations = 10                 # validations during training
execution = "auto"               # how a step runs on a GPU: eager, compile, graph; or the fastest
teacher_cache_mb = 2048          # room for the teacher's outputs of recurring crops
# weights = { soft = 0.5 }       # loss weights by term, over the recipe's own; or a ramp:
                                 # { soft = { start = 4.0, end = 0.0, curve = "cosine" } }
# A progressive schedule: what a stage does not name is as above.
# [[distill.stages]]
# name = "blocks"
# share = 0.25                   # of the whole length; or steps, in every stage
# blocks = true                  # gradients stop at the taps: each block learns from its own
# [[distill.stages]]
# name = "polish"
# share = 0.75
# lr = 0.0003

[export]
shape = [1, 3, 576, 768]         # batch, channels, height, width of the deployed network: yours,
                                 # such as [1, 3, 32, 32]; or:
# shape = { min = [1, 3, 384, 512], opt = [1, 3, 576, 768], max = [1, 3, 1024, 1024] }

[quantize]
precision = "auto"               # fp32, fp16, bf16, int8, fp8, mixed; auto: the fastest that passes
calibrator = "entropy"           # entropy, percentile, mse, minmax
images = 128                     # training photos that the ranges are found on
select = "even"                  # which: even, random, pcoreset (covers the outputs)
# cache = "calibration.cache"    # ranges from a TensorRT calibration cache instead
refine = []                      # equalise, bias, rounding; each is kept only where it helps
qad = false                      # true: the student is trained for int8
qad_scales = "learnt"            # learnt, observed
qad_start = 0.5                  # share of the steps before the student is quantised

[compile]                        # for the engine of `--via PLACE`
backend = "auto"                 # the target's own; kdcompile bench --help lists the others
workspace_mb = 1024              # builder's scratch memory; a board shares its memory
# optimization_level = 3         # 0 to 5
deterministic = false            # rebuild from the timing cache only
# dla = 0                        # core of a Jetson; the GPU takes the layers that it cannot
sparsity = false                 # 2:4 kernels where the weights are sparse

[gates]                          # what must be proven; each may say required, evidence
accuracy = { max_increase = "5%", margin = "15%" }  # metric = "mae", "rmse" or "top1", if given
parity = { min_sqnr_db = 20.0 }  # deployed network against the trained one
# speedup = { min = 3.0 }        # of another device: predicted, until it is measured there
# size_mb = { max = 8 }          # the largest deployable file, 10^6 bytes
# energy_mj = { max = 12 }       # of one inference, read at the board
# memory_mb = { max = 500 }      # peak, 10^6 bytes
# strata = { margin = "30%" }    # every density third, or class, no worse either
# flips = { max = "5%", tolerance = "100%" }     # photos that got worse
# previous = { bundle = "dist/v1", max_flips = "5%" }  # or: kdcompile build --baseline dist/v1
"""


def example_names() -> list[str]:
    """The examples that this installation carries."""
    return sorted(
        entry.name
        for entry in files(EXAMPLES).iterdir()
        if entry.is_dir() and entry.joinpath("kdcompile.toml").is_file()
    )


def init_example(name: str, folder: Path) -> list[Path]:
    """Copy an example, ready for `kdcompile build`, into a folder.

    Returns:
        The files that were written.

    Raises:
        KDError: `example-unknown`, `init-exists` or `output-unwritable`; nothing was written
            in the first two cases.
    """
    known = example_names()
    if name not in known:
        raise KDError(
            "example-unknown",
            f"there is no example {name!r}{nearest(name, known)}",
            where="kdcompile init --example",
            fix=f"use one of {', '.join(known)}",
        )
    content = dict(_walk(files(EXAMPLES).joinpath(name)))
    return _write(folder, {path: source.read_bytes() for path, source in content.items()})


def init_template(folder: Path) -> list[Path]:
    """Write a commented `kdcompile.toml` for the user's own teacher.

    Returns:
        The files that were written.

    Raises:
        KDError: `init-exists` or `output-unwritable`.
    """
    return _write(folder, {"kdcompile.toml": TEMPLATE.encode()})


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.name in NOT_COPIED or entry.name.startswith("."):  # a store of a build in place
            continue
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def _write(folder: Path, content: dict[str, bytes]) -> list[Path]:
    targets = {folder / name: data for name, data in sorted(content.items())}
    for path in targets:
        if path.exists() or path.is_symlink():
            raise KDError(
                "init-exists",
                f"{path.name} is there already and is not overwritten",
                where=str(path.absolute()),
                fix="name an empty folder, or move the file away",
            )
    try:
        for path, data in targets.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                stream.write(data)
    except OSError as error:
        raise KDError(
            "output-unwritable",
            f"the files cannot be written: {error.strerror}",
            where=str(folder.absolute()),
            fix="name a writable folder",
        ) from error
    return list(targets)
