r"""SKT's Inter-layer Relation Transfer (Chen et al., ACM MM 2020, equation 5; the dense FSP).

Every map is max-pooled to the smallest map's size and normalised per image and channel (zero
mean, unit deviation over the pixels). For each pair i < j of maps X_i [C_i, P], X_j [C_j, P]:

    G_ij = X_i X_j^T / P
    loss = sum_{i<j} |G_ij(student) - G_ij(teacher)|^2

averaged over the batch (`reduction="paper"`), or the mean over all Gram entries.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import instance_norm, max_pool2d

Reduction = Literal["mean", "paper"]
EPS = 1e-5


def common_size(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Max-pooled to `size` = ceil(input / k) for one whole factor k.

    Raises:
        ValueError: no such factor exists.
    """
    factor = -(-features.shape[2] // size[0])
    if factor > 1:
        features = max_pool2d(features, factor, ceil_mode=True)
    if features.shape[2:] != torch.Size(size):
        raise ValueError(f"a map of {tuple(features.shape[2:])} does not pool to {size}")
    return features


def grams(features: Sequence[Tensor]) -> list[Tensor]:
    """The Gram matrices [N, C_i, C_j] of every pair i < j of maps, in float32."""
    size = min((tuple(f.shape[2:]) for f in features), key=lambda s: s[0] * s[1])
    normal = [
        instance_norm(common_size(f.float(), (size[0], size[1])), eps=EPS).flatten(2)
        for f in features
    ]
    pixels = size[0] * size[1]
    return [torch.bmm(a, b.mT) / pixels for a, b in combinations(normal, 2)]


def gram_relation_reference(
    students: Sequence[Tensor], teachers: Sequence[Tensor], reduction: Reduction = "mean"
) -> Tensor:
    """Plain PyTorch; the arguments of `gram_relation`."""
    pairs = list(zip(grams(students), grams(teachers), strict=True))
    errors = torch.stack([(s - t).square().flatten(1).sum(1).mean() for s, t in pairs])
    if reduction == "paper":
        return errors.sum()
    return errors.sum() / sum(s[0].numel() for s, _ in pairs)


def gram_relation(
    students: Sequence[Tensor], teachers: Sequence[Tensor], reduction: Reduction = "mean"
) -> Tensor:
    """The Inter-RT loss, a float32 scalar.

    Args:
        students: at least two maps [N, C_i, H_i, W_i], already at the teacher's widths.
        teachers: the teacher's maps, of the same shapes; no gradient flows to them.
        reduction: "paper" sums over Gram entries, "mean" averages; both average over the batch.

    Raises:
        ValueError: the maps do not fit each other.
    """
    if len(students) < 2:
        raise ValueError("relations need at least two maps")
    for s, t in zip(students, teachers, strict=True):
        if s.shape != t.shape:
            raise ValueError(f"maps differ: {tuple(s.shape)} and {tuple(t.shape)}")
    return gram_relation_reference(students, [t.detach() for t in teachers], reduction)
