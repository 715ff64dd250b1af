"""`[export]`: the input of the deployed network."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from kdcompile.config.distill import Closed

MOST_PIXELS = 1 << 28  # of a batch, as of a bundle's input: more takes all memory


def _of_a_photo(shape: list[int]) -> list[int]:
    batch, _, height, width = shape
    if batch * height * width > MOST_PIXELS:
        raise ValueError(f"{batch} x {height} x {width} is more than {MOST_PIXELS} pixels")
    return shape


Shape = Annotated[
    list[Annotated[int, Field(ge=1)]],
    Field(min_length=4, max_length=4),
    AfterValidator(_of_a_photo),
]


class Shapes(Closed):
    """Input shapes of a dynamic export: [N, C, H, W], where N, H and W may vary."""

    min: Shape
    opt: Shape
    max: Shape

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        ordered = all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True))
        same = self.min[1] == self.opt[1] == self.max[1]
        if not ordered or not same or self.min[0] != 1:
            raise ValueError(
                "min <= opt <= max, with the same channels and the smallest batch 1, must hold"
            )
        return self


def _kind_of_shape(given: Any) -> str:
    """So that an error is about the form that was written, and not about the other one too."""
    return "<range>" if isinstance(given, dict | Shapes) else "<fixed>"


class TensorInput(Closed):
    """One named input of a network that takes other tensors than an image."""

    shape: list[Annotated[int, Field(ge=1)]] = Field(
        max_length=8, description="of one sample, its batch axis included; [] of a number"
    )
    dtype: Literal["float32", "float16", "int64", "int32", "uint8", "int8", "bool"] = "float32"

    @model_validator(mode="after")
    def _of_a_sample(self) -> Self:
        if math.prod(self.shape) > MOST_PIXELS:
            raise ValueError(f"{self.shape} is more than {MOST_PIXELS} values")
        return self


class Export(Closed):
    """The input shape of the deployed network: fixed, or a range; or its named inputs.

    Latencies are of the typical shape; with a typical batch over 1 they are of the whole batch.
    """

    shape: Annotated[
        Annotated[Shape, Tag("<fixed>")] | Annotated[Shapes, Tag("<range>")],
        Discriminator(_kind_of_shape),
    ] = Field(default=[1, 3, 576, 768])
    inputs: dict[str, TensorInput] = Field(
        default={}, description="in place of shape, in the order of the network's arguments"
    )

    preprocess: Literal["host", "in-graph"] = Field(
        default="host",
        description="who normalises: the program that reads the photo, or the network itself, "
        "which then takes its pixels as uint8 [N, H, W, C]",
    )

    nms: Literal["none", "in-graph"] = Field(
        default="none",
        description="of detection: whether the bundle also has the network with its boxes decoded "
        "and suppressed inside",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.inputs and "shape" in self.model_fields_set:
            raise ValueError("name either shape, of one image, or inputs")
        if self.nms != "none" and self.is_dynamic:
            raise ValueError('nms = "in-graph" needs one fixed shape')
        return self

    @property
    def profile(self) -> tuple[list[int], list[int], list[int]]:
        """Smallest, typical and largest input shape, [N, C, H, W]; or that of the first input."""
        if self.inputs:
            first = next(iter(self.inputs.values())).shape
            return first, first, first
        if isinstance(self.shape, Shapes):
            return self.shape.min, self.shape.opt, self.shape.max
        return self.shape, self.shape, self.shape

    @property
    def is_dynamic(self) -> bool:
        """True when batch, height or width may vary."""
        low, _, high = self.profile
        return low != high
