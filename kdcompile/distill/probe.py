"""Run the student in inference mode in the middle of its training, without a trace."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def peek(student: nn.Module, images: Tensor) -> Tensor:
    """The output for `images` [N, C, H, W], as the student would answer once deployed.

    Runs in eval mode: batch norms read their running statistics and keep them, dropout draws no
    number. Each module is in its own mode again afterwards, whatever happens.
    """
    training = [module for module in student.modules() if module.training]
    for module in training:
        module.training = False
    try:
        output: Tensor = student(images)
    finally:
        for module in training:
            module.training = True
    return output
