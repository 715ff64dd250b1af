"""Networks run over labelled photos: predictions, difficulty, and labels that cannot be."""

import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates.evaluate import evaluate, example_arrays, pick_examples
from kdcompile.tasks.task import find_task

PREPROCESS = Preprocess(1, (0.0,), (1.0,), (4, 4), (4, 4))
COMPARED = ("student_fp32", "student")


def photo(name: str, grey: int, label: float) -> Photo:
    return Photo(name, array=np.full((4, 4, 1), grey, np.uint8), label=label)


def logits(image: np.ndarray) -> np.ndarray:
    """Surely class 1 for white, class 0 for black, undecided for grey."""
    return np.float32([[0, 20 * (image.mean() - 0.5)]])


def test_classes_are_told_and_the_hardest_photo_is_known() -> None:
    photos = [photo("white", 255, 1), photo("black", 0, 0), photo("wrong", 0, 1)]
    runners = {"student_fp32": logits, "student": lambda image: 2 * logits(image)}
    found = evaluate(runners, COMPARED, photos, PREPROCESS, find_task("classification"))
    assert found.predicted["student"].tolist() == [1, 0, 0]
    assert found.difficulty == pytest.approx([0, 0, 1], abs=1e-6)
    assert found.parity.sqnr_db == pytest.approx(0)
    assert pick_examples(found.difficulty)["worst"] == 2


@pytest.mark.parametrize(
    ("label", "classes", "text"), [(2, None, "a label of 2"), (1, ["a"], "1 classes")]
)
def test_a_label_without_an_output_names_its_photo(label, classes, text) -> None:
    runners = dict.fromkeys(COMPARED, logits)
    task = find_task("classification")
    with pytest.raises(KDError, match=text) as caught:
        evaluate(runners, COMPARED, [photo("odd", 9, label)], PREPROCESS, task, classes)
    assert (caught.value.code, caught.value.where) == ("labels-invalid", "odd")
    assert caught.value.fix


def test_an_example_without_a_density_is_its_pixels() -> None:
    arrays = example_arrays(photo("white", 255, 1), PREPROCESS, {}, find_task("counting"))
    assert set(arrays) == {"pixels"}
    assert arrays["pixels"].shape == (4, 4, 1)


def test_no_photos_and_a_photo_without_a_label_give_no_verdict() -> None:
    runners = dict.fromkeys(COMPARED, logits)
    task = find_task("classification")
    bare = Photo("bare", array=np.zeros((4, 4, 1), np.uint8))
    for photos, code in (([], "test-empty"), ([bare], "label-missing")):
        with pytest.raises(KDError) as caught:
            evaluate(runners, COMPARED, photos, PREPROCESS, task)
        assert caught.value.code == code
        assert caught.value.fix


def test_a_network_may_take_another_preprocessing() -> None:
    """Of twice the size here: its cells hold four times as much, and a quarter are the photo's."""
    larger = Preprocess(1, (0.0,), (1.0,), (8, 8), (8, 8))
    white = [Photo("white", array=np.full((4, 4, 1), 255, np.uint8))]
    runners = dict.fromkeys((*COMPARED, "previous"), lambda image: 0 * image + image.size)
    found = evaluate(
        runners, COMPARED, white, PREPROCESS, find_task("counting"), own={"previous": larger}
    )
    assert found.predicted["student"].tolist() == [16 * 16]
    assert found.predicted["previous"].tolist() == [16 * 64]
    # what lies in the padding is not counted: a quarter of the map is the photo's
    assert found.maps["previous"][0] == pytest.approx([16 * 64] * 3)


def test_parity_is_over_all_images_and_its_error_is_the_worst() -> None:
    """A tenth off on one image, a hundredth on the other: of small outputs."""
    outputs = {COMPARED[0]: iter([1e-3, 1e-3]), COMPARED[1]: iter([1.1e-3, 1.01e-3])}
    photos = [Photo(name, array=np.zeros((4, 4, 1), np.uint8)) for name in "ab"]

    def network(name):
        return lambda image: np.full((1, 1, 4, 4), next(outputs[name]), np.float32)

    runners = {name: network(name) for name in COMPARED}
    found = evaluate(runners, COMPARED, photos, PREPROCESS, find_task("counting")).parity
    assert found.max_rel_error == pytest.approx(0.1, rel=1e-3)
    assert found.sqnr_db == pytest.approx(10 * np.log10(2 / (0.1**2 + 0.01**2)), abs=1e-2)
    assert (found.n, found.mode) == (2, "student against student_fp32 on test images")


def test_an_example_has_the_greys_of_its_photo() -> None:
    array = np.array([[[0], [100], [200], [255]]] * 4, np.uint8)
    arrays = example_arrays(Photo("greys", array=array), PREPROCESS, {}, find_task("counting"))
    assert np.abs(arrays["pixels"][0, :, 0].astype(int) - [0, 100, 200, 255]).max() == 0


def test_an_example_has_the_density_of_each_network_over_the_photo() -> None:
    """In the padding, right and below, the density is 0 and the image has the mean colour."""
    padded = Preprocess(1, (1.2,), (1.0,), (8, 8), (8, 8))
    networks = {"student": lambda image: np.full((1, 1, 8, 8), 2, np.float32)}
    arrays = example_arrays(photo("grey", 51, 1), padded, networks, find_task("counting"))
    inside = np.zeros((8, 8))
    inside[:4, :4] = 1
    assert arrays["student"].tolist() == (2 * inside).tolist()
    assert arrays["pixels"][:, :, 0].tolist() == np.where(inside, 51, 255).tolist()


@pytest.mark.parametrize(("name", "who"), [("student", "student"), ("previous", "earlier bundle")])
def test_an_output_that_is_no_number_names_its_network(name, who) -> None:
    def broken(image):
        return 0 * logits(image) + np.nan

    runners = {**dict.fromkeys(COMPARED, logits), name: broken}
    with pytest.raises(KDError, match=f"the {who} gave NaN") as caught:
        evaluate(runners, COMPARED, [photo("a", 0, 0)], PREPROCESS, find_task("classification"))
    assert caught.value.code == "output-nonfinite"
