"""Softened KL of outputs whose values along any one axis are scores of classes."""

import torch
from torch import Tensor

from kdcompile.config.spec import Scores
from kdcompile.kernels.kd_kl import kd_kl


def softened_kl(student: Tensor, answer: Tensor, scores: Scores, temperature: float) -> Tensor:
    """T^2 KL of two outputs softened along an axis, the mean over samples and other positions.

    Probabilities p are softened as p^(1/T), renormalised: their logarithms are logits.

    Args:
        student: [N, *shape], N samples of an output.
        answer: the teacher's, to which no gradient flows.
        scores: the axis of `shape`, and what the values along it are.
        temperature: T.
    """
    axis = scores.axis + 1 if scores.axis >= 0 else scores.axis
    own, theirs = (values.movedim(axis, -1) for values in (student, answer))
    if scores.form == "probabilities":  # a 0 of the student's gets no gradient, and no infinity
        own, theirs = own.clamp_min(torch.finfo(own.dtype).tiny).log(), theirs.clamp_min(0).log()
    classes = own.shape[-1]
    return kd_kl(own.reshape(-1, classes), theirs.reshape(-1, classes), temperature)
