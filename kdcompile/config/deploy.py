"""`[quantize]` and `[compile]`: the precision of the deployed network and how it is built."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from kdcompile.config.distill import Closed
from kdcompile.config.named import Named
from kdcompile.core.backends import names
from kdcompile.core.errors import nearest

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "mixed"]
Profile = tuple[Sequence[int], Sequence[int], Sequence[int]]  # smallest, usual, largest shape
Refinement = Literal["equalise", "bias", "rounding"]


class Quantize(Closed):
    """The precision of the deployed network and how its ranges are found."""

    precision: Literal["auto", Precision] = Field(
        default="auto", description="auto keeps the fastest that passes; mixed is int8 and fp16"
    )
    calibrator: Annotated[str, Named("calibrators")] = "entropy"
    images: int = Field(default=128, ge=1)
    cache: Path | None = Field(
        default=None, description="a TensorRT calibration cache to take the ranges from"
    )
    select: Literal["even", "random", "pcoreset"] = Field(
        default="even", description="which training images calibrate; pcoreset covers the outputs"
    )
    refine: list[Refinement] = Field(
        default=[], description="each is kept only where it measurably helps"
    )
    qad: bool = Field(default=False, description="quantisation-aware distillation")
    qad_scales: Literal["learnt", "observed"] = "learnt"
    qad_start: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5, description="share of the steps before the student is quantised"
    )

    @model_validator(mode="after")
    def _one_source_of_scales(self) -> Self:
        if self.qad and (self.refine or self.cache is not None):
            raise ValueError("qad trains the scales; it goes with neither refine nor cache")
        if self.cache is not None and self.refine:
            raise ValueError("refine finds ranges anew; it does not go with cache")
        return self


def _known_backend(name: str) -> str:
    """A registered backend's name, or `auto`."""
    known = ("auto", *names())
    if name not in known:
        raise ValueError(f"no backend {name!r}{nearest(name, known)}; one of {', '.join(known)}")
    return name


class Compile(Closed):
    """How the engine is built and run."""

    backend: Annotated[
        str,
        AfterValidator(_known_backend),
        WithJsonSchema({"type": "string", "enum": ["auto", *names()]}),
    ] = "auto"
    workspace_mb: int = Field(default=1024, ge=16, description="builder's scratch memory")
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    deterministic: bool = Field(
        default=False, description="rebuild from the timing cache only, so engines are equal"
    )
    dla: int | None = Field(default=None, ge=0, le=1, description="core; the GPU takes the rest")
    tf32: bool = Field(default=True, description="fp32 is multiplied in TF32, where the GPU has it")
    sparsity: bool = Field(default=False, description="2:4 kernels where the weights are sparse")

    @model_validator(mode="after")
    def _tensorrt_only(self) -> Self:
        level = self.optimization_level is not None
        asked = self.dla is not None or self.sparsity or self.deterministic or level
        asked |= not self.tf32
        if asked and self.backend not in ("auto", "tensorrt"):
            raise ValueError(
                "dla, sparsity, deterministic, optimization_level and tf32 = false need "
                'backend = "tensorrt"'
            )
        return self
