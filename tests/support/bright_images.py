"""Images that are dark or bright, and a network that tells them apart."""

import numpy as np
import torch
from torch import nn

SHORT = {"distill": {"steps": 4}}  # of a build that is as short as it can be


def bright(first, last):
    """(image, label) for some numbers: floats [1, 8, 8], and 1 where it is bright."""
    found = []
    for number in range(first, last):
        noise = np.random.default_rng(number).integers(0, 99, (1, 8, 8))
        image = torch.tensor(noise + number % 2 * 150, dtype=torch.float32) / 255
        found.append((image, number % 2))
    return found


def network():
    """The mean brightness, and whether it is above a half."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.constant_(net[0].weight, 1 / 9)
    net[3].weight.data[:] = torch.tensor([[-1.0], [1.0]])
    net[0].bias.data[:], net[3].bias.data[:] = 0, torch.tensor([2.0, -2.0])
    return net
