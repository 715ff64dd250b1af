"""Names of images, classes and builds are shown as they are, and are read as nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from command_line import CommandLine
from markdown_it import MarkdownIt

from kdcompile.config.spec import Task
from kdcompile.core.store import Store
from kdcompile.passes.bundle import install, run

pytestmark = pytest.mark.usefixtures("drawn")

NAME = (
    "::stop-commands::x [a](http://x.y) ![a](http://x.y/p.png) a|b `a`|`b` <img src=x> *a* _b_ "
    "https://x.y/z @team &lt; ##[add-mask]x a\\"
)


@pytest.fixture(scope="module")
def bundle(make_step, a_report, tmp_path_factory):
    """A bundle of this name, which its examples and a copy of an image have too."""
    folder = tmp_path_factory.mktemp("names")
    examples = [
        {"name": NAME, "kind": kind, "true": 4, "predicted": 3.5, "teacher": 4.1}
        for kind in ("best", "median", "worst")
    ]
    dropped = [{"name": NAME, "split": "val", "twin": f"test/{NAME}"}]
    report = replace(a_report(examples=examples, dropped=dropped), name=NAME)
    store = Store(folder / "store")
    spec = SimpleNamespace(task=Task(), name=NAME)  # a folder's has no "/", which a link has
    step = replace(make_step(store, report=report), spec=spec)
    return install(run(step, store, None), folder / "bundle")


def shown(text):
    """The text of a Markdown page, and the kinds of what is in its lines."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    return "".join(child.content for child in inner), {child.type for child in inner}


# heading, three examples, a copy and its twin; a heading
@pytest.mark.parametrize(("page", "times"), [("report.md", 6), ("MODEL_CARD.md", 1)])
def test_pages_show_a_name_and_nothing_else(page, times, bundle):
    text = (bundle / page).read_text()
    found, kinds = shown(text)
    plain = {"text", "text_special", "softbreak", "strong_open", "strong_close", "code_inline"}
    assert kinds <= plain
    assert found.count(NAME) == times
    assert f"{NAME} for jetson" in found
    assert not [link for link in ("://", "@team", "www.") if link in text]


@pytest.mark.parametrize("words", ["report B", "report B --json", "verify B --ci"])
def test_no_name_is_a_command_to_a_runner(words, bundle, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    command = CommandLine(monkeypatch, capsys)
    _, err = command(*(bundle if word == "B" else word for word in words.split()))
    lines = [line.lstrip() for line in (command.out + err).splitlines()]
    assert not [line for line in lines if line.startswith("::stop") or "##[" in line]
