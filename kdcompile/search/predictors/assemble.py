"""Assemble a student from separately trained blocks, with a head solved for the teacher.

Alone, a block saw what the teacher has before it; in the student it sees what the blocks before it
made of that. So each in turn is trained longer on what really enters, and makes good what
it can of their errors. The head is linear: its weights are those of a ridge regression of the
teacher's output on the last stage's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.sources import source_key
from kdcompile.core.store import Artifact, Store, digest
from kdcompile.distill.inherit.solve import fit
from kdcompile.models.factory import write_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.models.staged import StagedStudent
from kdcompile.search.predictors.block_data import (
    BlockContext,
    BlockOptions,
    TrainingData,
    training_data,
)
from kdcompile.search.predictors.block_distillation import BlockResult, distil_block, train_stage
from kdcompile.search.predictors.teacher_features import AT_ONCE, rows_of
from kdcompile.search.spaces.staged import Block, blocks_of

AGAIN = 4  # a block is then trained so many times as long on what really enters
STAGE, WEIGHTS = "assembled", "initial.safetensors"


def assemble(context: BlockContext, architecture: Mapping[str, Any]) -> Artifact:
    """The student's start, `initial.safetensors`, unless the store has it; stage `assembled`.

    Blocks that were not measured yet are trained first. `meta` has `output_error`, the squared
    error against the teacher's output on held-out crops, relative to its variance.

    Raises:
        KDError: `assemble-family`, `assemble-stages`, or those of `distil_block`.
    """
    blocks = matching_blocks(context, architecture)
    results = [distil_block(context, block) for block in blocks]
    store = Store(context.root)
    key = start_key(context, architecture, store)

    def build(folder: Path) -> Mapping[str, Any]:
        data = training_data(context)
        student = student_from_architecture(data.teacher, architecture, context.spec.folder)
        assert isinstance(student, StagedStudent), "a staged architecture makes one"
        error = assemble_weights(student, results, data, context.options, int(key[:8], 16))
        write_weights(folder / WEIGHTS, student.state_dict())
        record = {"output_error": error, "block_errors": [result.error for result in results]}
        write_json(folder / "result.json", record)
        return record

    return store.make(STAGE, key, build)


def matching_blocks(context: BlockContext, architecture: Mapping[str, Any]) -> list[Block]:
    """The blocks of a student that has one for each cut of the teacher.

    Raises:
        KDError: `assemble-family` or `assemble-stages`.
    """
    if architecture["family"] != "staged":
        raise KDError(
            "assemble-family",
            f"a student of family {architecture['family']!r} has no blocks to put together",
            where="architecture.json",
            fix='set search.space = "staged"',
        )
    blocks, data = blocks_of(architecture), training_data(context)
    if len(blocks) != len(data.cuts):
        raise KDError(
            "assemble-stages",
            f"the student has {len(blocks)} stages, the teacher {len(data.cuts)}",
            where="architecture.json",
            fix=f"give it {len(data.cuts)} stages, one for each of "
            + ", ".join(cut.name for cut in data.cuts),
        )
    return blocks


def start_key(context: BlockContext, architecture: Mapping[str, Any], store: Store) -> str:
    """The key of an assembled start."""
    options = context.options
    parts = [context.key, architecture, options.steps, options.batch, options.lr]
    return digest([*parts, source_key(__name__, store.hasher)])


def assemble_weights(
    student: StagedStudent,
    results: Sequence[BlockResult],
    data: TrainingData,
    options: BlockOptions,
    seed: int,
) -> float:
    """Set the student's weights in place; its relative output error on held-out crops.

    Args:
        student: comes back on the training data' device, in inference mode.
        results: its blocks, in order.
        known: the training data.
        options: each stage is trained `AGAIN` times `steps` more by them.
        seed: of the batches.
    """
    student.to(data.fit.device).eval()
    options = replace(options, steps=options.steps * AGAIN)
    x = _run_batched(student.resize, data.fit)
    for module, result in zip(student.stages, results, strict=True):
        module.load_state_dict(result.state())
        train_stage(data, result.block, module, x, options, seed + result.block.index)
        x = _run_batched(module, x)
    _solve_head(student, x, _run_batched(data.teacher, data.fit))
    made, requested = (_run_batched(network, data.held) for network in (student, data.teacher))
    wrong = (made - requested).double().square().sum()
    spread = (requested - requested.mean(0)).double().square().sum()
    return float(wrong / spread.clamp(min=1e-30))


@torch.no_grad()
def _solve_head(student: StagedStudent, features: Tensor, outputs: Tensor) -> None:
    """The linear layer of the head, from the last stage's maps to the teacher's outputs."""
    head = student.head
    layer: nn.Conv2d | nn.Linear
    if isinstance(head, nn.Conv2d):
        if features.shape[2:] != outputs.shape[2:]:  # as the student resizes its output
            features = nn.functional.interpolate(
                features, outputs.shape[2:], mode="bilinear", align_corners=False
            )
        layer, x, y = head, rows_of(features, 0), rows_of(outputs, 0)
    else:
        assert isinstance(head, nn.Sequential), "a head pools if it is no convolution"
        last = head[-1]
        assert isinstance(last, nn.Linear), "a pooled head ends in a linear layer"
        layer = last
        x, y = features.mean((2, 3)), outputs
    prior = x.new_zeros(1, x.shape[1], y.shape[1])
    solution, _ = fit(x[None], y[None], prior, intercept=True, gate=None)
    layer.weight.copy_(solution.weight[0].T.float().reshape(layer.weight.shape))
    assert layer.bias is not None, "the head has a bias"
    layer.bias.copy_(solution.bias[0, 0].float())


@torch.no_grad()
def _run_batched(function: Any, images: Tensor) -> Tensor:
    return torch.cat([function(part) for part in torch.split(images, AT_ONCE)])
