"""Write a spec that fits a network and the data: `kdcompile init --from model.py:build`.

The network's input is found by one forward pass at each of a few likely sizes, the first that it
takes; the task follows from the shape of its output; format, splits and classes from the data.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os.path import relpath
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdcompile.config.spec import IMAGENET_MEAN, IMAGENET_STD, Data
from kdcompile.config.template import write_new
from kdcompile.core.errors import KDError
from kdcompile.core.escape import first_line, toml
from kdcompile.data.masks import IGNORED, mask_of
from kdcompile.data.recognise import recognise
from kdcompile.data.recognised import FACTORY, Recognised
from kdcompile.data.splits import Splits, load_splits
from kdcompile.models.factory import build_model, load_weights
from kdcompile.passes.refusals import sizes_of, typical_size
from kdcompile.tasks.detection.decode import find_decoder
from kdcompile.tasks.task import find_task

USUAL_SIZES = (224, 32, 28, 64, 96, 128, 192, 256, 384, 448, 512)
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
LARGEST_CROP, CELL = 512, 32
LOOKED_AT = 50  # masks, for the index that stands for no class
RECIPES = {
    "counting": "skt", "classification": "kd", "regression": "kd", "segmentation": "kd",
    "detection": "kd",
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """What is known of a network.

    Args:
        shape: the input that it takes, [1, C, H, W].
        output: the shape of what it gives.
        kinds: the tasks that this may be of.
    """

    shape: list[int]
    output: list[int]
    kinds: Sequence[str]


def init_fitted(
    factory: str, data: Path, folder: Path, weights: Path | None, target: str
) -> list[Path]:
    """Write a spec for a network and its data, and a data factory where no format reads them.

    Args:
        factory: as `[teacher] model` names it; its file lies in `folder`.
        data: the folder of the data.
        folder: of the spec.
        weights: the network's; None for the only file of weights in `folder`.
        target: the device.

    Returns:
        The files that were written.

    Raises:
        KDError: `init-data`, `init-weights`, `init-input`, `init-output`, `init-unfit`,
            `init-exists`; those of the factory, the weights and the data.
    """
    weights = weights or _only_weights(folder)
    network = build_model(factory, folder).float().eval()
    load_weights(network, weights)
    found = recognise(data)
    splits = _splits(found, data)
    fit = _fitted(network, splits, factory)
    if found.kind not in fit.kinds and found.also is not None and found.also.kind in fit.kinds:
        found = found.also
        splits = _splits(found, data)
    found = _with_void(found, fit, splits)
    _refuse_unfit(fit, found, splits, factory)
    spec = _text(factory, weights, data, folder, target, network, found, fit, splits)
    content = {"kdcompile.toml": spec.encode()}
    if found.factory is not None:
        content[FACTORY] = found.factory.encode()
    return write_new(folder, content)


def _with_void(found: Recognised, fit: Fit, splits: Splits) -> Recognised:
    """With the index of pixels that masks say nothing of: the one that no output stands for."""
    if any(photo.mask is None for photo in splits.train):
        return found
    seen = {int(k) for photo in splits.train[:LOOKED_AT] for k in np.unique(mask_of(photo))}
    beyond = sorted(k for k in seen if k >= fit.output[1] and k != IGNORED)
    if len(beyond) != 1:
        return found
    return replace(found, fields=found.fields | {"ignore_index": beyond[0]})


def _only_weights(folder: Path) -> Path:
    found = sorted(p for p in folder.glob("*") if p.suffix in WEIGHTS and p.is_file())
    if len(found) == 1:
        return found[0]
    names = " and ".join(path.name for path in found[:3])
    raise KDError(
        "init-weights",
        f"there are {names}" if found else "there is no file of weights",
        where=str(folder.absolute()),
        fix="name the teacher's weights: --weights FILE",
    )


def _splits(found: Recognised, root: Path) -> Splits:
    """The images; a data factory is run from a temporary folder."""
    fields = found.fields | {"root": root.resolve()}
    with tempfile.TemporaryDirectory() as place:
        if found.factory is not None:
            Path(place, FACTORY).write_text(found.factory)
        return load_splits(Data.model_validate(fields), Path(place))


def _fitted(network: nn.Module, splits: Splits, factory: str) -> Fit:
    """The first likely input that the network takes.

    Raises:
        KDError: `init-input` or `init-output`.
    """
    reason = ""
    for shape in _shapes(network, splits):
        try:
            with torch.no_grad():
                output = network(torch.zeros(shape))
        except Exception as error:  # whatever the user's forward raises
            reason = reason or first_line(error)
            continue
        given = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if isinstance(given, list) and (kinds := _kinds_of(tuple(given))):
            return Fit(shape, given, kinds)
        raise KDError(
            "init-output",
            f"{factory} gives {given} for an input of {shape}",
            where=factory,
            fix="return one tensor from forward(): a density map [N, 1, h, w], logits [N, K], one "
            "value [N, 1], logits of pixels [N, K, h, w], or a head of boxes that a decoder knows "
            "(docs/tasks.md); for other outputs write the spec by hand, kdcompile init",
        )
    raise KDError(
        "init-input",
        f"{factory} takes none of the likely inputs; of the first one it says: {reason}",
        where=factory,
        fix="write the spec by hand, kdcompile init, with the network's input in export.shape",
    )


def _kinds_of(output: tuple[int, ...]) -> list[str]:
    """The tasks that an output of this shape may be of."""
    return [kind for kind in RECIPES if find_task(kind).check_output(output) is None]


def _shapes(network: nn.Module, splits: Splits) -> Iterator[list[int]]:
    """Likely inputs: of the images, if all are of one size; of the network's own hints; usual."""
    sizes: list[tuple[int, int]] = []
    every = sizes_of(splits)
    if len(set(every)) == 1:
        sizes.append(every[0])
    hinted = getattr(network, "default_cfg", None) or getattr(network, "pretrained_cfg", None)
    if isinstance(hinted, Mapping) and "input_size" in hinted:
        sizes.append(tuple(hinted["input_size"])[1:])
    for name in ("image_size", "img_size", "input_size"):
        value = getattr(network, name, None)
        value = (value, value) if isinstance(value, int) else value
        if isinstance(value, Sequence) and len(value) == 2:
            sizes.append((int(value[0]), int(value[1])))
    height, width = typical_size(splits) or (USUAL_SIZES[0], USUAL_SIZES[0])
    if min(height, width) >= 2 * CELL:
        sizes.append((height // CELL * CELL, width // CELL * CELL))
    sizes += [(side, side) for side in USUAL_SIZES]
    grey = all(photo.array is not None and photo.array.shape[2] == 1 for photo in splits.train)
    for channels in (1, 3) if grey else (3, 1):
        for size in dict.fromkeys(sizes):
            yield [1, channels, *size]


def _refuse_unfit(fit: Fit, found: Recognised, splits: Splits, factory: str) -> None:
    """Refuse a network whose output is not what the data has labels for.

    Raises:
        KDError: `init-unfit`.
    """
    problem = None
    if found.kind is None or found.kind not in fit.kinds:
        may = " or ".join(fit.kinds)
        problem = f"its output {fit.output} is for {may}, the data is for {found.kind}"
    elif found.kind in ("classification", "detection"):
        task = find_task(found.kind)
        is_class = found.kind == "classification"
        labels = [photo.labelled() for photo in splits.train] if is_class else []
        names = splits.classes or tuple(found.classes) or None
        problem = task.check_labels(labels, task.outputs_of(tuple(fit.output)), names)
    if problem is not None:
        raise KDError(
            "init-unfit",
            f"{factory} does not fit the data: {problem}",
            where=f"--from {factory}",
            fix="name the network that was trained on this data, or its data with --data",
        )


def _text(
    factory: str,
    weights: Path,
    data: Path,
    folder: Path,
    target: str,
    network: nn.Module,
    found: Recognised,
    fit: Fit,
    splits: Splits,
) -> str:
    """The spec; a comment stands where something was guessed."""
    _, channels, height, width = fit.shape
    crop = min(height, width, LARGEST_CROP)
    mean, std, source = _normalisation(network, channels)
    fields = "\n".join(f"{name} = {toml(value)}" for name, value in found.fields.items())
    classes = f"  # {len(found.classes)} classes" if found.classes else ""
    kind = str(found.kind)
    guessed = [one for one in fit.kinds if one != kind]
    if guessed:
        classes += (
            f"{',' if classes else '  #'} by the data: the output may be of {' or '.join(guessed)}"
        )
    if kind == "detection":
        classes += f"\ndecode = {toml(find_decoder(None, {'boxes': tuple(fit.output)}))}"
        classes += "  # guessed by the output's shape: see docs/tasks.md"
    zoom = "" if kind == "counting" else "scale = [1.0, 1.25]               # random zoom\n"
    return f"""# Written by kdcompile init; `kdcompile plan` shows what it builds.
# `kdcompile init FOLDER` writes every field with its default.

target = {toml(target)}

[task]
kind = {toml(kind)}{classes}

[teacher]                         # gives {fit.output}
model = {toml(factory)}
weights = {toml(_relative(weights, folder))}

[data]                            # {len(splits.train)} images to train, {len(splits.val)} to \
validate, {len(splits.test)} to test on
{fields}
root = {toml(_relative(data, folder))}
mean = {toml(mean)}  # {source}
std = {toml(std)}

[student]
budget = {{ width = 0.5 }}          # or speedup, latency_ms, macs

[distill]
recipe = {toml(RECIPES[kind])}
crop = {crop}
{zoom}
[export]
shape = {toml(fit.shape)}

[quantize]
images = {min(128, len(splits.train))}
"""


def _normalisation(network: nn.Module, channels: int) -> tuple[list[float], list[float], str]:
    """Mean and deviation that the network was trained with, as far as it says so."""
    for name in ("pretrained_cfg", "default_cfg"):
        known = getattr(network, name, None)
        with suppress(KeyError, TypeError):
            mean, std = list(known["mean"]), list(known["std"])  # type: ignore[index]
            if len(mean) == len(std) == channels:
                return mean, std, f"of the network's {name}"
    check = "as the teacher was trained with: check these"
    if channels == len(IMAGENET_MEAN):
        return list(IMAGENET_MEAN), list(IMAGENET_STD), check
    return [0.0] * channels, [1.0] * channels, check


def _relative(path: Path, folder: Path) -> str:
    """A path as the spec's folder sees it, where it lies in it."""
    inside = path.resolve().is_relative_to(folder.resolve())
    return relpath(path.resolve(), folder.resolve()) if inside else str(path.resolve())
