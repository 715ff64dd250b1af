"""The `[search]` section of a spec, and `[distill]`: one training, or a schedule of stages."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

RATE = 1e-3  # from random weights
INHERITED_RATE = 1e-4  # at higher ones the first steps may lose it: benchmarks/README.md
MOST_LR = 1e3  # far more than trains anything, and far less than a float32 holds
Taps = Literal["auto"] | list[tuple[str, str]]
Scale = tuple[float, float]
Block = Literal["conv", "separable", "repvgg", "bottleneck"]
SCALES = (1.0, 0.75, 0.5)


class Closed(BaseModel):
    """A section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Ramp(Closed):
    """A loss weight that goes from one value to another over its stage."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    curve: Literal["linear", "cosine"] = "linear"


Weights = dict[str, float | Ramp]


class DistillStage(Closed):
    """One stage of a progressive schedule: what it does not name is as in `[distill]`."""

    name: str = Field(min_length=1)
    share: float | None = Field(default=None, gt=0, le=1, description="of the whole length")
    steps: int | None = Field(default=None, ge=1)
    recipe: str | None = None
    taps: Taps | None = None
    blocks: bool = Field(
        default=False, description="gradients stop at the taps: each block learns from its own"
    )
    batch: int | None = Field(default=None, ge=1)
    crop: int | None = Field(default=None, ge=8)
    scale: Scale | None = None
    flip: bool | None = None
    colour: float | None = Field(default=None, ge=0, le=1)
    views: int | None = Field(default=None, ge=0)
    unlabelled: float | None = Field(default=None, ge=0, lt=1)
    lr: float | None = Field(default=None, gt=0, le=MOST_LR)
    weight_decay: float | None = Field(default=None, ge=0)
    warmup: float | None = Field(default=None, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    weights: Weights | None = None
    balance: Literal["fixed", "gradient"] | None = None


class Distill(Closed):
    """The training of the student."""

    recipe: str = "skt"
    steps: int | None = Field(default=None, ge=0, description="0: the student as it starts")
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    taps: Taps = "auto"
    batch: int = Field(default=16, ge=1, description="images a step and process")
    crop: int = Field(default=512, ge=8, description="side of the square training crop, pixels")
    scale: Scale = Field(default=(0.7, 1.4), description="random zoom of a crop")
    flip: bool = True
    colour: float = Field(default=0.2, ge=0, le=1, description="brightness and contrast jitter")
    views: int = Field(
        default=0, ge=0, description="crops an image that recur; 0: a new one each time"
    )
    unlabelled: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="share of a batch that images of data.unlabelled take; 0 leaves them out",
    )
    lr: float = Field(
        default=RATE,
        gt=0,
        le=MOST_LR,
        description=f"by default {INHERITED_RATE} where the student inherits",
    )
    range_test: bool = Field(
        default=True,
        description="short trainings at rising rates set lr where the student starts from trained "
        "weights; by default only where lr is not named",
    )
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    ema: float = Field(default=0.999, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    reduction: Literal["mean", "paper"] = "mean"
    weights: Weights = Field(default={}, description="loss weights by term, fixed or ramped")
    balance: Literal["fixed", "gradient"] = Field(
        default="fixed", description="gradient: terms of equal gradient, times their weights"
    )
    temperature: float = Field(default=4.0, gt=0, description="softens logits (Hinton, 2015)")
    hard: Literal["l1", "l2"] = Field(default="l2", description="label loss of regression")
    calibrate_output: bool = Field(
        default=True,
        description="fit a scale (counting), scale and offset (regression) or temperature "
        "(classification) after training; kept where photos that it was not fitted on gain",
    )
    evaluations: int = Field(default=10, ge=1, description="validations during training")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the networks in training; auto: bfloat16 on a GPU that has it, float32 "
        "on a CPU, where bfloat16 is several times faster with AMX",
    )
    execution: Literal["auto", "eager", "compile", "graph"] = Field(
        default="auto",
        description="how a step runs on a GPU; auto times them and keeps the fastest",
    )
    teacher_cache_mb: int = Field(
        default=2048, ge=0, description="room for the teacher's outputs of recurring crops"
    )
    stages: list[DistillStage] = Field(default=[], description="a progressive schedule")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [n for n in ("steps", "epochs", "minutes") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"name one of steps, epochs, minutes, not {' and '.join(given)}")
        for scale in (self.scale, *(s.scale for s in self.stages if s.scale is not None)):
            if not 0 < scale[0] <= scale[1]:
                raise ValueError("scale needs 0 < low <= high")
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_rate_that_is_named_stays(cls, given: Any) -> Any:
        """It is taken as it is, unless the test is asked for too."""
        named = isinstance(given, dict) and "lr" in given
        return {"range_test": False, **given} if named else given

    @model_validator(mode="after")
    def _stages_fill_the_length(self) -> Self:
        if not self.stages:
            return self
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("each stage needs a name of its own")
        shares = [stage.share for stage in self.stages]
        steps = [stage.steps for stage in self.stages]
        if None not in steps and shares == [None] * len(shares):
            if self.steps is not None or self.epochs is not None or self.minutes is not None:
                raise ValueError("stages with steps are the whole length; name no other")
            return self
        total = sum(share for share in shares if share is not None)
        if None in shares or any(n is not None for n in steps) or abs(total - 1) > 1e-6:
            raise ValueError("stages name either steps, all of them, or shares that sum to 1")
        return self


NO_EFFECT = ("blocks_trained", "block_steps", "jobs")  # fields that earlier versions read


class Search(Closed):
    """The space of students and what is spent on their evidence."""

    space: Literal["auto", "staged", "layers"] = Field(
        default="auto",
        description="layers: the teacher's own, narrower or dropped; staged: new blocks at its "
        "stages; auto: layers, or staged where these give no student within the budget",
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
    finalists: int = Field(default=3, ge=0, description="distilled for a short time")
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
