"""YOLOv8 and YOLO11 with the decoding of their boxes, as their exported files have it.

Sources: Ultralytics' architecture pages and model tables (depths, widths, where what is joined);
Wang et al. 2019, arXiv:1911.11929 (cross-stage blocks); Li et al. 2020, arXiv:2006.04388 (a side of
a box as the mean of a distribution over 16 bins). Suppression of boxes is in no file.
"""

import torch
from reference_yolo_blocks import Attended, CrossStage, Pool, convolution, separable
from torch import Tensor, nn
from torch.nn import functional

BINS = 16  # of a side's distance
CLASSES = 80
STRIDES = (8, 16, 32)
SIZES = {  # depth, width, most channels
    "YOLOv8n": (1 / 3, 0.25, 1024), "YOLO11n": (0.5, 0.25, 1024), "YOLO11s": (0.5, 0.5, 1024),
    "YOLO11m": (0.5, 1.0, 512),
}  # fmt: skip


class Head(nn.Module):
    """Of one level: logits of four sides, and of the classes."""

    def __init__(self, inputs: int, first: int, separate: bool) -> None:
        super().__init__()
        sides, inner = max(first // 4, 4 * BINS), max(first, CLASSES)
        self.sides = nn.Sequential(
            convolution(inputs, sides, 3),
            convolution(sides, sides, 3),
            nn.Conv2d(sides, 4 * BINS, 1),
        )
        block = separable if separate else convolution
        self.classes = nn.Sequential(
            block(inputs, inner, 3), block(inner, inner, 3), nn.Conv2d(inner, CLASSES, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, 4 x BINS + CLASSES, H, W]."""
        return torch.cat((self.sides(x), self.classes(x)), 1)


class Decode(nn.Module):
    """Boxes of the distances to the four sides, and scores of the classes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        centres, strides = [], []
        for stride in STRIDES:
            line = torch.arange(size // stride) + 0.5
            y, x = torch.meshgrid(line, line, indexing="ij")
            centres.append(torch.stack((x, y)).reshape(2, -1))
            strides.append(torch.full((1, line.numel() ** 2), float(stride)))
        self.register_buffer("centres", torch.cat(centres, 1)[None])
        self.register_buffer("strides", torch.cat(strides, 1))
        self.mean = nn.Conv2d(BINS, 1, 1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Levels' logits to [N, 4 + CLASSES, places]."""
        flat = torch.cat([x.flatten(2) for x in maps], 2)
        sides, classes = flat.split((4 * BINS, CLASSES), 1)
        bins = sides.reshape(len(sides), 4, BINS, -1).transpose(2, 1).softmax(1)
        near, far = self.mean(bins).reshape(len(sides), 4, -1).chunk(2, 1)
        first, last = self.centres - near, self.centres + far
        boxes = torch.cat(((first + last) / 2, last - first), 1) * self.strides
        return torch.cat((boxes, classes.sigmoid()), 1)


class Yolo(nn.Module):
    """A backbone, a pyramid upwards and downwards, and a head on each of three levels."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        depth, width, most = SIZES[name]
        later = name.startswith("YOLO11")
        c1, c2, c3, c4, c5 = (round(min(c, most) * width) for c in (64, 128, 256, 512, 1024))
        small, large = (2, 2) if later else (3, 6)
        always = name == "YOLO11m"

        def stage(inputs: int, outputs: int, depth_of: int, **how: bool | float) -> CrossStage:
            if later:
                how = {"nested": always, **how}
            return CrossStage(inputs, outputs, max(1, round(depth_of * depth)), later, **how)

        deep = {"nested": True} if later else {}
        wide = {"share": 0.25} if later else {}
        second, third = (c3, c4) if later else (c2, c3)
        self.stem = nn.Sequential(
            convolution(3, c1, 3, 2), convolution(c1, c2, 3, 2),
            stage(c2, second, small, adds=True, **wide), convolution(second, c3, 3, 2),
            stage(c3, third, large, adds=True, **wide),
        )  # fmt: skip
        self.middle = nn.Sequential(
            convolution(third, c4, 3, 2), stage(c4, c4, large, adds=True, **deep)
        )
        ends = [Pool(c5), Attended(c5, max(1, round(2 * depth)))] if later else [Pool(c5)]
        self.top = nn.Sequential(
            convolution(c4, c5, 3, 2), stage(c5, c5, small, adds=True, **deep), *ends
        )
        self.up4 = stage(c5 + c4, c4, small, adds=later)
        self.up3 = stage(c4 + third, c3, small, adds=later)
        self.down4, self.in4 = convolution(c3, c3, 3, 2), stage(c3 + c4, c4, small, adds=later)
        self.down5 = convolution(c4, c4, 3, 2)
        self.in5 = stage(c4 + c5, c5, small, adds=later, **deep)
        self.heads = nn.ModuleList(Head(c, c3, later) for c in (c3, c4, c5))
        self.decode = Decode(size)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, size, size] to [N, 84, places]."""
        three = self.stem(image)
        four = self.middle(three)
        five = self.top(four)
        inner = self.up4(torch.cat((_doubled(five), four), 1))
        p3 = self.up3(torch.cat((_doubled(inner), three), 1))
        p4 = self.in4(torch.cat((self.down4(p3), inner), 1))
        p5 = self.in5(torch.cat((self.down5(p4), five), 1))
        maps = [head(x) for head, x in zip(self.heads, (p3, p4, p5), strict=True)]
        result: Tensor = self.decode(maps)
        return result


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0)
