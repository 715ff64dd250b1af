"""Check that a student can learn from its start: its output varies and a gradient reaches it.

A ReLU behind the output passes no gradient where it is closed. A student that starts with it closed
for every image gives 0, and no training changes that.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcompile.data.augment import Batch
from kdcompile.distill.objective import Objective

SAME = 1e-5  # of the largest output: float32 sums in another order differ by less
STEP = 1e-3  # by which each weight is moved on trial


@dataclass(frozen=True)
class Pulse:
    """What some crops show of a student.

    crops: how many; largest: output by absolute value; spread: the largest difference of one
    output between two crops; gradient: norm of that of the label loss.
    """

    crops: int
    largest: float
    spread: float
    gradient: float

    @property
    def is_constant(self) -> bool:
        """Whether the output is the same for every crop."""
        return self.spread <= SAME * self.largest

    @property
    def is_alive(self) -> bool:
        """Whether the output varies and a gradient comes back; so too where either is no number."""
        return not self.is_constant and self.gradient != 0

    def __str__(self) -> str:
        """The numbers, for an error."""
        return (
            f"on {self.crops} training crops its output differs by at most {self.spread:.3g} "
            f"(the largest is {self.largest:.3g}) and the label loss has a gradient of norm "
            f"{self.gradient:.3g}"
        )


def dead(student: nn.Module, crops: Sequence[Batch], objective: Objective) -> Pulse | None:
    """What shows that a student cannot learn from where it starts; None where it can.

    A constant output is no proof: that of zero weights, with which some networks start on purpose,
    varies after one step. Nor is one in inference mode alone: in training a batch norm centres what
    a ReLU behind it reads.

    Args:
        student: its weights and mode stay.
        crops: of training photos, on the student's device.
        objective: gives the label loss.
    """
    network = copy.deepcopy(student).eval()
    found, gradients = _pulse(network, crops, objective)
    if found.is_alive:
        return None
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms and min(len(batch.images) for batch in crops) > 1:
        for module in norms:
            module.train()
        found, gradients = _pulse(network, crops, objective)
        if found.is_alive:
            return None
    if found.gradient != 0:
        with torch.no_grad():
            for parameter, gradient in gradients:
                parameter -= STEP * gradient.sign()
        if not _pulse(network, crops, objective)[0].is_constant:
            return None
    return found


def _pulse(
    network: nn.Module, crops: Sequence[Batch], objective: Objective
) -> tuple[Pulse, list[tuple[Tensor, Tensor]]]:
    """What the crops show, and each trained parameter with its gradient over all of them."""
    trained = [p for p in network.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) for p in trained]
    outputs = []
    for batch in crops:
        output = network(batch.images)
        outputs.append(output.detach().float())
        loss = objective.hard(output, batch.target)
        if loss.requires_grad:
            own = torch.autograd.grad(loss, trained, allow_unused=True)
            for total, gradient in zip(gradients, own, strict=True):
                if gradient is not None:
                    total += gradient
    whole = torch.cat(outputs)
    spread = float((whole.amax(0) - whole.amin(0)).max())
    norm = float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
    found = Pulse(len(whole), float(whole.abs().max()), spread, norm)
    return found, list(zip(trained, gradients, strict=True))
