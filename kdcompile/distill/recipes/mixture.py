"""Recipe `mixture`: several frozen teachers, and a gate that learns whom to ask for which image.

After MST-Distill (Gray-OREO/MST-Distill, ACM MM 2025, arXiv 2507.07015). There the gate picks
teachers by index, so nothing but the balancing term ever reaches it. Here it learns from labels.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcompile.config.distill import Distill, Weights
from kdcompile.distill.embedding import embedding, promoted
from kdcompile.distill.objective import AnyObjective, ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs, Recipe, RecipeContext
from kdcompile.distill.taps import Rewired, Tap

TOP = 2  # teachers that an image follows
HIDDEN = 32
OPEN = 4.0  # a mask starts at sigmoid(4) = 0.98


class Mixture(Recipe):
    """The label terms, and the objective's soft term against a weighted mixture of teachers.

    The pool is `[teacher]`, those of `[[teachers]]`, and `[teacher]` once more with its channels
    masked, unless the weight `masks` is 0.
    """

    about = About(
        name="mixture",
        summary="several teachers; a gate learns whom to follow for each image",
        formula="label terms + mixture * soft(S, sum_j w_j T_j) + gate * hard(sum_j g_j T_j, Y)"
        " + balance * KL(uniform, mean g) + masks * soft(T masked, S); g = softmax(gate(S)),"
        f" w = its {TOP} largest, of sum 1; sums are of probabilities for classes."
        " The published gate learns from balance alone; this one from the labels, and nothing"
        " of what brings S near to a teacher reaches it",
        source="MST-Distill (ACM MM 2025, arXiv 2507.07015), with a gate that learns",
        cost="kd + a forward pass of each further teacher"
        " + a forward and backward pass of the teacher for the masks",
        evidence="tests/distill/recipes/test_mixture.py: the gate leaves a broken teacher, and"
        " beats the mean of all; docs/recipes.md",
    )
    tasks = ("counting", "classification", "regression")
    why = "it weighs labels against the teacher, and there the teacher gives the labels"
    extra_weights: ClassVar[ByReduction] = {
        "mean": {"mixture": 1.0, "gate": 1.0, "balance": 0.01, "masks": 1.0},
        "paper": {"mixture": 1.0, "gate": 1.0, "balance": 1.0, "masks": 1.0},
    }
    needs = ("teachers",)
    needs_taps = True
    needs_others = True
    reads_labels = True
    replaces_soft = True

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """A small net of the masks for each tap; the gate is made once the pool is known."""
        super().__init__(taps, options, objective)
        self._names = [tap.teacher for tap in taps]
        self._views = [tap.teacher_view.whole for tap in taps]  # a mask blurs nothing
        self.gate, self.masks = nn.Sequential(), nn.ModuleList()
        if not self.is_off("masks"):
            self.masks.extend(
                _net(tap.teacher_channels, tap.teacher_channels, OPEN) for tap in taps
            )
        self._embedding = taps[-1].student_channels
        self._masked: tuple[Rewired, ...] = ()  # a tuple, so that it is no submodule

    @classmethod
    def defaults(cls, objective: AnyObjective, reduction: str) -> Weights:
        """The mixture weighs under "mean" what the soft term does."""
        soft = objective.weights[reduction]["soft"] if reduction == "mean" else 1.0
        return {**super().defaults(objective, reduction), "mixture": soft}

    def prepare(self, context: RecipeContext) -> None:
        """The gate, by the size of an output and of the pool; and the teacher with its masks."""
        images = next(iter(context.crops())).images[:1]
        statistics = len(self._statistics(context.look(images)[0])[0])
        pool = 1 + len(context.others) + bool(self.masks)
        self.gate = _net(statistics + self._embedding, pool, 0.0)
        if self.masks:
            self._masked = (Rewired(context.teacher, self._names, images, self._views),)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`mixture`, `gate`, `balance`, and `masks` unless it is off."""
        assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
        terms, pool = {}, [inputs.teacher, *inputs.others]
        if self.masks:
            assert inputs.images is not None, "the trainer gives the images"
            masked = self.masked(inputs.images)
            terms["masks"] = self._soft(masked, inputs.target, inputs.student.detach())
            pool.append(masked.detach())
        outputs, log_gate = promoted(torch.stack(pool)), self.log_gate(inputs)
        mixture = self._blend(outputs, routed(log_gate.detach().exp()).log(), soften=True)
        terms["mixture"] = self._soft(inputs.student, inputs.target, mixture)
        own = self._blend(outputs, log_gate, soften=False)
        terms["gate"] = self.objective.hard(own, inputs.target)
        terms["balance"] = -math.log(len(pool)) - log_gate.exp().mean(0).log().mean()
        return terms

    def log_gate(self, inputs: LossInputs) -> Tensor:
        """log g, [N, teachers], from the student's output and the embedding of its last tap."""
        pooled = embedding(inputs.student_features[-1].detach())
        signs = torch.cat([self._statistics(inputs.student.detach()), symlog(pooled)], 1)
        return promoted(self.gate(signs)).log_softmax(1)

    def masked(self, images: Tensor) -> Tensor:
        """The output of the teacher with the channels of each tap weighed by its mask."""
        nets = zip(self._names, self.masks, strict=True)
        return self._masked[0](images, {name: partial(_weighed, net) for name, net in nets})

    def _statistics(self, output: Tensor) -> Tensor:
        """Logits, or mean, largest and deviation of what else there is, near 1: [N, D]."""
        output = promoted(output)
        if self.objective.of_classes:
            return symlog(output)
        flat = output.flatten(1)
        found = torch.stack([flat.mean(1), flat.amax(1), flat.std(1, correction=0)], 1)
        scales = self.objective.scales()
        return symlog(found / scales.get("scale", scales.get("squared", 1.0) ** 0.5))

    def _blend(self, outputs: Tensor, log_weights: Tensor, *, soften: bool) -> Tensor:
        """The mixture of outputs [M, N, ...]: the mean, or the logits of the mean probabilities.

        Softened logits are those whose softened probabilities are the mean of the softened ones.
        """
        if self.objective.of_classes:
            temperature = self.options.temperature if soften else 1.0
            logs = (outputs / temperature).log_softmax(2) + log_weights.T[:, :, None]
            return temperature * logs.logsumexp(0)
        weights = log_weights.exp().T
        return (outputs * weights.reshape(*weights.shape, *[1] * (outputs.dim() - 2))).sum(0)

    def _soft(self, output: Tensor, target: Tensor, other: Tensor) -> Tensor:
        # the student is in half precision under autocast, and a mixture never is
        return self.objective.terms(promoted(output), target, promoted(other))["soft"]


def routed(gate: Tensor, top: int = TOP) -> Tensor:
    """The largest weights of each row [N, M], scaled to a sum of 1, and zeros."""
    values, places = gate.topk(min(top, gate.shape[1]), dim=1)
    kept = torch.zeros_like(gate).scatter(1, places, values)
    return kept / kept.sum(1, keepdim=True)


def mask(net: nn.Module, maps: Tensor) -> Tensor:
    """The weight of each channel of maps [N, C, H, W], in 0..1, [N, C, 1, 1]."""
    return promoted(net(symlog(embedding(maps)))).sigmoid()[:, :, None, None]


def _weighed(net: nn.Module, maps: Tensor) -> Tensor:
    return maps * mask(net, maps)


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): near x where that is small, and never large."""
    return x.sign() * x.abs().log1p()


def _net(inputs: int, outputs: int, start: float) -> nn.Sequential:
    """Two layers that give `start` at first, whatever they are given."""
    last = nn.Linear(HIDDEN, outputs)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, start)
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), last)
