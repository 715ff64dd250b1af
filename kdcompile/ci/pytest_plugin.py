"""Pytest plug-in: latency tests with the verdicts of `kdcompile bench --baseline`.

    @pytest.mark.kdcompile_latency(baseline="baselines/student.json", max_regression=0.03)
    def test_student(kdcompile_latency):
        kdcompile_latency("dist/crowd-cpu/model.onnx")

docs/ci.md has the whole. pytest loads this file in every run, so it imports nothing of kdcompile
and touches no test without the mark.
"""

import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kdcompile.ci.pytest_latency import Latency

MARK = "kdcompile_latency"  # also the fixture's name, and that of the property in JUnit XML
HELP = (
    f"{MARK}(baseline=FILE, max_regression=0.03, undecided='fail', seconds=10, via=None, "
    "allow=()): the test hands an artifact or a function to the fixture of the same name and fails "
    "if its latency regressed or, unless undecided='skip', could not be judged; see docs/ci.md of "
    "kdcompile."
)
JUDGED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of saving baselines."""
    group = parser.getgroup("kdcompile")
    group.addoption(
        "--kdcompile-save-baseline",
        action="store_true",
        help="Measure and write the baselines of latency tests instead of comparing with them.",
    )
    group.addoption(
        "--kdcompile-runs",
        type=int,
        default=3,
        metavar="N",
        help="Measuring runs of a baseline, at least 3 (3).",
    )
    group.addoption(
        "--kdcompile-why",
        default="",
        metavar="TEXT",
        help="Why a baseline is replaced; kept in its history.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The mark is known, also under --strict-markers."""
    config.addinivalue_line("markers", HELP)


@pytest.fixture
def kdcompile_latency(request: pytest.FixtureRequest) -> "Latency":
    """Judges the latency of what it is called with: `kdcompile.ci.pytest_latency.Latency`."""
    from kdcompile.ci.pytest_latency import Latency

    node, config = request.node, request.config
    mark = node.get_closest_marker(MARK)

    def judged(said: str) -> None:
        node.stash[JUDGED] = node.stash.get(JUDGED, 0) + 1
        node.user_properties.append((MARK, said))

    return Latency(
        name=node.nodeid,
        root=config.rootpath,
        mark=(() if mark is None else mark.args, {} if mark is None else dict(mark.kwargs)),
        save=config.getoption("--kdcompile-save-baseline"),
        runs=config.getoption("--kdcompile-runs"),
        why=config.getoption("--kdcompile-why"),
        workers=int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
        judged=judged,
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A marked test that measured nothing has proven nothing: it fails."""
    result = yield
    if item.get_closest_marker(MARK) is not None and JUDGED not in item.stash:
        pytest.fail(
            f"the test is marked {MARK} and measured nothing: take the fixture {MARK} and call it "
            "with an artifact's path or a function",
            pytrace=False,
        )
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each latency that was judged; those that were not decided stand out."""
    lines = [
        (said, report.nodeid)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, said in report.user_properties
        if name == MARK
    ]
    if lines:
        from kdcompile.core.escape import plain

        terminalreporter.section("kdcompile latency")
        for said, nodeid in lines:
            undecided = said.startswith("inconclusive")
            terminalreporter.write_line(plain(f"{nodeid}: {said}"), yellow=undecided)
