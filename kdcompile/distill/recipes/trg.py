"""Recipe `trg`: token relation graph with its contextual loss (Zhang et al., 2023)."""

from typing import ClassVar

import torch
from torch import Tensor

from kdcompile.distill.embedding import in_one_type, tokens
from kdcompile.distill.objective import ByReduction
from kdcompile.distill.recipe import About, LossInputs, Recipe
from kdcompile.kernels.token_graph import token_graph

INTER, INTRA = 1024, 256  # tokens of a graph: of all images, of each
WEIGHTS = {"trg_inter": 0.5, "trg_intra": 0.5}
WIDE = 1 << 62  # random numbers below this, so that a remainder favours none


class TokenRelations(Recipe):
    """Similarities between the cells of all images, and within each image (contextual loss).

    Of more cells than a graph holds, one is drawn from each of as many equal runs, in each step.
    """

    about = About(
        name="trg",
        summary="similarities between cells (tokens), across the images and within each",
        formula="kd + trg_inter * mean_i KL(A_i(T) || A_i(S)) + trg_intra * the same within images,"
        " A_i = softmax_j(cosine_ij / 0.1), j != i; 1024 and 256 cells a graph, of the last taps"
        " that have several",
        source="Zhang, Liu & He, Knowledge Distillation via Token-level Relationship Graph, 2023,"
        " arXiv 2306.12442; complete graphs for its nearest neighbours; weights are kdcompile's",
        cost="kd + graphs of 1024 cells, and of 256 an image",
        evidence="tests/distill/recipes/test_trg.py: float64, tiles against dense; docs/recipes.md",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": WEIGHTS, "paper": WEIGHTS}
    needs_taps = True

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`trg_inter` over the images of a step in this process, `trg_intra` within each."""
        student, teacher = _last_tokens(inputs)
        images, cells, _ = student.shape
        terms = {}
        if not self.is_off("trg_inter"):
            some = drawn(images * cells, INTER, student.device)
            ours, theirs = (each.flatten(0, 1)[some] for each in (student, teacher))
            terms["trg_inter"] = token_graph(ours, theirs)
        if not self.is_off("trg_intra"):
            some = drawn(cells, INTRA, student.device)
            terms["trg_intra"] = token_graph(student[:, some], teacher[:, some])
        return terms


def _last_tokens(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """[N, T, d_S] and [N, T, d_T] of the last taps with several cells, else of the last."""
    pairs = [
        (tokens(student), tokens(teacher))
        for student, teacher in zip(inputs.student_features, inputs.teacher_features, strict=True)
    ]
    several = [pair for pair in pairs if pair[0].shape[1] > 1]
    return in_one_type(*(several or pairs)[-1])


def drawn(number: int, most: int, device: torch.device) -> Tensor:
    """Indices [min(number, most)] of tokens, distinct and in order: one of each equal run."""
    if number <= most:
        return torch.arange(number, device=device)
    edges = torch.arange(most + 1, device=device) * number // most
    start, end = edges[:-1], edges[1:]
    return start + torch.randint(WIDE, (most,), device=device) % (end - start)
