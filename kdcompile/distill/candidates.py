"""Random views of images on the device, milder and harsher ones alike.

Images are [N, C, H, W], normalised (deviation 1). Random numbers are torch's own, one set an
image; nothing waits for the device and shapes depend on no value.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, pad

from kdcompile.distill.amp import promoted
from kdcompile.kernels._runtime import full_precision

BRIGHTNESS = 0.3  # largest shift, in deviations of the pixels
CONTRAST = 0.3  # largest logarithm of the factor
NOISE = 0.2  # largest deviation of the noise of an image
TURN, SHIFT = math.radians(15), 0.1  # largest angle, and way as a share of the side


def recoloured(images: Tensor) -> Tensor:
    """Other brightness, contrast, sharpness and noise; every object stays where it is."""
    images = promoted(images)
    brightness, contrast = BRIGHTNESS * _signed(images), (CONTRAST * _signed(images)).exp()
    mean = images.mean((1, 2, 3), keepdim=True)
    sharp = mean + contrast * (images - mean) + brightness
    wide = pad(sharp, (1, 1, 1, 1), "replicate")
    soft = avg_pool2d(avg_pool2d(wide, 2, stride=1), 2, stride=1)  # 1 2 1 down and across
    blurred = torch.lerp(sharp, soft, _signed(images).abs())
    return blurred + NOISE * _signed(images) * torch.randn_like(images)


def turned(images: Tensor) -> Tensor:
    """Turned about the centre and shifted; the border's pixels fill what was not in sight."""
    images = promoted(images)
    ratio = images.shape[2] / images.shape[3]
    turn, right, down = (_signed(images).flatten() for _ in range(3))
    sine, cosine = (TURN * turn).sin(), (TURN * turn).cos()
    rows = [cosine, -sine * ratio, 2 * SHIFT * right, sine / ratio, cosine, 2 * SHIFT * down]
    way = torch.stack(rows, 1).view(-1, 2, 3)
    with full_precision(images):  # half of it would round places to whole pixels
        grid = affine_grid(way, list(images.shape), align_corners=False)
        return grid_sample(images, grid, padding_mode="border", align_corners=False)


def _signed(images: Tensor) -> Tensor:
    """A uniform number in -1..1 for each image, [N, 1, 1, 1]."""
    drawn = torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    return 2 * drawn - 1
