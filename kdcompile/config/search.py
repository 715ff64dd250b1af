"""The `[search]` section of a spec: where a student of family `search` is looked for."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdcompile.config.distill import Closed

Block = Literal["conv", "separable", "repvgg", "bottleneck"]
SCALES = (1.0, 0.75, 0.5)
NO_EFFECT = ("blocks_trained", "block_steps", "jobs")  # fields that earlier versions read


class Search(Closed):
    """The space of students and what is spent on their evidence."""

    space: Literal["auto", "staged", "layers"] = Field(
        default="auto",
        description="staged: new blocks at the teacher's stages; layers: its own layers, narrower "
        "or dropped; auto: both, as far as this teacher has them",
    )
    blocks: Annotated[list[Block], Field(min_length=1)] = Field(
        default=["conv", "separable", "repvgg", "bottleneck"], description="of a staged student"
    )
    scales: Annotated[list[float], Field(min_length=1)] = Field(
        default=[1.0, 0.75, 0.5], description="of the input's sides, of a staged student"
    )
    candidates: int = Field(
        default=10_000, ge=10, description="students whose latency is predicted"
    )
    blocks_trained: int = Field(default=60, ge=1, description="no effect; will be refused")
    block_steps: int = Field(default=150, ge=1, description="no effect; will be refused")
    finalists: int = Field(default=3, ge=0, description="of each space, distilled for a short time")
    finalist_steps: int = Field(default=200, ge=1, description="of one finalist")
    measure: int = Field(default=0, ge=0, description="best students built and timed, at most")
    jobs: int = Field(default=0, ge=0, description="no effect; will be refused")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("blocks", "scales"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names one twice")
        if not set(self.scales) <= set(SCALES):
            raise ValueError(f"scales are of {', '.join(map(str, SCALES))}")
        return self
