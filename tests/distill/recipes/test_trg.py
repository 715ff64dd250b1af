"""trg: graphs of cells, against float64; which cells, and of which taps."""

from itertools import chain

import numpy as np
import pytest
import torch
from relation_recipes import MAPS, check_gradients, check_precision, drawn, made, seen

from kdcompile.distill.recipe import LossInputs
from kdcompile.distill.recipes import trg


def _cells(maps):
    """A list of cells' vectors for each image."""
    maps = np.asarray(maps)
    if maps.ndim == 2:
        return [[v] for v in maps]
    if maps.ndim == 3:
        return [list(image) for image in maps]
    return [list(image.reshape(len(image), -1).T) for image in maps]


def _graph(student, teacher):
    """Mean over the cells of KL between the softmaxes of their similarities to the others."""
    if len(student) == 1:
        return 0.0
    total = 0.0
    for i in range(len(student)):
        edges = []
        for cells in (student, teacher):
            unit = [c / np.sqrt((c * c).sum()) for c in cells]
            weights = [np.exp(10 * np.dot(unit[i], u)) for j, u in enumerate(unit) if j != i]
            edges.append(np.array(weights) / sum(weights))
        total += np.sum(edges[1] * np.log(edges[1] / edges[0]))
    return total / len(student)


@pytest.mark.parametrize("shapes", MAPS.values(), ids=MAPS)
def test_it_is_its_formula(shapes):
    maps = drawn(shapes)
    terms = made("trg").extra(seen(*maps))
    student, teacher = (_cells(each) for each in maps)
    inter = _graph(*(list(chain.from_iterable(each)) for each in (student, teacher)))
    intra = np.mean([_graph(s, t) for s, t in zip(student, teacher, strict=True)])
    assert terms["trg_inter"].item() == pytest.approx(inter, rel=1e-8, abs=1e-12)
    assert terms["trg_intra"].item() == pytest.approx(intra, rel=1e-8, abs=1e-12)


def test_gradients_and_precisions():
    check_precision(made("trg"))
    check_gradients(made("trg"))


def test_teacher_and_scale_and_order_of_images_and_of_cells():
    recipe, (student, teacher) = made("trg"), drawn(MAPS["maps"])
    terms = recipe.extra(seen(student, teacher))
    assert all(value > 0 for value in terms.values())
    for value in recipe.extra(seen(2 * teacher, teacher)).values():
        assert value.item() == pytest.approx(0, abs=1e-9)
    shuffled = [
        m[torch.tensor([4, 2, 0, 1, 3])].flip(3).transpose(2, 3) for m in (student, teacher)
    ]
    for name, value in recipe.extra(seen(*shuffled)).items():
        assert value.item() == pytest.approx(terms[name].item(), rel=1e-9)


def test_a_single_image_has_relations_between_its_cells():
    terms = made("trg").extra(seen(*drawn(((1, 3, 2, 2), (1, 6, 2, 2)))))
    assert terms["trg_inter"].item() == pytest.approx(terms["trg_intra"].item(), rel=1e-9)
    assert terms["trg_inter"] > 0


def test_cells_are_drawn_one_of_each_run_and_the_same_in_both_networks():
    torch.manual_seed(0)
    device = torch.device("cpu")
    assert trg.drawn(7, 7, device).tolist() == list(range(7))
    picks = torch.stack([trg.drawn(10, 4, device) for _ in range(300)])
    for column, run in zip(picks.T, ([0, 1], [2, 3, 4], [5, 6], [7, 8, 9]), strict=True):
        assert column.unique().tolist() == run
    many = drawn(((2, 3, 30, 30), (2, 3, 30, 30)))[0].float()
    terms = made("trg").extra(seen(many, many))  # 1800 cells: other cells would not agree
    assert all(abs(value.item()) < 1e-5 for value in terms.values())
    assert all(value > 0 for value in made("trg").extra(seen(many, many.flip(3))).values())


def test_the_last_taps_with_several_cells_are_compared():
    early, pooled_maps = drawn(MAPS["maps"]), drawn(((5, 4, 1, 1), (5, 2, 1, 1)), 1)
    output = torch.zeros(5, 1)
    features = zip(early, pooled_maps, strict=True)
    terms = made("trg").extra(LossInputs(output, output, output, *map(list, features)))
    alone = made("trg").extra(seen(*early))
    assert {n: v.item() for n, v in terms.items()} == {n: v.item() for n, v in alone.items()}


def test_a_graph_that_is_off_is_not_computed():
    maps = drawn(MAPS["maps"])
    for name, other in (("trg_inter", "trg_intra"), ("trg_intra", "trg_inter")):
        assert set(made("trg", weights={name: 0.0}).extra(seen(*maps))) == {other}
