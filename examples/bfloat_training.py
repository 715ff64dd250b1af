"""Train an example's teacher on photos: bfloat16 on the CPU, a moving average, checkpoints.

A processor with AMX trains several times faster so than in float32, in which `kdcompile` itself
trains on a CPU.
"""

import copy
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WARM = 200  # steps of a linear rise of the learning rate, before a half cosine
LEAST = 0.01  # of the learning rate, at the end
CLIP = 10.0  # largest gradient norm
log = logging.getLogger("kdcompile.examples")

Loss = Callable[[Tensor], Tensor]
"""From a network's output, float32, to the loss."""


class Training:
    """A network on its way: weights, their moving average, optimiser and the best so far.

    Args:
        network: trained in place.
        steps: its length.
        rate: of AdamW, at its highest.
        decay: of the weights.
        memory: of the moving average, which is what is judged and kept.
    """

    def __init__(
        self,
        network: nn.Module,
        steps: int,
        rate: float,
        decay: float = 0.02,
        memory: float = 0.995,
    ) -> None:
        """At its first step."""
        self.steps, self.rate, self.memory = steps, rate, memory
        self.step, self.value = 0, -math.inf
        self.network: nn.Module = network.to(  # type: ignore[call-overload]
            memory_format=torch.channels_last
        )
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average.state_dict())
        self.optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=decay)

    def save(self, path: Path) -> None:
        """Write everything that `load` reads, whole or not at all."""
        parts = {"step": self.step, "value": self.value, "best": self.best,
                 "network": self.network.state_dict(), "average": self.average.state_dict(),
                 "optimiser": self.optimiser.state_dict()}  # fmt: skip
        torch.save(parts, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        parts = torch.load(path, weights_only=True)
        self.step, self.value, self.best = parts["step"], parts["value"], parts["best"]
        self.network.load_state_dict(parts["network"])
        self.average.load_state_dict(parts["average"])
        self.optimiser.load_state_dict(parts["optimiser"])

    def take(self, pixels: Tensor, loss_of: Loss) -> float:
        """One step on [N, C, H, W]; returns its loss."""
        cosine = (1 + math.cos(math.pi * self.step / self.steps)) / 2
        rate = self.rate * min(1.0, (self.step + 1) / WARM) * (LEAST + (1 - LEAST) * cosine)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16):
            output = self.network(pixels.contiguous(memory_format=torch.channels_last))
        loss = loss_of(output.float())
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimiser.step()
        self.step += 1
        self._average(min(self.memory, (self.step + 1) / (self.step + 10)))
        return float(loss.detach())

    @torch.no_grad()
    def _average(self, memory: float) -> None:
        new = self.network.state_dict()
        for name, kept in self.average.state_dict().items():
            if kept.is_floating_point():
                kept.lerp_(new[name], 1 - memory)
            else:
                kept.copy_(new[name])

    def run(
        self,
        batch: Callable[[int], tuple[Tensor, Loss]],
        judge: Callable[[nn.Module], tuple[float, str]],
        checkpoint: Path,
        every: int,
        until: int | None = None,
    ) -> None:
        """Go on until the last step, from the checkpoint where there is one.

        Args:
            batch: of a step: the input, and its loss.
            judge: of the moving average: a value, the higher the better, and what to log.
            checkpoint: written after each judgement; its folder is made.
            every: steps between two judgements.
            until: the step to stop at, where it is not the last.
        """
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if checkpoint.is_file():
            self.load(checkpoint)
        started, losses = time.monotonic(), []
        end = self.steps if until is None else until
        while self.step < end:
            losses.append(self.take(*batch(self.step)))
            if self.step % every == 0 or self.step == end:
                with torch.inference_mode():
                    value, told = judge(self.average)
                if value > self.value:
                    self.value, self.best = value, copy.deepcopy(self.average.state_dict())
                self.save(checkpoint)
                seconds = time.monotonic() - started
                log.info(
                    "step %d: loss %.4f, %s, %.0f s", self.step, np.mean(losses), told, seconds
                )
                losses.clear()

    def write(self, path: Path) -> nn.Module:
        """Write the best weights in half precision; returns the network with them."""
        halved = {n: t.half() if t.is_floating_point() else t for n, t in self.best.items()}
        save_file({n: t.contiguous() for n, t in halved.items()}, path)
        self.network.load_state_dict(halved)
        self.network.eval()
        return self.network
