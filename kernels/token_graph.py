r"""Relations between tokens (TRG, arXiv 2306.12442): KL between rows of similarity matrices.

For the M tokens f_i of one graph, in each of the two networks:

    u_i = f_i / |f_i|                        0 where |f_i| is at most 1e-12
    A_ij = softmax_j(u_i . u_j / tau)        over j != i unless `diagonal`
    loss = mean over graphs and rows i of sum_j A^T_ij log(A^T_ij / A^S_ij)

The widths of the networks may differ. A token's similarity with itself is 1 whatever it holds, and
the largest of its row, so it is left out by default. The paper keeps only the nearest neighbours in
the graph; here the graph is complete, since a low tau does nearly the same without a sort.

Nothing of size M x M is stored: each block of rows walks over all columns, in the backward pass
again from the tokens and two numbers a row. No similarity is above 1, so the softmax needs no
maximum while exp(-2 / tau) is a normal float32; below a tau of 0.03 it is an online softmax.
The gradient:

    dL/du_i = 1 / (tau M) * sum_j (g_ij + g_ji) u_j,     g = A^S - A^T

Operands are the tokens themselves times a power of two, which rounds nothing and makes every length
1 to 2: no product overflows in float16, and similarities are exact to float32's sums, which a small
tau multiplies by 1 / tau. float32 tokens use three TF32 products for each product (relative 1e-6).
"""

from typing import Any

import torch
from torch import Tensor

from kdcompile.kernels._graph import (
    _token_graph_bwd_kernel,
    _token_graph_fwd_kernel,
    _token_rows_join_kernel,
)
from kdcompile.kernels._graph_launch import (
    BACKWARD,
    EPS,
    FLOAT32,
    FORWARD,
    LIFT,
    _constants,
    _graphs,
    _parts,
    token_graph_backward,
    token_graph_forward,
)
from kdcompile.kernels._graph_rows import _token_rows_bwd_kernel, _token_rows_kernel
from kdcompile.kernels._maps import check_finite, check_pair
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton


def token_graph(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 0.1,
    *,
    diagonal: bool = False,
    check: bool = False,
) -> Tensor:
    """The relation loss, a float32 scalar.

    Args:
        student: tokens [M, d_S] of one graph (of all images: "inter"), or [B, M, d_S] with a graph
            for each image ("intra"). A view `maps.flatten(2).mT` of either format is not copied.
        teacher: tokens [M, d_T] or [B, M, d_T]; no gradient flows to it.
        temperature: tau > 0.
        diagonal: let the similarity of each token with itself take part.
        check: refuse values that are not finite; waits for the device.

    Deterministic. No token, or a single one without `diagonal`: 0.

    Raises:
        ValueError: student and teacher do not fit each other, or tau is not above 0.
    """
    _check(student, teacher, temperature)
    if check:
        check_finite(student, teacher, "tokens")
    tokens = student.shape[-2]
    if student.numel() == 0 or teacher.numel() == 0 or (tokens == 1 and not diagonal):
        return student[..., :0].float().sum()
    if not use_triton("token_graph", student, teacher):
        return token_graph_reference(student, teacher, temperature, diagonal)
    loss: Tensor = _TokenGraph.apply(  # type: ignore[no-untyped-call]
        _graphs(student), _graphs(teacher), temperature, diagonal
    )
    return loss


def token_graph_reference(
    student: Tensor, teacher: Tensor, temperature: float = 0.1, diagonal: bool = False
) -> Tensor:
    """Plain PyTorch, which stores the matrices; the arguments of `token_graph`."""
    with full_precision(student):
        p, q = (_log_edges(t, temperature, diagonal) for t in (student, teacher.detach()))
        q_or_0 = q.masked_fill(q == float("-inf"), 0)
        gap = q_or_0 - p.masked_fill(q == float("-inf"), 0)
        return (q.exp() * gap).sum(-1).mean()


def _log_edges(tokens: Tensor, temperature: float, diagonal: bool) -> Tensor:
    f = tokens if tokens.dtype == torch.float64 else tokens.float()
    square = f.square().sum(-1, keepdim=True)
    seen = square > EPS**2
    u = f * square.masked_fill(~seen, 1).rsqrt().masked_fill(~seen, 0)
    logits = u @ u.mT / temperature
    if not diagonal:
        itself = torch.eye(f.shape[-2], dtype=torch.bool, device=f.device)
        logits = logits.masked_fill(itself, float("-inf"))
    return logits.log_softmax(-1)


class _TokenGraph(torch.autograd.Function):
    """Keeps the scaled tokens of both networks and 7 numbers a token."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, *options: Any) -> Tensor:
        loss, *kept = token_graph_forward(student, teacher, *options)
        ctx.save_for_backward(student, teacher, *kept)
        ctx.temperature = options[0]
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        outer = upstream[0].contiguous()
        return token_graph_backward(*ctx.saved_tensors, outer, ctx.temperature), None, None, None


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    shapes = tuple(student.shape), tuple(teacher.shape)
    if student.dim() not in (2, 3) or shapes[0][:-1] != shapes[1][:-1]:
        raise ValueError(
            f"tokens differ: student {shapes[0]}, teacher {shapes[1]}; both are [M, d] or"
            " [B, M, d], and only d may differ"
        )
    check_pair(student, teacher, "tokens")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, it must be above 0")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    pointer, number = POINTER[dtype], "*fp32"
    types = dict.fromkeys(("student", "teacher", "near_s", "near_t", "near", "grad"), pointer)
    types |= dict.fromkeys(("scales", "lse", "pieces", "partial", "pull", "upstream"), number)
    types |= dict.fromkeys(("M", "D", "D_S", "D_T", "PADDED", "size"), "i32")
    types |= dict.fromkeys(("sharp", "factor"), "fp32")
    wide = dtype == torch.float32
    layout = {"LAST_S": True, "LAST_T": False, "STRIDE_S": 256, "STRIDE_T": 256, "EPS": EPS,
              "ROWS": 32}  # fmt: skip
    back = {"LAST": True, "STRIDE": 256, "SPLITS": 2, "ROWS": 32}
    found = [
        Compilation(_token_rows_kernel, types, layout, {"num_warps": 8}, quick=True),
        Compilation(_token_rows_bwd_kernel, types, back, {"num_warps": 8}, quick=True),
    ]
    if wide:
        join = {"SPLITS": 2, "ROWS": 256, "LIFT": LIFT}
        found.append(Compilation(_token_rows_join_kernel, types, join, quick=True))
    for kernel, configs in (
        (_token_graph_fwd_kernel, FLOAT32 if wide else FORWARD),
        (_token_graph_bwd_kernel, FLOAT32 if wide else BACKWARD),
    ):
        for config in configs:
            width = 64 if config["STEP"] > 64 else 256  # every card has room for 64
            tokens = torch.empty(1, 1, width, device="meta")
            constants = _constants(tokens, tokens, config, config["SPLITS"])
            launch = {n: constants.pop(n) for n in ("num_warps", "num_stages")}
            if kernel is _token_graph_fwd_kernel:
                constants |= {"DIAGONAL": False, "SHARP": False, "LIFT": LIFT}
            else:
                constants |= _parts(width, width, config) | {"SHARP": False, "LIFT": LIFT}
            label, quick = f"{width} wide", config is configs[0]
            found.append(Compilation(kernel, types, constants, launch, label, quick))
    return found


def _case(tokens: int, width: int, device: torch.device, dtype: torch.dtype) -> Case:
    student = torch.randn(tokens, width, device=device, dtype=dtype).requires_grad_()
    teacher = torch.randn(tokens, width, device=device, dtype=dtype)
    return Case(
        kernel=lambda: token_graph(student, teacher),
        reference=lambda: token_graph_reference(student, teacher),
        leaves=[student],
        floor_bytes=5 * student.numel() * student.element_size(),
        floor_flops=10 * tokens * tokens * width,
    )


KERNEL = Kernel(
    name="token_graph",
    formula="mean over rows of KL(softmax(u_T u_T^T / tau) || softmax(u_S u_S^T / tau))",
    traffic="forward: both tokens read, scaled and written; 4 M^2 d operations."
    " backward: read again, the gradient written; 6 M^2 d operations",
    compilations=_compilations,
    settings=[
        Setting("16384 tokens x 256", lambda device, dtype, _: _case(16_384, 256, device, dtype)),
        Setting("4096 tokens x 256", lambda device, dtype, _: _case(4096, 256, device, dtype)),
    ],
)
