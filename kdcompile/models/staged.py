"""Family `staged`: a student of its own design, one stage after another at falling resolution.

    {"family": "staged", "seed": 0, "input_scale": 1.0, "in_channels": 3, "out_channels": 1,
     "head": "dense", "output_stride": 8, "stages": [{"block": "conv", "width": 24, "depth": 2,
     "stride": 2, "down": "pool", "dilation": 1}, ...]}

A stage is `depth` blocks of one kind (`kdcompile.models.blocks`) and ends in ReLU. Its `stride` of
1, 2 or 4 is a max-pooling before the first block (`down` "pool") or the first block's own
("stride"). Sizes are rounded up at every step, so the stages together give ceil(H / stride).

Head `dense`: a 1x1 convolution, then, where the stages and `input_scale` end at fewer pixels than
one for each `output_stride` of the image, a bilinear resize of the output to
ceil(H / output_stride). That keeps an output's values and not its sum: the head learns, as
part of its weights, a density by the teacher's cell. Head `pooled`: the mean over all pixels and a
linear layer; `output_stride` is not read.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kdcompile.core.errors import KDError, nearest
from kdcompile.models.blocks import BLOCKS, window

SCALES = {1.0: (1, 1), 0.75: (3, 4), 0.5: (1, 2)}
CHOICES = {"block": tuple(BLOCKS), "stride": (1, 2, 4), "down": ("pool", "stride")}
STAGE_KEYS = ("block", "width", "depth", "stride", "down", "dilation")
KEYS = {"input_scale", "in_channels", "out_channels", "head", "output_stride", "stages"}


class StagedStudent(nn.Module):
    """The network of a `staged` architecture.

    `stages` is a list with one module a stage, which maps [N, width before, H, W] to
    [N, width, ceil(H / stride), ceil(W / stride)]; `head` follows the last.
    """

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        """Untrained weights, from torch's global generator.

        Raises:
            KDError: `architecture-invalid`: a value that is not allowed; `architecture-stride`:
                the stages end at more pixels than the teacher's output has.
        """
        super().__init__()
        _check_complete(architecture, KEYS)
        self.scale = _choose(architecture, "input_scale", SCALES)
        inputs = int(architecture["in_channels"])
        stages: list[nn.Module] = []
        for settings in architecture["stages"]:
            stages.append(stage(settings, inputs))
            inputs = int(settings["width"])
        self.stages = nn.ModuleList(stages)
        outputs = int(architecture["out_channels"])
        self.output_stride: int | None = None  # set where the output is resized
        if _choose(architecture, "head", {"dense": True, "pooled": False}):
            self.head: nn.Module = nn.Conv2d(inputs, outputs, 1)
            if cells(architecture) < 1:
                self.output_stride = int(architecture["output_stride"])
        else:
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs)
            )

    def forward(self, image: Tensor) -> Tensor:
        """[N, in_channels, H, W] to the output of the head."""
        x = self.resize(image)
        for each in self.stages:
            x = each(x)
        output: Tensor = self.head(x)
        if self.output_stride is None:
            return output
        return _resize(output, image, 1, self.output_stride)

    def resize(self, image: Tensor) -> Tensor:
        """The image as the first stage takes it: [N, C, ceil(scale H), ceil(scale W)]."""
        parts, of = self.scale
        return image if parts == of else _resize(image, image, parts, of)


def stage(settings: Mapping[str, Any], inputs: int) -> nn.Sequential:
    """One stage: a max-pooling if it has one, then its blocks.

    Raises:
        KDError: `architecture-invalid`.
    """
    _check_complete(settings, set(STAGE_KEYS))
    for name, known in CHOICES.items():
        _choose(settings, name, dict.fromkeys(known))
    for name in ("width", "depth", "dilation"):
        if settings[name] < 1:
            raise _invalid(f"a {name} of {settings[name]}", "use 1 or more")
    stride, dilation, width = settings["stride"], settings["dilation"], int(settings["width"])
    block = BLOCKS[settings["block"]]
    modules: list[nn.Module] = []
    if settings["down"] == "pool" and stride > 1:
        modules.append(nn.MaxPool2d(stride, stride, ceil_mode=True))
        stride = 1
    for number in range(settings["depth"]):
        strides = stride if number == 0 else 1
        modules.append(block(width if number else inputs, width, window(strides, dilation)))
    return nn.Sequential(*modules)


def cells(architecture: Mapping[str, Any]) -> Fraction:
    """Output cells of the stages for each cell of the teacher's output, along one axis: at most 1.

    Raises:
        KDError: `architecture-stride`, where it would be more.
    """
    parts, of = SCALES[architecture["input_scale"]]
    stride = Fraction(of, parts)
    for settings in architecture["stages"]:
        stride *= settings["stride"]
    requested = int(architecture["output_stride"])
    if stride < requested:
        raise KDError(
            "architecture-stride",
            f"the student's stages end at stride {float(stride):g}, the output has {requested}",
            where="architecture.json, stages",
            fix=f"give the stages strides whose product, over input_scale, is at least {requested}",
        )
    return requested / stride


def _resize(x: Tensor, image: Tensor, parts: int, of: int) -> Tensor:
    """To ceil(size * parts / of) of the image's size."""
    # not -(-a // b): ONNX divides integers towards zero
    size = [(side * parts + of - 1) // of for side in image.shape[2:]]
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _check_complete(settings: Mapping[str, Any], keys: set[str]) -> None:
    absent = sorted(keys - settings.keys())
    if absent:
        raise KDError(
            "architecture-invalid",
            f"the staged student's {', '.join(absent)} is not given",
            where="architecture.json",
            fix=f"give {', '.join(sorted(keys))}",
        )


def _choose(settings: Mapping[str, Any], name: str, known: Mapping[Any, Any]) -> Any:
    value = settings[name]
    if value not in known:
        raise _invalid(
            f"{name} = {value!r}{nearest(str(value), map(str, known))}",
            f"use one of {', '.join(map(str, known))}",
        )
    return known[value]


def _invalid(what: str, fix: str) -> KDError:
    return KDError(
        "architecture-invalid", f"a staged student has no {what}", "architecture.json", fix
    )
