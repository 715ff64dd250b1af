"""Residual blocks are left out where no width alone reaches the budget, and only there."""

import pytest
import torch
from droppable_networks import Block
from torch import nn

from kdcompile import targets
from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.latency_model.network_cost import Network
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.depth import evenly_chosen, residual_blocks, without
from kdcompile.search.recorded import Narrowed
from kdcompile.search.uniform_search import choose_width

SHAPE = [1, 3, 16, 16]
BLOCKS = [f"{n}" for n in range(2, 8)]


def _network():
    blocks = [Block(32) for _ in BLOCKS]
    stem = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.Conv2d(32, 1, 1)).eval()


@pytest.fixture(scope="module")
def teacher():
    return Network(_network(), SHAPE)


def _chosen(teacher, tmp_path, **budget):
    spec = Spec(
        target="jetson",
        teacher={"model": "model.py:build", "weights": "w.safetensors"},
        data={"format": "npz", "root": "."},
        export={"shape": SHAPE},
        student={"budget": budget},
        quantize={"precision": "fp16"},
    )
    architecture, why = choose_width(spec, Narrowed(teacher), targets.load("jetson"))
    student = student_from_architecture(teacher.module, architecture, tmp_path).eval()
    assert student(torch.zeros(SHAPE)).shape == (1, 1, 16, 16)
    target, whole = targets.load("jetson"), teacher.cost(targets.load("jetson"), "fp16")
    own = Network(student, SHAPE).cost(target, "fp16")
    return architecture, why, whole.estimate.ms / own.estimate.ms


@pytest.mark.parametrize("speedup", [1.5, 2.5])
def test_a_speedup_beyond_any_width_is_reached_with_fewer_blocks(teacher, speedup, tmp_path):
    architecture, why, reached = _chosen(teacher, tmp_path, speedup=speedup)
    assert reached >= speedup
    assert set(architecture["dropped"]) <= {*BLOCKS}
    assert not any(
        name.split(".")[0] in architecture["dropped"] for name in architecture["modules"]
    )
    assert why[0] == (
        f"no width alone reaches the budget, so {len(architecture['dropped'])} residual blocks "
        f"are left out: {', '.join(architecture['dropped'])}"
    )


# 32 channels are one step of a product: narrower ones save memory alone
@pytest.mark.parametrize("budget", [{"speedup": 1.002}, {"width": 0.5}])
def test_no_block_is_left_out_where_a_width_is_enough(teacher, budget, tmp_path):
    architecture, why, _ = _chosen(teacher, tmp_path, **budget)
    assert "dropped" not in architecture
    assert not any("left out" in sentence for sentence in why)


def test_what_cannot_be_reached_says_the_most_that_can(teacher, tmp_path):
    with pytest.raises(KDError) as error:
        _chosen(teacher, tmp_path, speedup=50)
    assert error.value.code == "budget-impossible"
    fewest = float(error.value.fix.partition("speedup = ")[2].split()[0])
    assert fewest > 2.5
    assert _chosen(teacher, tmp_path, speedup=fewest)[2] >= fewest


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 24])
def test_blocks_are_chosen_evenly(count):
    blocks = [str(n) for n in range(count)]
    for chosen in evenly_chosen(blocks):
        places = [int(name) for name in chosen]
        assert places == sorted({*places})
        gaps = [b - a for a, b in zip([-1, *places], [*places, count], strict=True)]
        assert max(gaps) - min(gaps[1:-1] or gaps) <= 1 + count // len(places) // 2
    assert evenly_chosen(blocks)[-1] == blocks
    assert evenly_chosen([]) == []


def test_only_whole_residual_blocks_are_found_and_left_out():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), Block(8), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    assert residual_blocks(network.eval(), SHAPE) == ["1"]
    made = {"modules": {"0": {}, "1.c1": {}, "10": {}}, "attributes": {"": {}, "1": {}}}
    assert without(made, ["1"]) == {
        "modules": {"0": {}, "10": {}}, "attributes": {"": {}}, "dropped": ["1"]
    }  # fmt: skip
