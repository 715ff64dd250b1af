"""Detectors of several outputs with random weights, in the forms of `benchmarks/reference_*`.

Their photos are labelled with what they find themselves: then nothing needs to be trained, and a
student that imitates them has what is to be found.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from kdcompile.config.load import load_spec
from kdcompile.core.user_code import load_factory
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.models.joined import joined
from kdcompile.tasks.detection.task import Detection
from kdcompile.tasks.task import preprocess_of, task_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIDE, CLASSES, KEPT = 64, ("disc", "square"), 3
MODELS = {
    "ssd": '''
"""reference_ssd.SsdMobileNet of fewer channels: logits with a background, and offsets."""

from reference_ssd import SsdMobileNet, relu6, separable
from torch import nn


class Ssd(SsdMobileNet):
    channels, anchors = (16, 24), (2, 2)

    def __init__(self):
        nn.Module.__init__(self)
        self.classes = 3
        first = nn.Sequential(relu6(3, 8, 3, 2), separable(8, 16, 2), separable(16, 16, 2))
        self.levels = nn.ModuleList([first, separable(16, 24, 2)])
        self.scores = nn.ModuleList(nn.Conv2d(c, 2 * 3, 1) for c in self.channels)
        self.boxes = nn.ModuleList(nn.Conv2d(c, 2 * 4, 1) for c in self.channels)


def build():
    return Ssd()
''',
    "retinanet": '''
"""reference_retinanet's pyramid and heads of fewer channels: logits, and offsets."""

import reference_retinanet as reference
from reference_resnet import convolution
from torch import nn

reference.CHANNELS, reference.ANCHORS = 16, 2


class Small(reference.RetinaNet):
    def __init__(self):
        nn.Module.__init__(self)
        self.early = nn.Sequential(convolution(3, 8, 3, 2), convolution(8, 16, 3, 2))
        self.stages = nn.ModuleList(convolution(16, 16, 3, stride) for stride in (2, 2, 2))
        self.pyramid = reference.Pyramid((16, 16, 16))
        self.scores, self.boxes = reference.Head(2), reference.Head(4)


def build():
    return Small()
''',
}
HEADS = {
    "ssd": 'scores = "softmax", background = "first", anchors = "anchors.npz"',
    "retinanet": 'scores = "sigmoid", anchors = "anchors.npz", variances = [1.0, 1.0]',
}
STRIDES = {"ssd": (8, 16), "retinanet": (8, 16, 32, 64, 128)}
SPEC = """
target = "jetson"
[task]
kind = "detection"
decode = "ssd"
head = {{ {head} }}
[teacher]
model = "model.py:build"
weights = "teacher.safetensors"
[data]
format = "coco"
root = "data"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
[student]
family = "search"
budget = {{ speedup = 1.05 }}
[search]
space = "layers"
candidates = 50
finalists = 1
finalist_steps = 2
[distill]
recipe = "kd"
steps = 4
batch = 4
crop = 64
evaluations = 1
[export]
shape = [1, 3, 64, 64]
[quantize]
images = 4
[gates]
accuracy = {{ max_increase = "99%", margin = "100%" }}
parity = {{ min_sqnr_db = 5 }}
"""


def anchors_of(strides: tuple[int, ...], side: int) -> np.ndarray:
    """Two anchors a cell of each level, float32 [A, 4], in the order of the heads' rows."""
    rows = []
    for stride in strides:
        cells = np.arange(-(-side // stride))
        y, x = np.meshgrid(cells, cells, indexing="ij")
        for row, column in zip(y.ravel(), x.ravel(), strict=True):
            centre = ((column + 0.5) * stride, (row + 0.5) * stride)
            rows += [[*centre, s * stride, s * stride] for s in (1.5, 2.0)]
    return np.array(rows, np.float32)


def randomised(network: nn.Module) -> nn.Module:
    """Weights so that activations keep their size and an image's scores differ."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1, generator=generator)
    return network.eval()


def write_project(folder: Path, form: str, sizes: dict[str, int]) -> None:
    """Model, weights, anchors, spec, and photos labelled by the network itself."""
    for file in ("ssd", "resnet", "retinanet"):
        shutil.copy(BENCHMARKS / f"reference_{file}.py", folder)
    (folder / "model.py").write_text(MODELS[form])
    np.savez(folder / "anchors.npz", anchors=anchors_of(STRIDES[form], SIDE))
    (folder / "kdcompile.toml").write_text(SPEC.format(head=HEADS[form]))
    network = randomised(load_factory("model.py:build", folder)())
    save_file(network.state_dict(), folder / "teacher.safetensors")
    spec = load_spec(folder / "kdcompile.toml")
    write_photos(folder / "data", network, task_of(spec), preprocess_of(spec), sizes)


def write_photos(
    root: Path, network: nn.Module, task: Detection, prepare: Preprocess, sizes: dict[str, int]
) -> None:
    """Photos of coloured noise, each with the boxes that the network is surest of."""
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    side, plane = prepare.max_hw[0], Frame(prepare.max_hw, prepare.max_hw, prepare.max_hw)
    for split, count in sizes.items():
        images, annotations = [], []
        for number in range(count):
            coarse = random.integers(0, 255, (8, 8, 3), np.uint8)
            picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
            name = f"{split}{number}.png"
            picture.save(root / "images" / name)
            images.append({"id": number, "file_name": name, "width": side, "height": side})
            with torch.no_grad():
                output = joined(network(torch.from_numpy(prepare(np.asarray(picture)))))
            found = task.found(output.numpy(), plane).at(np.arange(KEPT))
            for box, kind in zip(found.boxes.tolist(), found.classes.tolist(), strict=True):
                annotations.append({
                    "id": len(annotations), "image_id": number, "category_id": kind + 1,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                })  # fmt: skip
        categories = [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
