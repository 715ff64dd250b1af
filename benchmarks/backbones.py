"""Which public backbones are made smaller: the share of weights that stays at half the width.

    pip install --no-deps torchvision==0.28.0 timm     # beside the CPU build of torch
    python benchmarks/backbones.py -o benchmarks/backbones.csv [timm:NAME tv:NAME ...]

Random weights, the network's own input size, a tile of 8 channels. Each student is run once. What
`width = 0.5` is refused for is in the last column, in the words of the error.
"""

import argparse
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import csv_tables
import torch
from torch import nn

from kdcompile.config.spec import Budget
from kdcompile.core.errors import KDError
from kdcompile.models.channels import trace
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import students
from kdcompile.search.unshrunk import refuse_unshrunk

WIDTH, TILE = 0.5, 8
COLUMNS = ("network", "parameters_m", "share", "seconds", "refused")
NETWORKS = """
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
"""


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with random weights in inference mode, and its input size [1, C, H, W]."""
    source, _, kind = name.partition(":")
    if source == "timm":
        import timm

        made = timm.create_model(kind)
        return made.eval(), (1, *made.default_cfg["input_size"])
    import torchvision

    return torchvision.models.get_model(kind, weights=None).eval(), (1, 3, 224, 224)


def row(name: str) -> dict[str, object]:
    """One line of the table."""
    teacher, shape = network(name)
    begun = time.perf_counter()
    channels = trace(teacher, shape)
    architecture = students(channels, TILE, 0, [WIDTH])[0]
    student = student_from_architecture(teacher, architecture, Path()).eval()
    seconds = time.perf_counter() - begun
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if student(x).shape != teacher(x).shape:
            raise SystemExit(f"{name}: the student's output has another size")
    refused = ""
    try:
        refuse_unshrunk(teacher, channels, architecture, WIDTH, TILE, Budget(width=WIDTH))
    except KDError as error:
        refused = error.message.partition("resized: ")[2]
    full, kept = (sum(p.numel() for p in net.parameters()) for net in (teacher, student))
    values = (name, f"{full / 1e6:.2f}", f"{kept / full:.3f}", f"{seconds:.1f}", refused)
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    """Write the table line by line; networks that are in the file already are left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NETWORKS.split())
    parser.add_argument("-o", type=Path, default=Path("benchmarks/backbones.csv"))
    given = parser.parse_args()
    logging.disable(logging.ERROR)
    # what torchvision's compiled part would define, beside the CPU build of torch
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    done = csv_tables.kept(given.o, COLUMNS[:1])
    lines: list[Mapping[str, object]] = [*done.values()]
    for name in given.names:
        if (name,) not in done:
            lines.append(row(name))
            sys.stdout.write("  ".join(str(v) for v in lines[-1].values()) + "\n")
            sys.stdout.flush()
            csv_tables.write(given.o, COLUMNS, lines)


if __name__ == "__main__":
    main()
