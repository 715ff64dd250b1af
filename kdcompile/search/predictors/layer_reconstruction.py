"""Layer reconstruction: errors of a narrower student of the teacher's own architecture.

Each layer is rebuilt by itself from the teacher's activations, much as `distill.inherit` will
rebuild it, so no student is made and no layer waits for another: the idea of module-wise
distillation (m2mKD), in closed form. A layer's relative error is weighted by how far the teacher's
output moves for a unit of it; independent errors add as variances.

Not modelled: errors that pile up or that later layers make good, and what training will repair. The
figure orders students; it is no forecast of a metric.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcompile.distill.inherit.batch_norm import absorbs, gate_through
from kdcompile.distill.inherit.importance import places, ranking, readers
from kdcompile.distill.inherit.plan import BATCH_NORMS, LayerPlan, layer_plans
from kdcompile.distill.inherit.reconstruct import MOST_UNKNOWNS, input_at, nonfinite
from kdcompile.distill.inherit.rows import grouped_weight, groups, input_rows, output_rows, sample
from kdcompile.distill.inherit.solve import CHUNK, HELD_OUT, Gate
from kdcompile.models.channels import Channels, Layout
from kdcompile.models.dropped import is_gone, members
from kdcompile.search.predictors.ablation import ReferenceOutputs, change_without
from kdcompile.search.predictors.teacher_features import hooked
from kdcompile.search.spaces.pruned_kernels import sides

log = logging.getLogger("kdcompile")
FEWEST_ROWS, ROWS_PER_UNKNOWN, MOST_ROWS = 4096, 2, 16384
FEW = 8  # images that the output's change is measured on
NOISE = 0.1  # relative error at which sensitivity is measured


class LayerErrors:
    """Errors by layer and width, and their sum for an architecture."""

    def __init__(
        self, teacher: nn.Module, channels: Channels, crops: Sequence[Tensor], tile: int = 8
    ) -> None:
        """Measure every layer; this is where the time goes.

        Args:
            teacher: in inference mode, float32.
            channels: its trace.
            crops: normalised input batches [B, C, h, w], on the teacher's device.
            tile: input widths are tabulated at its multiples and interpolated between.

        Raises:
            KDError: `inherit-nonfinite`.
        """
        self._teacher, self._channels, self._crops = teacher, channels, crops
        few = max(1, FEW // len(crops))
        self._reference = ReferenceOutputs(teacher, [batch[:few] for batch in crops[:FEW]])
        self._order = self._rankings()
        self._plans = {
            plan.name: plan
            for plan in layer_plans(channels, {}, teacher)
            if not issubclass(channels.layers[plan.name].kind, BATCH_NORMS) and not plan.depthwise
        }
        called = _called_modules(teacher, list(self._plans), crops[0][:1])
        self.unmeasured = [name for name in self._plans if name not in called]
        """Layers whose parameters are used without calling them: they count as free of error."""
        if self.unmeasured:
            log.warning("search: no error is known of %s", ", ".join(self.unmeasured))
        self._tables: dict[str, tuple[list[int], NDArray[np.float64]]] = {}
        self.sensitivity: dict[str, float] = {}
        """Relative change of the teacher's output for a unit of relative error, by layer."""
        self._dropped: dict[str, float] = {}
        for name, plan in self._plans.items():
            if name not in self.unmeasured:
                gate = self._gate(plan)
                self._tables[name] = self._table(plan, gate, tile)
                self.sensitivity[name] = self._sensitivity(name, gate)

    def error(self, layer: str, w_in: int, w_out: int) -> float:
        """Relative error on held-out positions of a layer that keeps so many inputs and outputs.

        Behind the ReLU, where one alone reads the layer; 0 for depthwise and normalising layers,
        which rebuild each channel from itself.
        """
        if layer not in self._tables:
            return 0.0
        steps, table = self._tables[layer]
        column = table[:, max(1, w_out // self._channels.layers[layer].groups) - 1]
        return float(np.interp(w_in, steps, column))

    def dropped(self, name: str) -> float:
        """Relative change of the teacher's output without a part; measured at the first call."""
        if name not in self._dropped:
            self._dropped[name] = change_without(self._reference, name)
        return self._dropped[name]

    def expected_error(self, architecture: Mapping[str, Any]) -> float:
        """Relative error of the output, to first order: the root of the parts' summed squares.

        Args:
            architecture: of family `shrink`, with `dropped` or without.
        """
        dropped = architecture.get("dropped", ())
        total = sum(self.dropped(name) ** 2 for name in dropped)
        gone = [path for name in dropped for path in members(self._teacher, name)]
        for name, weight in self.sensitivity.items():
            if name in architecture["modules"] and not is_gone(name, gone):
                total += (weight * self.error(name, *sides(architecture["modules"][name]))) ** 2
        return float(total**0.5)

    def _rankings(self) -> dict[int, Tensor]:
        """Each free group's channels, best first, in each of its equal blocks [blocks, n]."""
        roots = {self._channels.root(g) for g in range(len(self._channels.size))}
        free = roots - self._channels.frozen
        views = places(self._teacher, self._crops, readers(self._channels, free))
        found = {}
        for root in sorted(free):
            size, blocks = self._channels.size[root], self._channels.multiple[root]
            picked = torch.tensor(ranking(views.get(root, ()), size, size, blocks))
            parts = [picked[picked * blocks // size == block] for block in range(blocks)]
            found[root] = torch.stack(parts)
        return found

    def _ordered(self, layout: Layout, count: int) -> Tensor:
        """Channels of a layout in the order in which they are kept, by each of `count` blocks.

        Where several groups lie in it they are taken in equal shares, as by a uniform ratio.
        """
        ranks = []
        for group, size, each in layout:
            order = self._order.get(self._channels.root(group), torch.arange(size)[None])
            rank = torch.empty(size)
            rank[order.flatten()] = (torch.arange(order.shape[1]) / order.shape[1]).repeat(
                len(order)
            )
            ranks.append(rank.repeat_interleave(each))
        return torch.cat(ranks).reshape(count, -1).argsort(dim=1, stable=True)

    def _gate(self, plan: LayerPlan) -> Gate | None:
        device = self._crops[0].device
        count = groups(self._teacher.get_submodule(plan.name))
        shape = (count, 1, len(plan.outputs) // count)
        if not plan.rectified:
            return None
        if plan.batch_norm is None:
            return Gate(torch.ones(shape, device=device), torch.zeros(shape, device=device))
        behind = self._teacher.get_submodule(plan.batch_norm)
        assert isinstance(behind, BATCH_NORMS)
        outputs = plan.outputs.to(device).reshape(shape)
        return gate_through(behind, outputs) if absorbs(behind) else None

    def _table(
        self, plan: LayerPlan, gate: Gate | None, tile: int
    ) -> tuple[list[int], NDArray[np.float64]]:
        """Input widths, and relative errors [widths, O/G] of the best outputs up to each."""
        module, layer = self._teacher.get_submodule(plan.name), self._channels.layers[plan.name]
        count, device = groups(module), self._crops[0].device
        x, y = self._rows(plan, module)
        inputs, outputs = (
            self._ordered(v, count).to(device) for v in (layer.inputs, layer.outputs)
        )
        width = inputs.shape[1]
        taps = x.shape[2] // width
        columns = (inputs[:, :, None] * taps + torch.arange(taps, device=device)).flatten(1)
        prior = grouped_weight(module).flatten(2).mT
        x = x.gather(2, columns[:, None].expand(-1, x.shape[1], -1))
        prior = prior.gather(1, columns[:, :, None].expand(-1, -1, prior.shape[2]))
        y, prior = (v.gather(2, outputs[:, None].expand(-1, v.shape[1], -1)) for v in (y, prior))
        if gate is not None:
            gate = Gate(*(v.gather(2, outputs[:, None]) for v in (gate.sign, gate.threshold)))
        grid = sorted({*range(0, width, max(1, tile // count)), width})
        solved = x.shape[2] <= MOST_UNKNOWNS and plan.runs == 1
        errors, spreads = nested(x, y, prior, [step * taps for step in grid], gate, solved)
        wrong, spread = errors.sum(1).cumsum(1), spreads.sum(0).cumsum(0)
        error = (wrong / spread.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
        return [step * count for step in grid], error.numpy()

    def _rows(self, plan: LayerPlan, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Input patches [G, N, D] and outputs [G, N, O/G] of the teacher at sampled positions."""
        unknowns = grouped_weight(module)[0, 0].numel()
        wanted = min(MOST_ROWS, max(FEWEST_ROWS, ROWS_PER_UNKNOWN * unknowns))
        each = max(1, wanted // sum(len(batch) for batch in self._crops))
        linear = isinstance(module, nn.Linear)
        patches, made = [], []
        for number, batch in enumerate(self._crops):
            x = input_at(self._teacher, plan.name, batch)
            with torch.no_grad():
                y = module(x)
            total = y.shape[:-1].numel() if linear else len(y) * y.shape[2:].numel()
            picks = sample(total, each * len(batch), number).to(y.device)
            patches.append(input_rows(module, x, picks, y.shape[2:]))
            made.append(output_rows(y, picks, linear))
        rows, outputs = torch.cat(patches, 1), torch.cat(made)
        if not (torch.isfinite(rows).all() and torch.isfinite(outputs).all()):
            raise nonfinite(plan.name)
        return rows, outputs.reshape(rows.shape[1], len(rows), -1).transpose(0, 1)

    def _sensitivity(self, name: str, gate: Gate | None) -> float:
        """By noise on what the layers behind see, in proportion to each channel's deviation."""
        module = self._teacher.get_submodule(name)
        draw = torch.Generator().manual_seed(0)
        axis = -1 if isinstance(module, nn.Linear) else 1
        flat = None if gate is None else Gate(gate.sign.flatten(), gate.threshold.flatten())

        def noisy(_: nn.Module, __: Any, y: Tensor) -> Tensor:
            value = y.movedim(axis, -1)
            seen = value if flat is None else flat(value)
            rows = seen.reshape(-1, seen.shape[-1])
            scale = NOISE * (rows - rows.mean(0)).square().mean(0).sqrt()
            made = seen + torch.randn(seen.shape, generator=draw).to(y.device) * scale
            if flat is not None:
                made = torch.where(flat.sign == 0, made, flat.threshold + flat.sign * made)
            return made.movedim(-1, axis)

        return self._reference.change([(module, noisy)]) / NOISE


def _called_modules(teacher: nn.Module, names: Sequence[str], image: Tensor) -> set[str]:
    """Those of the modules that a pass calls."""
    found: set[str] = set()
    with hooked(teacher, names, lambda name, _: found.add(name)), torch.no_grad():
        teacher(image)
    return found


RIDGE = 1e-3  # relative to the mean square of an input


def nested(
    x: Tensor,
    y: Tensor,
    prior: Tensor,
    steps: Sequence[int],
    gate: Gate | None,
    solved: bool = True,
) -> tuple[Tensor, Tensor]:
    """Errors behind the gate, on the last eighth of the rows, from the first k inputs for all k.

    A layer's outputs Y are regressed on input patches X with the teacher's weights W0 as the prior:
    W_k = (G_kk + r I)^-1 (X_k^T Y + r W0_k), where G = X^T X. With the inputs in a fixed order, the
    Cholesky factor of G_kk is the leading block of that of G. So one factorisation
    G + r I = L L^T, the coordinates Z = L^-1 (X^T Y + r W0) and held-out patches in the same
    coordinates, T = X' L^-T, give every prediction as a partial sum:
    X'_k W_k = sum_{i < k} T_i Z_i.

    Args:
        x: float32 [G, N, D], the inputs in the order in which they are kept.
        y: float32 [G, N, O/G].
        prior: float32 [G, D, O/G], the teacher's weights.
        steps: ascending numbers of leading columns of x.
        gate: the ReLU that alone reads the output; it is not accounted for in the regression.
        solved: false for a layer whose weights are only sliced.

    Returns:
        Held-out squared errors, float64 [steps, G, O/G], and the outputs' own spread [G, O/G].
    """
    held = max(1, x.shape[1] // HELD_OUT)
    rows, known = x[:, :-held], y[:, :-held]
    middle = rows.mean(1, keepdim=True, dtype=torch.double)
    level = known.mean(1, keepdim=True, dtype=torch.double)
    test = x[:, -held:].double() - middle
    start = prior.double()
    if solved:
        factor, start = _coordinates(rows, known, prior, (middle, level))
        test = torch.linalg.solve_triangular(factor, test.mT, upper=False).mT
    target = y[:, -held:]
    target = gate(target) if gate is not None else target
    spread = (target.double() - target.mean(1, keepdim=True, dtype=torch.double)).square().sum(1)
    found, done, wrong = level.expand(-1, held, -1).clone(), 0, []
    for step in steps:
        found += test[:, :, done:step] @ start[:, done:step]
        done = step
        seen = found.float() if gate is None else gate(found.float())
        wrong.append((seen - target).double().square().sum(1))
    return torch.stack(wrong).cpu(), spread.cpu()


def _coordinates(
    x: Tensor, y: Tensor, prior: Tensor, means: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """L [G, D, D] and Z [G, D, O/G], in float64."""
    size, count = x.shape[2], x.shape[1]
    gram = torch.zeros(len(x), size, size, dtype=torch.double, device=x.device)
    moments = torch.zeros(len(x), size, y.shape[2], dtype=torch.double, device=x.device)
    for a, b in zip(torch.split(x, CHUNK, 1), torch.split(y, CHUNK, 1), strict=True):
        left, right = (part - mean for part, mean in zip((a, b), means, strict=True))
        if not x.is_cuda:  # there float32 might mean TF32
            left, right = left.float(), right.float()
        gram += left.mT @ left
        moments += left.mT @ right
    strength = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] / count
    strength = strength.clamp(min=torch.finfo(torch.float32).tiny)
    loaded = gram / count + strength * torch.eye(size, dtype=torch.double, device=x.device)
    factor = torch.linalg.cholesky(loaded)
    right = moments / count + strength * prior.double()
    return factor, torch.linalg.solve_triangular(factor, right, upper=False)
