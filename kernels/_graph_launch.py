"""The launches of `token_graph`, as operators."""

from collections.abc import Sequence
from math import log
from typing import Any

import torch
from torch import Tensor

from kdcompile.kernels._graph import (
    _token_graph_bwd_kernel,
    _token_graph_fwd_kernel,
    _token_rows_join_kernel,
)
from kdcompile.kernels._graph_rows import _token_rows_bwd_kernel, _token_rows_kernel
from kdcompile.kernels._maps import ceil_div, power_of_two
from kdcompile.kernels._ops import operator
from kdcompile.kernels._runtime import dot_precision
from kdcompile.kernels._tune import Config, best, shape_class

EPS = 1e-12  # a token no longer than this counts as zero
LIFT = 2.0**14  # keeps the weights of the last product, at most 2, in float16's normal range
SHARPEST = 0.03  # a lower temperature leaves float32's range: each row finds its maximum
ROWS = 128  # each graph's tokens are padded to a multiple of this, the largest block
PROGRAMS = 132  # multiprocessors of an H100: fewer blocks of rows are split by columns
_KEYS = ("ROWS", "COLS", "STEP", "WIDE", "SPLITS", "num_warps", "num_stages")


def _configs(*rows: tuple[int, ...]) -> Sequence[Config]:
    return [dict(zip(_KEYS, row, strict=True)) for row in rows]


# STEP 256 keeps the rows' tokens on the chip; 128 rows are two warp groups' products of an H100
FORWARD = _configs(
    (128, 64, 64, 0, 4, 8, 2), (128, 64, 256, 0, 4, 8, 1), (128, 32, 256, 0, 4, 8, 2),
    (64, 64, 256, 0, 2, 4, 1), (64, 32, 64, 0, 2, 4, 2),
)  # fmt: skip
BACKWARD = _configs(
    (128, 32, 256, 256, 4, 8, 1), (128, 32, 256, 256, 4, 8, 2), (64, 32, 256, 256, 2, 4, 2),
    (128, 32, 64, 128, 4, 8, 2), (64, 64, 64, 256, 4, 8, 2),
)  # fmt: skip
ROOM = 163840  # bytes of shared memory that the first of BACKWARD takes; the last is for less
FLOAT32 = _configs((64, 32, 32, 128, 2, 8, 2), (32, 32, 32, 128, 2, 4, 2))  # forward and backward


def _graphs(tokens: Tensor) -> Tensor:
    """[G, M, d] with either the features or the tokens innermost."""
    graphs = tokens if tokens.dim() == 3 else tokens[None]
    return graphs if _is_last(graphs) or graphs.mT.is_contiguous() else graphs.contiguous()


def _is_last(graphs: Tensor) -> bool:
    return graphs.is_contiguous()


def _sizes(student: Tensor, teacher: Tensor) -> tuple[int, int, int, int, int]:
    """Tokens a graph, the same padded, padded tokens of all graphs, and padded widths."""
    count, tokens = student.shape[:2]
    padded = ceil_div(tokens, ROWS) * ROWS
    widths = (power_of_two(t.shape[2], 16) for t in (student, teacher))
    return (tokens, padded, count * padded, *widths)  # type: ignore[return-value]


def _splits(config: Config, blocks: int) -> int:
    """Programs that share the columns of a block of rows."""
    return max(1, min(config["SPLITS"], PROGRAMS // blocks))


def backward_configs(student: Tensor) -> Sequence[Config]:
    """Configurations of the backward kernel, first one that this card has room for."""
    if student.dtype == torch.float32:
        return FLOAT32
    if student.is_cuda:
        properties = torch.cuda.get_device_properties(student.device)
        if getattr(properties, "shared_memory_per_block_optin", 0) < ROOM:
            return BACKWARD[::-1]
    return BACKWARD


def _constants(student: Tensor, teacher: Tensor, config: Config, splits: int) -> dict[str, Any]:
    """What the forward and the backward kernel share."""
    wide_s, wide_t = _sizes(student, teacher)[3:]
    step_s, step_t = min(config["STEP"], wide_s), min(config["STEP"], wide_t)
    return {
        "SPAN_S": ceil_div(student.shape[2], step_s) * step_s,
        "SPAN_T": ceil_div(teacher.shape[2], step_t) * step_t,
        "STEP_S": step_s, "STEP_T": step_t, "STRIDE_S": wide_s, "STRIDE_T": wide_t,
        "PRECISION": dot_precision(), "SPLITS": splits,
        "ROWS": config["ROWS"], "COLS": config["COLS"],
        "num_warps": config["num_warps"], "num_stages": config["num_stages"],
    }  # fmt: skip


def _parts(width: int, padded: int, config: Config) -> dict[str, int]:
    """The backward kernel's slices of the features: each is a program's own."""
    part = min(config["WIDE"], padded)
    return {"PARTS": ceil_div(width, part), "PART": part}


def _key(student: Tensor, teacher: Tensor, *more: object) -> tuple[object, ...]:
    return (student.dtype, *shape_class(*student.shape, teacher.shape[2]), dot_precision(), *more)


def _rows_a_program(*widths: int) -> int:
    return max(1, min(64, 8192 // max(widths)))


def _forward_fake(student: Tensor, teacher: Tensor, *_: Any) -> tuple[Tensor, ...]:
    size, wide_s, wide_t = _sizes(student, teacher)[2:]
    numbers = {"dtype": torch.float32}
    return (
        student.new_empty((), **numbers),  # type: ignore[call-overload]
        student.new_empty((size, wide_s)),
        student.new_empty((size, wide_t)),
        student.new_empty((3, size), **numbers),  # type: ignore[call-overload]
        student.new_empty((4, size), **numbers),  # type: ignore[call-overload]
    )


@operator(_forward_fake)
def token_graph_forward(
    student: Tensor, teacher: Tensor, temperature: float, diagonal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, the scaled tokens of both, [3, rows] scales and [4, rows] from log-sum-exps."""
    tokens, padded, size, wide_s, wide_t = _sizes(student, teacher)
    graphs, sharp, factor = len(student), 1 / (temperature * log(2)), 1 / (len(student) * tokens)
    _, near_s, near_t, scales, lse = _forward_fake(student, teacher)
    rows = _rows_a_program(wide_s, wide_t)
    _token_rows_kernel[(size // rows,)](
        student, teacher, near_s, near_t, scales, lse,
        tokens, student.shape[2], teacher.shape[2], padded, size,
        LAST_S=_is_last(student), LAST_T=_is_last(teacher), STRIDE_S=wide_s, STRIDE_T=wide_t,
        EPS=EPS, ROWS=rows, num_warps=8,
    )  # fmt: skip

    def run(config: Config) -> Tensor:
        blocks = graphs * ceil_div(tokens, config["ROWS"])
        splits = _splits(config, blocks)
        constants = _constants(student, teacher, config, splits)
        joins = ceil_div(size, 256) if splits > 1 else 0
        pieces = scales.new_empty((5, splits, size) if splits > 1 else (1,))
        partial = scales.new_empty(joins or blocks)
        _token_graph_fwd_kernel[(blocks * splits,)](
            near_s, near_t, scales, lse, pieces, partial, tokens, padded, size, sharp, factor,
            DIAGONAL=diagonal, SHARP=temperature < SHARPEST, LIFT=LIFT, **constants,
        )  # fmt: skip
        if joins:
            _token_rows_join_kernel[(joins,)](
                pieces, lse, partial, scales, tokens, padded, size, factor, sharp,
                SPLITS=splits, ROWS=256, LIFT=LIFT,
            )  # fmt: skip
        return partial.sum()

    configs = FLOAT32 if student.dtype == torch.float32 else FORWARD
    key = _key(student, teacher, diagonal, temperature < SHARPEST)
    loss = best("token_graph_forward", key, configs, student.device, run)
    return loss, near_s, near_t, scales, lse


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student)


@operator(_backward_fake)
def token_graph_backward(
    student: Tensor,
    teacher: Tensor,
    near_s: Tensor,
    near_t: Tensor,
    scales: Tensor,
    lse: Tensor,
    upstream: Tensor,
    temperature: float,
) -> Tensor:
    """The gradient of the student's tokens, in their type and memory format."""
    tokens, padded, size, wide_s, _ = _sizes(student, teacher)
    graphs, sharp = len(student), 1 / (temperature * log(2))
    factor = 1 / (temperature * graphs * tokens)
    grad, rows = torch.empty_like(student), _rows_a_program(wide_s)

    def run(config: Config) -> Tensor:
        parts = _parts(student.shape[2], wide_s, config)
        blocks = graphs * ceil_div(tokens, config["ROWS"]) * parts["PARTS"]
        splits = _splits(config, blocks)
        constants = _constants(student, teacher, config, splits) | parts
        pull = scales.new_empty((splits, size, wide_s))
        _token_graph_bwd_kernel[(blocks * splits,)](
            near_s, near_t, scales, lse, pull, tokens, padded, size, sharp,
            SHARP=temperature < SHARPEST, LIFT=LIFT, **constants,
        )  # fmt: skip
        _token_rows_bwd_kernel[(graphs * ceil_div(tokens, rows),)](
            pull, near_s, scales, upstream, grad,
            tokens, student.shape[2], padded, size, factor,
            LAST=_is_last(student), STRIDE=wide_s, SPLITS=splits, ROWS=rows, num_warps=8,
        )  # fmt: skip
        return grad

    key = _key(student, teacher, temperature < SHARPEST)
    return best("token_graph_backward", key, backward_configs(student), student.device, run)
