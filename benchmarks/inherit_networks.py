"""Eight well-known networks at the size of CIFAR-10's images, by their own constructors' arguments.

timm and torchvision beside the CPU build of torch, see `backbones.py`. Each takes [N, 3, 32, 32]
and gives logits of ten classes; depth, width and patches are such that a CPU trains it in minutes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

CLASSES = 10


def without_operators() -> torch.library.Library:
    """What torchvision's compiled part would define, which it lacks beside the CPU build of torch.

    Returns:
        The library; the operators are there for as long as it is.
    """
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def resnet18() -> nn.Module:
    """timm's, half as wide, with the deep stem."""
    from timm.models.resnet import BasicBlock, ResNet

    layers, channels = (2, 2, 2, 2), (32, 64, 128, 256)
    stem: dict[str, Any] = {"stem_type": "deep", "stem_width": 16}
    return ResNet(BasicBlock, layers, num_classes=CLASSES, channels=channels, **stem)  # type: ignore[arg-type]


def mobilenetv2() -> nn.Module:
    """torchvision's, four stages."""
    from torchvision.models.mobilenetv2 import MobileNetV2

    stages = [[1, 16, 1, 1], [4, 16, 1, 1], [6, 32, 2, 2], [6, 64, 2, 2]]
    made: nn.Module = MobileNetV2(CLASSES, inverted_residual_setting=stages, dropout=0.0)
    return made


def efficientnet_b0() -> nn.Module:
    """torchvision's blocks with squeeze and excitation, four stages."""
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    block = partial(MBConvConfig, width_mult=1.0, depth_mult=1.0)
    stages = [block(1, 3, 1, 32, 16, 1), block(4, 3, 1, 16, 16, 1), block(6, 5, 2, 16, 32, 2)]
    stages.append(block(6, 3, 2, 32, 64, 2))
    made: nn.Module = EfficientNet(stages, 0.0, num_classes=CLASSES, last_channel=256)
    return made


def convnext() -> nn.Module:
    """timm's, patches of 2."""
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=CLASSES, depths=(2, 2, 4, 2), dims=(32, 64, 96, 160), patch_size=2)


def vit_tiny() -> nn.Module:
    """timm's, half as wide as ViT-tiny with its three heads, four blocks, patches of 4."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
    return VisionTransformer(num_classes=CLASSES, **sizes)  # type: ignore[arg-type]


def swin_tiny() -> nn.Module:
    """torchvision's, two stages, windows and patches of 4."""
    from torchvision.models.swin_transformer import SwinTransformer

    sizes = {"patch_size": [4, 4], "embed_dim": 64, "depths": [2, 2], "num_heads": [4, 8]}
    made: nn.Module = SwinTransformer(
        **sizes, window_size=[4, 4], num_classes=CLASSES, stochastic_depth_prob=0.0
    )
    return made


def regnet() -> nn.Module:
    """torchvision's RegNetY of eight blocks in groups of 16."""
    from torchvision.models.regnet import BlockParams, RegNet

    blocks = BlockParams.from_init_params(
        depth=8, w_0=32, w_a=24, w_m=2.2, group_width=16, se_ratio=0.25
    )
    made: nn.Module = RegNet(blocks, num_classes=CLASSES, stem_width=32)
    return made


def repvit() -> nn.Module:
    """timm's, as it is trained: its parallel branches unfused, and one classifier."""
    from timm.models.repvit import RepVit

    sizes: dict[str, Any] = {"embed_dim": (32, 64, 96, 160), "depth": (1, 1, 3, 1)}
    return RepVit(num_classes=CLASSES, distillation=False, **sizes)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": resnet18,
    "MobileNetV2": mobilenetv2,
    "EfficientNet-B0": efficientnet_b0,
    "ConvNeXt": convnext,
    "ViT-tiny": vit_tiny,
    "Swin-tiny": swin_tiny,
    "RegNet": regnet,
    "RepViT": repvit,
}
