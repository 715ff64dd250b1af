"""Choice of calibration images."""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from kdcompile.calib.chosen import select_images
from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo

PHOTOS = [Photo(str(i)) for i in range(12)]


def names(photos: Sequence[Photo]) -> list[str]:
    return [photo.name for photo in photos]


def no_outputs(photos: Sequence[Photo]) -> Iterable[np.ndarray]:
    raise AssertionError("even and random need no outputs")


def own_number(photos: Sequence[Photo]) -> Iterable[np.ndarray]:
    return (np.array([[float(photo.name)]], np.float32) for photo in photos)


def test_even_and_random_compute_nothing() -> None:
    assert names(select_images(PHOTOS, "even", 4, 0, no_outputs)) == ["0", "3", "6", "9"]
    drawn = names(select_images(PHOTOS, "random", 5, 3, no_outputs))
    assert len(set(drawn)) == 5
    assert drawn == sorted(drawn, key=int)
    assert drawn == names(select_images(PHOTOS, "random", 5, 3, no_outputs))
    assert drawn != names(select_images(PHOTOS, "random", 5, 4, no_outputs))


@pytest.mark.parametrize("how", ["even", "random", "pcoreset"])
def test_all_photos_where_there_are_no_more(how: str) -> None:
    assert select_images(PHOTOS, how, 99, 0, no_outputs) == PHOTOS


def test_pcoreset_covers_the_outputs() -> None:
    chosen = names(select_images(PHOTOS, "pcoreset", 5, 0, own_number))
    assert chosen == ["0", "11", "5", "8", "2"]
    assert chosen == names(select_images(PHOTOS, "pcoreset", 5, 7, own_number))
    assert chosen[:3] == names(select_images(PHOTOS, "pcoreset", 3, 0, own_number))


def test_a_crowd_is_far_from_all_others_wherever_it_is() -> None:
    """Photo 7 has the same places as all, and ten times the count; photo 3 has other places."""

    def maps(photos: Sequence[Photo]) -> Iterable[np.ndarray]:
        for photo in photos:
            density = np.zeros((1, 1, 16, 16), np.float32)
            density[..., 8 if photo.name == "3" else 0] = 10.0 if photo.name == "7" else 1.0
            yield density

    assert names(select_images(PHOTOS, "pcoreset", 3, 0, maps)) == ["0", "7", "3"]


def test_an_output_that_is_no_number_is_refused_with_its_photo() -> None:
    def spoilt(photos: Sequence[Photo]) -> Iterable[np.ndarray]:
        return (output if output[0, 0] != 4 else output * np.nan for output in own_number(photos))

    with pytest.raises(KDError) as error:
        select_images(PHOTOS, "pcoreset", 3, 0, spoilt)
    assert (error.value.code, error.value.where) == ("output-nonfinite", "4")
