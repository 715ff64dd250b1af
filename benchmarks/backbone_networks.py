"""The networks of benchmarks/backbones.py: of timm, torchvision and transformers, and by hand."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import hand_networks

PUBLIC = """
timm:convnext_tiny timm:convnextv2_atto timm:deit_tiny_patch16_224 timm:vit_small_patch16_224
timm:vit_small_patch14_dinov2 timm:swin_tiny_patch4_window7_224 timm:mixer_s32_224
timm:resmlp_12_224 timm:poolformer_s12 timm:efficientformer_l1 timm:mobilevit_s
timm:edgenext_xx_small timm:levit_128s timm:xcit_nano_12_p16_224 timm:pvt_v2_b0
timm:cait_xxs24_224 timm:twins_pcpvt_small
timm:mobilenetv3_small_100 timm:mobilenetv4_conv_small timm:hgnetv2_b0 timm:tf_efficientnet_lite0
timm:efficientnet_b0 timm:darknet53 timm:cspresnet50 timm:fastvit_t8 timm:efficientvit_b0
timm:ghostnetv2_100 timm:regnety_004 timm:repvit_m0_9 timm:resnet50d timm:seresnet50
timm:res2net50_26w_4s timm:resnest14d timm:nfnet_f0 timm:rexnet_100 timm:tinynet_a timm:lcnet_050
timm:mnasnet_100 timm:selecsls42b timm:ese_vovnet19b_dw timm:starnet_s1 timm:fasternet_t0
timm:inception_v3 timm:vgg11_bn timm:dla34 tv:resnet18 tv:mobilenet_v2 tv:shufflenet_v2_x1_0
tv:densenet121 tv:vit_b_32 tv:swin_t tv:convnext_tiny
hf:ViTForImageClassification hf:SwinForImageClassification hf:ConvNextForImageClassification
hf:SegformerForSemanticSegmentation hf:MobileViTForImageClassification
"""
HAND_WIDTH = 4  # times that of the tests


def names() -> list[str]:
    """All of them, as `source:name`."""
    return [*PUBLIC.split(), *(f"hand:{name}" for name in hand_networks.NAMES)]


class Logits(nn.Module):
    """A network of transformers, whose output is an object, as a network of one tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Its logits."""
        return self.network(image).logits


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with random weights in inference mode, and its example inputs, one of each.

    Raises:
        ImportError: its package is not installed.
    """
    source, _, kind = name.partition(":")
    torch.manual_seed(0)
    if source == "hand":
        return hand_networks.network(kind, HAND_WIDTH)
    _define_operators()
    size = [3, 224, 224]
    if source == "timm":
        import timm

        made = timm.create_model(kind)
        size = made.default_cfg["input_size"]
    elif source == "tv":
        import torchvision

        made = torchvision.models.get_model(kind, weights=None)
    else:
        import transformers

        of = getattr(transformers, kind)
        made = Logits(of(of.config_class()))
    return made.eval(), (torch.randn(1, *size),)


_library: list[torch.library.Library] = []


def _define_operators() -> None:
    """What torchvision's compiled part would define, beside the CPU build of torch."""
    if not _library:
        _library.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            _library[0].define(operator + arguments)
