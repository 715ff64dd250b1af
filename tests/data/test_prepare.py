"""From pixels to the network's input."""

import json

import numpy as np
import pytest

from kdcompile.config.spec import Data, Export, Spec, Task
from kdcompile.data.preprocess import Preprocess
from kdcompile.tasks.task import preprocess_of

DYNAMIC = Preprocess(3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), (32, 32), (64, 96))


def _pixels(height, width, channels=3, value=51):
    return np.full((height, width, channels), value, np.uint8)


def test_values_are_normalised_per_channel():
    image = DYNAMIC(_pixels(40, 50))
    assert image.shape == (1, 3, 40, 50)
    assert image.dtype == np.float32
    assert image[0, :, 0, 0] == pytest.approx([(0.2 - m) / 0.2 for m in (0.5, 0.4, 0.3)], abs=1e-6)


@pytest.mark.parametrize(
    ("size", "expected"), [((128, 96), (64, 48)), ((64, 192), (32, 96)), ((65, 10), (64, 32))]
)
def test_large_photos_are_scaled_to_fit(size, expected):
    assert DYNAMIC(_pixels(*size)).shape[2:] == expected


def test_small_photos_are_padded_with_the_mean():
    image = DYNAMIC(_pixels(20, 40))
    assert image.shape == (1, 3, 32, 40)
    assert (image[:, :, 20:] == 0).all()
    assert (image[:, :, :20] != 0).all()


def test_a_fixed_network_gets_its_size():
    data = Data(format="m.py:f", root=".", mean=[0.1], std=[0.2])
    fixed = preprocess_of(
        Spec.model_construct(data=data, export=Export(shape=[1, 1, 48, 64]), task=Task())
    )
    for size in ((48, 64), (10, 10), (300, 70), (1, 1)):
        assert fixed(_pixels(*size, channels=1)).shape == (1, 1, 48, 64)


def test_json_round_trip():
    assert Preprocess.from_json(json.loads(json.dumps(DYNAMIC.to_json()))) == DYNAMIC
