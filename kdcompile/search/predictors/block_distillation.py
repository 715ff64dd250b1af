"""Block distillation: train one block of a student to do what the teacher does between two cuts.

Its input is what the teacher has at the cut before (the image for the first), reduced to the
channels and the pixels that the student has there; its target is the next cut, reduced likewise.
What is evaluated is all of that cut as the teacher's next stage sees it: every channel, at the next
cut's resolution, weighed by what the output makes of it, as far as a linear map finds it in the
block's output on held-out crops. So a block pays for channels it does not have, and for resolution
that it lost and the teacher keeps. Blocks are independent: no result depends on another block.

After m2mKD (Lo et al., 2402.16918), whose modules are trained one by one too, there against a
loss at the output of a hybrid network.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.core.files import write_json
from kdcompile.core.sources import source_key
from kdcompile.core.store import Store, digest
from kdcompile.distill.inherit.solve import Solution, fit
from kdcompile.models.factory import read_weights, write_weights
from kdcompile.models.staged import SCALES, stage
from kdcompile.search.predictors.block_data import (
    BlockContext,
    BlockOptions,
    TrainingData,
    training_data,
)
from kdcompile.search.predictors.teacher_features import (
    AT_ONCE,
    at_next_cut,
    at_size,
    rows_of,
    teacher_maps,
    weighted_error,
)
from kdcompile.search.predictors.worker_pool import evaluate_all
from kdcompile.search.spaces.staged import Block

DEMAND_FLOOR = 0.1  # of the mean: a channel that the output hardly reads is trained all the same


@dataclass(frozen=True)
class BlockResult:
    """How well a block imitates its cut.

    error: squared error over all channels of the cut at the teacher's resolution, weighed by
    `TrainingData.demands`, relative to their variance so weighed, on held-out crops; error_sd: its
    standard error over those crops; seconds: that it took when it was measured; path: its weights.
    """

    block: Block
    error: float
    error_sd: float
    seconds: float
    path: Path

    def state(self) -> dict[str, Tensor]:
        """The stage's weights by name."""
        return read_weights(self.path)[0]


def block_key(context: BlockContext, block: Block, store: Store) -> str:
    """The key of a block's result in the store: no budget, no target, no other block."""
    options = context.options
    return digest(
        {
            "lessons": context.key,
            "block": asdict(block),
            "options": [options.steps, options.batch, options.lr],
            "source": source_key(__name__, store.hasher),
        }
    )


def stored_result(context: BlockContext, block: Block) -> BlockResult | None:
    """A block's result where the store has it."""
    store = Store(context.root)
    entry = store.find("block", block_key(context, block, store))
    return None if entry is None else _result(block, entry.path, entry.meta)


def distil_block(context: BlockContext, block: Block) -> BlockResult:
    """Train and evaluate a block, unless the store has it; stage `block`.

    Raises:
        KDError: `evidence-gone`, or those of the teacher.
    """
    store = Store(context.root)
    key = block_key(context, block, store)

    def build(folder: Path) -> Mapping[str, Any]:
        start = time.perf_counter()
        module, found = train_block(
            training_data(context), block, context.options, int(key[:8], 16)
        )
        write_weights(folder / "block.safetensors", module.state_dict())
        record = {**found, "seconds": time.perf_counter() - start}
        write_json(folder / "result.json", {**record, "block": asdict(block)})
        return record

    entry = store.make("block", key, build)
    return _result(block, entry.path, entry.meta)


def distil_blocks(
    context: BlockContext, blocks: Sequence[Block], jobs: int
) -> dict[Block, BlockResult]:
    """`distil_block` of each distinct block, in parallel processes."""
    distinct = list(dict.fromkeys(blocks))
    found = {block: stored_result(context, block) for block in distinct}
    missing = [block for block in distinct if found[block] is None]
    made = evaluate_all(partial(distil_block, context), missing, jobs, "blocks")
    found |= dict(zip(missing, made, strict=True))
    return {block: result for block, result in found.items() if result is not None}


def _result(block: Block, path: Path, meta: Mapping[str, Any]) -> BlockResult:
    numbers = {name: float(meta[name]) for name in ("error", "error_sd", "seconds")}
    return BlockResult(block=block, path=path / "block.safetensors", **numbers)


def train_block(
    data: TrainingData, block: Block, options: BlockOptions, seed: int
) -> tuple[nn.Module, dict[str, float]]:
    """The trained stage, in inference mode, with `error`, `error_sd` and the last `loss`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = stage(block.settings, block.in_width).to(data.fit.device)
    maps = _maps(data, block, data.fit)
    inputs = torch.cat([block_input(data, block, batch, before) for batch, before, _ in maps])
    loss = train_stage(data, block, module, inputs, options, seed)
    error, error_sd = block_error(data, block, module)
    return module, {"error": error, "error_sd": error_sd, "loss": loss}


def block_input(data: TrainingData, block: Block, images: Tensor, before: Tensor | None) -> Tensor:
    """What enters a block: `before` are the teacher's maps at the cut before, None for the first.

    Returns:
        [N, in_width, h, w] at the student's resolution.
    """
    parts, of = SCALES[block.scale]
    size = [-(-side * parts // (of * block.before)) for side in images.shape[2:]]
    if before is None:
        if size == list(images.shape[2:]):
            return images
        return functional.interpolate(images, size, mode="bilinear", align_corners=False)
    return at_size(data.kept_channels(block.index - 1, before, block.in_width), size)


def _maps(
    data: TrainingData, block: Block, images: Tensor
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Images, the cut before (None for the first block) and the block's own cut, batch by batch."""
    names = [cut.name for cut in data.cuts[max(0, block.index - 1) : block.index + 1]]
    for batch, maps in teacher_maps(data.teacher, names, images):
        yield batch, maps[0] if block.index else None, maps[-1]


def train_stage(
    data: TrainingData,
    block: Block,
    module: nn.Module,
    inputs: Tensor,
    options: BlockOptions,
    seed: int,
) -> float:
    """Train a stage on the fit crops, in place; it comes back in inference mode.

    Args:
        known: the training data.
        block: what the stage is.
        module: the stage.
        inputs: what enters it for each fit crop, [N, in_width, h, w].
        options: steps, batch and rate.
        seed: of the batches.

    Returns:
        The last loss, relative to the targets' variance.
    """
    size = _size_after(module, inputs)
    targets = torch.cat(
        [
            at_size(data.kept_channels(block.index, own, block.width), size)
            for _, _, own in _maps(data, block, data.fit)
        ]
    )
    demand = data.demands[block.index].diagonal()[data.orders[block.index][: block.width]]
    weights = functional.pad(demand + DEMAND_FLOOR * demand.mean(), (0, block.width - len(demand)))
    loss = _train(module, (inputs, targets, weights), options, seed)
    recompute_statistics(module, inputs)
    module.eval()
    return loss


@torch.no_grad()
def _size_after(module: nn.Module, x: Tensor) -> Sequence[int]:
    was_training = module.training
    size = module.eval()(x[:1]).shape[2:]
    module.train(was_training)
    return [int(side) for side in size]


def _train(
    module: nn.Module,
    samples: tuple[Tensor, Tensor, Tensor],
    options: BlockOptions,
    seed: int,
) -> float:
    """Adam under a cosine; the last mean loss, relative to the targets' variance.

    The lesson is inputs, targets, and weights of the channels. The last ReLU is left out of the
    loss: what should be positive is compared before it, so that no channel is dead from the start,
    and what should be zero need only be negative (the convex loss of a `solve.Gate`).
    """
    inputs, targets, per_channel = samples
    weights = per_channel[:, None, None]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), options.lr)
    spread = (targets.var(dim=(0, 2, 3)) * per_channel).mean().clamp(min=1e-12)
    before_last_relu: list[Tensor] = []
    last = [part for part in module.modules() if isinstance(part, nn.ReLU)][-1]
    hook = last.register_forward_pre_hook(lambda _m, given: before_last_relu.append(given[0]))
    module.train()
    total = spread * 0.0
    for step in range(options.steps):
        picks = torch.randint(len(inputs), (options.batch,), generator=generator)
        picks = picks.to(inputs.device)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * (1 + math.cos(math.pi * step / options.steps)) / 2
        module(inputs[picks])
        wanted, made = targets[picks], before_last_relu.pop()
        wrong = torch.where(wanted > 0, made - wanted, made.clamp(min=0))
        loss = (wrong.square() * weights).mean() / spread
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total = torch.lerp(total, loss.detach(), 0.1) if step else loss.detach()
    hook.remove()
    return float(total)


@torch.no_grad()
def recompute_statistics(module: nn.Module, inputs: Tensor) -> None:
    """Set the batch normalisations' statistics to the mean over all batches of some inputs."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    was_training = module.training
    module.train()
    for part in torch.split(inputs, AT_ONCE):
        module(part)
    module.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def block_error(data: TrainingData, block: Block, module: nn.Module) -> tuple[float, float]:
    """The error of a stage in inference mode on held-out crops, and its standard error."""
    solution, mean = _reading(data, block, module)
    weight, bias = solution.weight[0].float(), solution.bias[0, 0].float()
    wrongs, spreads = [], []
    for batch, before, whole in _maps(data, block, data.held):
        own = at_next_cut(data.cuts, block.index, whole)
        made = module(block_input(data, block, batch, before))
        # a 1x1 map and a resize commute; the narrower order is the cheaper one
        read = torch.einsum("dc,ndhw->nchw", weight, made) + bias[:, None, None]
        difference = at_size(read, own.shape[2:]) - own
        wrongs.append(weighted_error(difference, data.demands[block.index]))
        spreads.append(weighted_error(own - mean, data.demands[block.index]))
    wrong, spread = torch.cat(wrongs).cpu(), torch.cat(spreads).cpu()
    error, count = float(wrong.sum() / spread.sum().clamp(min=1e-30)), len(wrong)
    residual = (wrong - error * spread).square().sum() * count / max(1, count - 1)
    return error, float(residual.sqrt() / spread.sum().clamp(min=1e-30))


def _reading(data: TrainingData, block: Block, module: nn.Module) -> tuple[Solution, Tensor]:
    """From the fit crops: the linear map from a block's channels to all channels of its cut.

    And their mean, [C, 1, 1].
    """
    made_rows, own_rows = [], []
    for batch, before, whole in _maps(data, block, data.fit):
        own = at_next_cut(data.cuts, block.index, whole)
        made = at_size(module(block_input(data, block, batch, before)), own.shape[2:])
        made_rows.append(rows_of(made, block.index))
        own_rows.append(rows_of(own, block.index))
    x, y = torch.cat(made_rows)[None], torch.cat(own_rows)[None]
    prior = x.new_zeros(1, x.shape[2], y.shape[2])
    return fit(x, y, prior, intercept=True, gate=None)[0], y[0].mean(0)[:, None, None]
