"""Packs the agent into one zip file that Python runs, `agent.pyz`: what is sent to boards."""

import io
import tokenize
from functools import cache
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from kdcompile.core.sources import sources_of
from kdcompile.remote import agent

NAME = "agent.pyz"
START = f"{agent.__name__}.__main__"
MAIN = "import sys\n\nfrom {} import main\n\nsys.exit(main())\n"
STARTS = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)  # before a statement
NOTHING = (tokenize.COMMENT, tokenize.NL)
OLDEST = (1980, 1, 1, 0, 0, 0)  # that a zip file can say: the bytes depend on the sources alone


@cache
def agent_zip() -> bytes:
    """The agent."""
    return program_zip(START)


@cache
def program_zip(start: str) -> bytes:
    """The `main` of a module and the modules of kdcompile that it imports, under their own names.

    Without docstrings and comments, which would be a third of it, but on the same lines. A package
    whose own code they do not need is an empty one there.
    """
    texts = {"__main__.py": MAIN.format(start)}
    for module, path in sources_of(start).files.items():
        if path.suffix == ".py" and module.startswith("kdcompile."):
            package = "/__init__" if path.name == "__init__.py" else ""
            text = bare(path.read_text(encoding="utf-8"))
            texts[f"{module.replace('.', '/')}{package}.py"] = text
    for folder in {name.rpartition("/")[0] for name in texts if "/" in name}:
        parts = folder.split("/")
        for depth in range(1, len(parts) + 1):
            texts.setdefault("/".join([*parts[:depth], "__init__.py"]), "")
    return packed(texts)


def bare(source: str) -> str:
    """A module without its docstrings and comments; each line keeps its number."""
    lines, before = source.splitlines(keepends=True), tokenize.NEWLINE
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    found: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    for i, token in enumerate(tokens):
        if token.type == tokenize.COMMENT:
            found.append((token.start, token.end, ""))
        elif (  # a string that is a whole statement
            token.type == tokenize.STRING
            and before in STARTS
            and tokens[i + 1].type == tokenize.NEWLINE
        ):
            after = next(t.type for t in tokens[i + 2 :] if t.type not in NOTHING)
            text = "pass" if after == tokenize.DEDENT else ""
            found.append((token.start, token.end, text + "\n" * (token.end[0] - token.start[0])))
        if token.type not in NOTHING:
            before = token.type
    for (row, column), (last, end), text in reversed(found):
        whole = lines[row - 1][:column] + text + lines[last - 1][end:]
        lines[row - 1 : last] = whole.splitlines(keepends=True)
    return "".join(line.rstrip() + "\n" for line in lines)


def packed(texts: dict[str, str]) -> bytes:
    """Text files by name as a zip file, whose bytes are the same for the same texts."""
    found = io.BytesIO()
    with ZipFile(found, "w", ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(texts):
            entry = ZipInfo(name, OLDEST)
            entry.compress_type, entry.create_system, entry.external_attr = (
                ZIP_DEFLATED,
                3,
                0o644 << 16,
            )
            archive.writestr(entry, texts[name], compresslevel=9)
    return found.getvalue()
