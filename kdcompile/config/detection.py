"""`[task.head]`: what the outputs of a detector mean, beyond what their shapes tell."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kdcompile.config.distill import Closed

Share = Annotated[float, Field(gt=0, le=1)]


class Head(Closed):
    """How a detector's outputs become boxes."""

    lowest: Share = Field(default=0.01, description="score below which nothing is looked at")
    threshold: Share = Field(default=0.3, description="score of the boxes that people are shown")
    overlap: Share = Field(
        default=0.5, description="above which the worse of two boxes is left out; 1 keeps both"
    )
    scores: Literal["probabilities", "sigmoid", "softmax"] = Field(
        default="probabilities", description="what is still to be done to the scores of ssd, detr"
    )
    background: Literal["none", "first", "last"] = Field(
        default="none", description="the class of these scores that means nothing"
    )
    boxes: Literal["corners", "centre"] = Field(
        default="corners", description="x0 y0 x1 y1, or centre x, centre y, width, height"
    )
    unit: Literal["pixels", "share"] = Field(
        default="pixels", description="of the boxes, in the network's input"
    )
    anchors: Path | None = Field(
        default=None, description=".npz with `anchors` [A, 4]: the boxes are offsets of these"
    )
    variances: tuple[float, float] = Field(
        default=(0.1, 0.2), description="of the offsets of a centre and of a size"
    )
