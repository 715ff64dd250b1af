"""The reference networks of the latency fixtures as ONNX files with random weights.

They are those of MLPerf inference, some of the ONNX model zoo and detectors that are deployed:
latency depends on the structure, not on the weights. Structures are written from the papers and
MLCommons' reference implementations; what is left out or differs is in `DIFFERENCES`, and in a JSON
file beside each network, with its counts.
Non-maximum suppression is in no file; box decoding is in those of YOLO alone.

    python benchmarks/reference_networks.py OUT [--network NAME ...] [--opset 17]
"""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from reference_export import randomise, write_onnx
from reference_mobilenet import mobilenet_v2
from reference_resnet import resnet18, resnet50
from reference_retinanet import RetinaNet
from reference_ssd import SsdMobileNet, SsdResNet34
from reference_vit import OwlImageEncoder
from reference_yolo import SIZES, Yolo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json
from kdcompile.latency_model.network_cost import params
from kdcompile.onnx_graph.opset import EXPORTED_OPSET

TAIL = (
    "A measured run ends with class scores, box decoding and non-maximum suppression, wherever the "
    "submitter computed them; the file ends with logits and encoded boxes. "
)
DIFFERENCES = {
    "ResNet-50": (
        "1000 classes; MLPerf's file, converted from TensorFlow, has 1001 and ends with softmax "
        "and arg-max. Its 3x3 max-pooling is padded by one at the right and the bottom, this one "
        "by one all round; the sizes are the same."
    ),
    "SSD-MobileNet-v1": TAIL + "Otherwise the same layers and paddings.",
    "SSD-ResNet34": (
        TAIL + "Parameters are 0.4 % fewer than published: presumably constants of the decoder, "
        "such as the default boxes, are counted there."
    ),
    "ResNet-18": "Its normalisation of the image is outside, as in the model zoo's resnet18-v1-7.",
    "ResNet-50 v1": (
        "The biases of the model zoo's resnet50-v1-7, which normalisation makes idle, are left out."
    ),
    "MobileNetV2": "None known to the model zoo's mobilenetv2-12.",
    **dict.fromkeys(SIZES, "None known but that boxes are suppressed outside the exported file."),
    "OWL-ViT-B/32": "How the measured engine splits its heads is not known; they are small.",
    "RetinaNet": (
        TAIL + "The reference also normalises the image inside. Its frozen batch normalisations "
        "are ordinary ones here, folded into the convolutions on export."
    ),
}


@dataclass(frozen=True)
class Reference:
    """A network, by the name that fixtures give it.

    Args:
        build: makes it, with weights of no use; under `torch.device("meta")` without memory.
        size: height and width of the measured input.
        outputs: names, in the order of what it returns.
        published: parameters in millions and GMAC, None where nobody gives them.
        source: who gives them.
    """

    name: str
    build: Callable[[], nn.Module]
    size: int
    outputs: tuple[str, ...]
    published: tuple[float, float] | None
    source: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The measured input at batch 1."""
        return 1, 3, self.size, self.size

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.name.lower().replace('/', '')}_{self.size}.onnx"


_DETECTIONS = ("logits", "boxes")
NETWORKS = {
    reference.name: reference
    for reference in (
        Reference(
            "ResNet-50", resnet50, 224, ("logits",), (25.557, 4.09),
            "torchvision, resnet50; MLPerf inference paper, arXiv:1911.02549: 8.2 GOP",
        ),
        Reference(
            "ResNet-50 v1", partial(resnet50, early=True), 224, ("logits",), (25.557, 3.858),
            "He et al., arXiv:1512.03385, table 1: 3.8e9 multiply-adds",
        ),
        Reference(
            "ResNet-18", resnet18, 224, ("logits",), (11.690, 1.814),
            "torchvision, resnet18",
        ),
        Reference(
            "MobileNetV2", mobilenet_v2, 224, ("logits",), (3.505, 0.3008),
            "torchvision, mobilenet_v2; arXiv:1801.04381, table 4: 3.4 M, 300 M",
        ),
        Reference(
            "SSD-MobileNet-v1", SsdMobileNet, 300, _DETECTIONS, (6.807, 1.235),
            "Open Model Zoo, ssd_mobilenet_v1_coco: folded; MLPerf inference paper: 2.47 GOP",
        ),
        Reference(
            "SSD-ResNet34", SsdResNet34, 1200, _DETECTIONS, (20.058, 216.7),
            "Open Model Zoo, ssd-resnet34-1200-onnx: 433.4 GOP; MLPerf inference paper: 433 GOP",
        ),
        Reference(
            "RetinaNet", RetinaNet, 800, _DETECTIONS, None,
            "none known for 264 classes. With 91 and a ResNet-50 this code gives the 34,014,999 "
            "parameters and 151.54 GMAC of torchvision's retinanet_resnet50_fpn",
        ),
        Reference(
            "OWL-ViT-B/32", partial(OwlImageEncoder, 768, 32), 768, _DETECTIONS, None,
            "none known of the image's half alone",
        ),
        *(
            Reference(
                name, partial(Yolo, name, 640), 640, ("detections",), counts,
                f"Ultralytics, table of {name[:-1]}: parameters with normalisations folded in",
            )
            for name, counts in (
                ("YOLOv8n", (3.152, 4.35)), ("YOLO11n", (2.616, 3.25)),
                ("YOLO11s", (9.444, 10.75)), ("YOLO11m", (20.092, 34.0)),
            )
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Parameters as trained, parameters with normalisations folded in, and multiply-adds."""

    params: int
    folded: int
    macs: int


def macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of one inference, biases excluded; a copy is run on shapes alone."""
    shadow = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(tuple(shape), device="meta"))
    return int(counter.get_total_flops()) // 2


def count(network: nn.Module, shape: Sequence[int]) -> Counts:
    """The counts of a network on any device for an input of `shape`; nothing is computed."""
    norms = [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    total = params(network)
    return Counts(total, total - sum(norms), macs(network, shape))


def write(reference: Reference, folder: Path, max_opset: int = EXPORTED_OPSET) -> Path:
    """Write `reference.file` to the folder, and what is known of it beside it as JSON.

    Raises:
        KDError: as `reference_export.write_onnx`.
    """
    network = randomise(reference.build())
    path = folder / reference.file
    write_onnx(network, path, reference.shape, reference.outputs, max_opset)
    counts = count(network, reference.shape)
    about = {
        "network": reference.name,
        "sha256": file_sha256(path),
        "shape": list(reference.shape),
        "outputs": list(reference.outputs),
        "params": counts.params,
        "params_folded": counts.folded,
        "gmac": counts.macs / 1e9,
        "published": reference.published,
        "source": reference.source,
        "differences": DIFFERENCES[reference.name],
    }
    write_json(path.with_suffix(".json"), about)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; the exit code is the error's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument(
        "--network", action="append", choices=list(NETWORKS), help="only this one; repeatable"
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=EXPORTED_OPSET,
        help="newest opset that is read; 17: TensorRT 8",
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.network or NETWORKS:
        try:
            print(write(NETWORKS[name], options.out, options.opset))
        except KDError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
