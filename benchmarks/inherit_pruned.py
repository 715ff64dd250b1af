"""Torch-Pruning at a given cost: a network pruned by magnitude, or by a first-order Taylor term.

Version 1.6.1, as it documents it: `num_heads` for timm's attention, the classifier ignored, no
rounding, local ratios. The ratio is found by bisection.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

BISECTIONS = 8
METHODS = ("magnitude", "taylor")


def macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of one image, attention's products included."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(*shape))
    return int(counter.get_total_flops() // 2)


def pruned(
    teacher: nn.Module, method: str, wanted: int, batches: Sequence[tuple[Tensor, Tensor]]
) -> nn.Module:
    """The pruned network whose number of multiply-adds is nearest to the one that is wanted.

    Args:
        teacher: in inference mode.
        method: of METHODS.
        wanted: multiply-adds.
        batches: images [N, C, H, W] with labels, for the gradients of `taylor`.
    """
    shape = (1, *batches[0][0].shape[1:])
    low, high = 0.0, 0.95
    found: list[tuple[int, nn.Module]] = []
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        made = _pruned(teacher, method, ratio, batches)
        cost = macs(made, shape)
        found.append((abs(cost - wanted), made))
        low, high = (low, ratio) if cost <= wanted else (ratio, high)
    return min(found, key=lambda item: item[0])[1].requires_grad_(True)


def _pruned(
    teacher: nn.Module, method: str, ratio: float, batches: Sequence[tuple[Tensor, Tensor]]
) -> nn.Module:
    import torch_pruning

    network = copy.deepcopy(teacher).eval().requires_grad_(True)
    attentions = [m for m in network.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")]
    heads = {m.qkv: m.num_heads for m in attentions}
    classifier = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    if method == "taylor":
        network.zero_grad()
        for images, labels in batches:
            cross_entropy(network(images), labels).backward()
        importance: Any = torch_pruning.importance.GroupTaylorImportance()
    else:
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.BasePruner(
        network, batches[0][0][:1], importance=importance, pruning_ratio=ratio,
        ignored_layers=[classifier], num_heads=heads,
    )  # fmt: skip
    pruner.step()
    for module in attentions:  # as its example for timm's ViT does
        module.num_heads = pruner.num_heads[module.qkv]
        module.head_dim = module.qkv.out_features // (3 * module.num_heads)
        module.attn_dim = module.num_heads * module.head_dim
        module.scale = module.head_dim**-0.5
    network.zero_grad()
    return network
