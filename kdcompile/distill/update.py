"""One step of a training: the loss terms of a batch, then the update of the weights.

The update (clip, guard, AdamW, moving average) waits for nothing on the device, and all that
changes from step to step lies in tensors, so that the whole can be captured in a CUDA graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.core.distributed import Processes
from kdcompile.distill.qad_modules import trained
from kdcompile.distill.recipe import LossInputs, Recipe
from kdcompile.distill.taps import Tapped

FIT_PIXELS = 1 << 16  # of the crops that adapters are fitted on
FIT_CROPS = (4, 16)  # at least, at most
NEVER = -1
SCALE_LR = 1e-2  # of a scale's logarithm: the largest change of a scale in a step is 1 %


def fit_crops(side: int) -> int:
    """How many crops of so many pixels a side adapters are fitted on."""
    least, most = FIT_CROPS
    return min(max(-(-FIT_PIXELS // side**2), least), most)


@contextmanager
def in_training(network: nn.Module) -> Iterator[None]:
    """Training mode, in which batch norms read the batch as they will; their statistics stay."""
    before = [buffer.clone() for buffer in network.buffers()]
    network.train()
    try:
        yield
    finally:
        for buffer, old in zip(network.buffers(), before, strict=True):
            buffer.copy_(old)


class Seen(NamedTuple):
    """What frozen networks say of a batch: the teacher, its maps, the first student, others.

    photo: int64 [B], the index of each crop's photo.
    """

    teacher: Tensor | None
    maps: Sequence[Tensor]
    first: Tensor | None
    others: Sequence[Tensor]
    photo: Tensor


class Trainable(nn.Module):
    """Student and recipe in one module: from images and what is seen of them to the loss terms."""

    def __init__(self, student: Tapped, recipe: Recipe) -> None:
        super().__init__()
        self.student, self.recipe = student, recipe
        self.names: tuple[str, ...] = ()

    def inputs(self, images: Tensor, target: Tensor, seen: Seen) -> LossInputs:
        """The student's forward pass beside what is seen."""
        output, own = self.student(images)
        return LossInputs(
            output, target, seen.teacher, own, seen.maps, images, seen.photo, seen.first,
            seen.others,
        )  # fmt: skip

    def forward(self, images: Tensor, target: Tensor, seen: Seen) -> Tensor:
        """float32 [terms], in the order of `names`."""
        terms = self.recipe(self.inputs(images, target, seen))
        return torch.stack([terms[name].float() for name in self.names])


class Update:
    """Optimizer and moving average of one stage.

    A step whose loss, terms or gradient are not finite changes nothing, and neither does any after
    it: `first_bad` latches, and the weights stay those that met the bad batch.

    Args:
        student: the network that is trained; scales that are learnt have a rate of their own,
            no decay and no part in the clipping.
        recipe: its parameters (adapters) are trained with it.
        ema: the student's moving average, changed in place.
        options: of the stage.
        processes: all of them skip a step that is bad on one.
    """

    def __init__(
        self,
        student: nn.Module,
        recipe: nn.Module,
        ema: nn.Module,
        options: Distill,
        processes: Processes,
    ) -> None:
        self._processes = processes
        weights, self.scales = trained(student)
        self.parameters = [*weights, *recipe.parameters()]
        device = self.parameters[0].device
        self._options = options
        self._lr = torch.tensor(options.lr, device=device)
        self._decay = torch.tensor(0.0, device=device)
        self._step = torch.tensor(NEVER, device=device)
        self.first_bad = torch.tensor(NEVER, device=device)
        self._rates = [self._lr]
        groups: list[dict[str, Any]] = [{"params": self.parameters}]
        if self.scales:
            self._rates.append(torch.tensor(SCALE_LR, device=device))
            groups.append({"params": self.scales, "lr": self._rates[1], "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=self._lr,
            weight_decay=options.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        # PyTorch warns of a capturable optimizer that is not captured: here that is the plan
        self.optimizer._warned_capturable_if_run_uncaptured = True
        self._found_inf = torch.tensor(1.0, device=device)
        # read by PyTorch's fused optimizers, as its GradScaler does
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]
        self._create_state()
        own, average = student.state_dict(), ema.state_dict()
        self._pairs = [(average[n], own[n]) for n in own if own[n].is_floating_point()]
        self._copied = [(average[n], own[n]) for n in own if not own[n].is_floating_point()]

    def _create_state(self) -> None:
        """Let the optimizer make its moments: a skipped step creates them and changes nothing."""
        for parameter in (*self.parameters, *self.scales):
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def set(self, step: int, lr: float, averaged: int) -> None:
        """The numbers of the coming step.

        Args:
            step: of the stage; what `first_bad` will say.
            lr: learning rate.
            averaged: steps that the moving average has seen; its memory grows with them.
        """
        self._lr.fill_(lr)
        for rate in self._rates[1:]:
            rate.fill_(SCALE_LR * lr / self._options.lr)
        self._step.fill_(step)
        self._decay.fill_(1 - min(self._options.ema, (1 + averaged) / (10 + averaged)))

    def apply(self, loss: Tensor, values: Tensor) -> None:
        """Backward pass and update.

        Args:
            loss: the weighted sum.
            values: float32 [terms], checked with it.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters, self._options.clip)
        fine = loss.isfinite() & values.isfinite().all() & norm.isfinite()
        for scale in self.scales:
            if scale.grad is not None:  # before the student is quantised there is none
                fine &= scale.grad.isfinite().all()
        if not self._processes.is_alone:
            fine = self._processes.mean(fine.float()) == 1
        bad_now = ~fine & (self.first_bad == NEVER)
        self.first_bad.copy_(torch.where(bad_now, self._step, self.first_bad))
        self._found_inf.copy_(self.first_bad != NEVER)
        self.optimizer.step()
        self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        averages, owns = [a for a, _ in self._pairs], [o for _, o in self._pairs]
        gaps = torch._foreach_sub(owns, averages)
        torch._foreach_mul_(gaps, self._decay)
        torch._foreach_add_(averages, gaps)
        for average, own in self._copied:
            average.copy_(own)

    @torch.no_grad()
    def forget(self) -> None:
        """Put the optimizer's moments back to nothing, in place."""
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def tensors(self) -> list[Tensor]:
        """Everything that `apply` changes beside the networks."""
        moments = [t for state in self.optimizer.state.values() for t in state.values()]
        return [*moments, self.first_bad, self._found_inf]

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave; the learning rate stays this object's tensor."""
        self.optimizer.load_state_dict(dict(state))
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
