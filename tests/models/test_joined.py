"""Outputs of boxes and scores, in all forms that networks give them, as one."""

import pytest
import torch
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.models.joined import joined, joins_outputs, with_joined_outputs

BOXES, SCORES = torch.rand(2, 10, 4), torch.rand(2, 10, 3)
WANTED = torch.cat([BOXES, SCORES], 2)
LEVELS = ((2, 2), (1, 1))  # with two anchors a cell: 10 rows


def maps(rows):
    """The rows as maps of levels, [N, 2 * K, h, w]."""
    n, _, values = rows.shape
    found, first = [], 0
    for height, width in LEVELS:
        part = rows[:, first : first + height * width * 2]
        part = part.reshape(n, height, width, 2, values).permute(0, 3, 4, 1, 2)
        found.append(part.reshape(n, 2 * values, height, width))
        first += height * width * 2
    return found


@pytest.mark.parametrize(
    "given",
    [
        (SCORES, BOXES),
        [BOXES, SCORES],
        (SCORES.mT, BOXES.mT),
        {"pred_logits": SCORES, "pred_boxes": BOXES, "hidden": torch.rand(2, 7)},
        {"boxes": BOXES, "conf": SCORES,
         "aux": [{"boxes": BOXES + 1, "conf": SCORES}]},
        (maps(SCORES), maps(BOXES)),
        [pair for level in zip(maps(BOXES), maps(SCORES), strict=True) for pair in level],
        {"box_maps": maps(BOXES), "class_maps": maps(SCORES)},
    ],
    ids=["rows", "other", "columns", "names", "auxiliary", "levels", "pairs", "named levels"],
)  # fmt: skip
def test_boxes_come_first_whatever_the_form(given):
    assert torch.equal(joined(given), WANTED)


def test_as_many_classes_as_sides_need_names():
    four = torch.rand(2, 10, 4)
    assert torch.equal(joined({"scores": four, "boxes": BOXES}), torch.cat([BOXES, four], 2))
    with pytest.raises(KDError) as caught:
        joined((four, BOXES))
    assert caught.value.code == "network-output"
    assert '{"boxes"' in str(caught.value.fix)


@pytest.mark.parametrize(
    "given",
    [(BOXES, SCORES[:, :9]), (BOXES, SCORES, BOXES), (torch.rand(2, 10), torch.rand(2, 4)),
     {"boxes": BOXES}],
    ids=["rows apart", "three", "no rows", "one"],
)  # fmt: skip
def test_outputs_that_do_not_go_together_are_refused_by_their_shapes(given):
    with pytest.raises(KDError) as caught:
        joined(given)
    assert caught.value.code == "network-output"
    assert "[2, " in caught.value.message


class Pair(nn.Module):
    def __init__(self, alone=False):
        super().__init__()
        self.head, self.alone = nn.Conv2d(3, 7, 1), alone

    def forward(self, x):
        rows = self.head(x).flatten(2).mT
        return rows if self.alone else (rows[..., 4:], rows[..., :4])


def test_a_network_keeps_its_parameters_and_gives_one_tensor():
    network, x = Pair(), torch.rand(1, 3, 4, 4)
    names, scores_then_boxes = list(network.state_dict()), network(x)
    found = with_joined_outputs(with_joined_outputs(network))
    assert torch.equal(found(x), torch.cat(scores_then_boxes[::-1], 2))
    assert list(found.state_dict()) == names
    assert joins_outputs(found)
    assert not joins_outputs(Pair())


def test_one_tensor_stays_as_it_is():
    network, x = Pair(alone=True), torch.rand(1, 3, 4, 4)
    before = network(x)
    assert torch.equal(with_joined_outputs(network)(x), before)
