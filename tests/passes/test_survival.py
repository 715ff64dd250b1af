"""A build that is killed, stopped or run twice at once ends as the one that was left alone.

`tests/soak` has the long version: kills at random moments, whole builds, full disks.
"""

import signal

import pytest
from killed_builds import same, tiny_spec

EXPORT = ("export", "tiny")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a build that nothing interrupts leaves, up to the exported student."""
    builds = tiny_spec(tmp_path_factory.mktemp("whole"))
    assert builds.run(EXPORT) == 0, builds.said()
    return builds.results()


# (signal, part of the path whose rename is the moment, which one, exit code, what is said later)
MOMENTS = {
    "killed before an entry has its name": (signal.SIGKILL, "/search/", 1, -9, ""),
    "killed after two checkpoints": (signal.SIGKILL, "checkpoint.pt", 3, -9, "resumed after step"),
    "stopped before the student's entry has its name": (
        signal.SIGTERM, "/distill/", 1, 143, "resumed after step 24",
    ),
    "stopped at its first file": (signal.SIGINT, "hashes.json", 1, 130, ""),
}  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_next_build_goes_on_to_the_same_bits(tmp_path, whole, moment):
    number, name, count, code, said = MOMENTS[moment]
    builds = tiny_spec(tmp_path)
    assert builds.run(EXPORT, (number, name, count), checkpoints=0.0) == code
    text = builds.said()
    if number != signal.SIGKILL:
        assert f"stopped by {number.name}; the next run goes on" in text
    assert builds.run(EXPORT) == 0, builds.said()
    assert said in builds.said()
    same(builds.results(), whole)
    assert builds.leftovers() == []


def test_two_builds_of_one_spec_at_once(tmp_path, whole):
    builds = tiny_spec(tmp_path)
    both = [builds.start(EXPORT) for _ in range(2)]
    for process in both:
        process.join()
    text = builds.said()
    assert [process.exitcode for process in both] == [0, 0], text
    assert "waiting for process" in text
    same(builds.results(), whole)
    assert builds.leftovers() == []
