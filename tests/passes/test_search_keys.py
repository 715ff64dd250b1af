"""What the key of the stage `search` covers: of a search all it reads, of a scaling far less."""

import pytest
from staged_ground import write_build

from kdcompile.core.files import Hasher
from kdcompile.passes.keys import key_parts, measures
from kdcompile.passes.stages import STAGES
from kdcompile.targets import load as load_target

SEARCH = ("student.family=search", "student.budget={macs=30000}")
SHRINK = ("student.family=shrink",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def part(folder):
    """The key's parts of `search` for some settings."""
    load, target = write_build(folder), load_target("cpu")

    def parts(*sets):
        return key_parts(load(*sets), target, Hasher(folder / "hashes.json"))["search"]

    return parts


@pytest.mark.parametrize(
    "change",
    [
        "distill.lr=1e-3", "distill.crop=8", "data.mean=[0.4]", "search.candidates=50",
        "search.finalists=1", "search.blocks=['conv']",
    ],
)  # fmt: skip
def test_data_and_training_matter_to_a_search_alone(folder, part, change):
    assert part(*SEARCH, change) != part(*SEARCH)
    assert part(*SHRINK, change) == part(*SHRINK)
    given = ("student.init=file", f"student.weights={folder / 'teacher.safetensors'}")
    assert part(*SEARCH, *given, change) == part(*SEARCH, *given)


@pytest.mark.parametrize(
    "change", ["seed=5", "student.budget={macs=40000}", "export.shape=[1,1,32,32]"]
)
def test_what_every_student_depends_on(part, change):
    for family in (SEARCH, SHRINK):
        assert part(*family, change) != part(*family)


def test_how_many_processes_search_matters_to_nobody(part):
    assert part(*SEARCH, "search.jobs=3") == part(*SEARCH)


def test_images_matter_to_a_search_alone(folder, part):
    before, more = (part(*SEARCH), part(*SHRINK)), folder / "more.toml"
    more.write_text("# one of data.files")
    assert part(*SEARCH) != before[0]
    assert part(*SHRINK) == before[1]
    more.unlink()
    assert part(*SEARCH) == before[0]


def test_timing_is_of_this_machine(part):
    timed = part(*SEARCH, "search.measure=2")
    assert timed["machine"]
    assert timed["spec"]["compile"]
    plain = part(*SEARCH)
    assert plain["machine"] is None
    assert plain["spec"]["compile"] is None
    assert part(*SHRINK, "search.measure=2")["machine"] is None


def test_the_section_of_building_stays_in_the_keys_of_those_who_build(folder):
    load, target = write_build(folder), load_target("cpu")
    parts = key_parts(load(), target, Hasher(folder / "hashes.json"))
    assert parts["compile"]["spec"]["compile"]
    assert measures(STAGES["compile"], load())
