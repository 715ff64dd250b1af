"""Strategies for files that nobody wrote on purpose, and what must hold of their readers."""

import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from parsers import Parser

from kdcompile.core.errors import KDError

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"  # a parser's inputs, a line each, base64
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
HOSTILE = st.sampled_from(
    ["", "\0", "../..", "/etc/passwd", "-1", "a" * 300, "\ud800", "nan", 10**400, -1, 1e308, [], {}]
)
JSON = st.recursive(
    PLAIN | HOSTILE,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(TEXT, below, max_size=4),
    max_leaves=12,
)


def corpus(name: str) -> list[bytes]:
    """The kept inputs of a parser."""
    path = CORPUS / f"{name}.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [base64.b64decode(line) for line in lines]


def outcome(parser: Parser, content: bytes) -> KDError | None:
    """The refusal of some bytes, None where they were read; anything else raised is a crash."""
    folder = Path(tempfile.mkdtemp(prefix="kdcompile-fuzz-"))
    try:
        parser.read(content, folder)
    except KDError as error:
        block = str(error).splitlines()
        assert [line[:9] for line in block[1:]] == ["  where: ", "  fix:   "], block
        return error
    finally:
        shutil.rmtree(folder)
    return None


def contents(parser: Parser) -> st.SearchStrategy[bytes]:
    """Bytes for a parser: any, a good file with places changed, or a document of its kind."""
    good = st.sampled_from(parser.good())
    made = [st.binary(max_size=200), good.flatmap(_edited)]
    if parser.kind != "other":
        written = as_json if parser.kind == "json" else as_toml
        documents = good.map(lambda content: read(parser, content)).flatmap(_changed)
        made += [JSON.map(written), documents.map(parser.seal).map(written)]
    return st.one_of(made)


def read(parser: Parser, content: bytes) -> Any:
    """The document of a good file."""
    import tomllib

    text = content.decode()
    return json.loads(text) if parser.kind == "json" else tomllib.loads(text)


def as_json(value: Any) -> bytes:
    """JSON, which may have NaN and halves of surrogate pairs."""
    return json.dumps(value).encode()


def as_toml(value: Any) -> bytes:
    """TOML with all that it can say of a value, a key a line."""
    table = value if isinstance(value, dict) else {"value": value}
    lines = (f"{_quoted(key)} = {_inline(below)}" for key, below in table.items())
    return "\n".join(lines).encode(errors="replace")


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return _quoted(value)
    if value is None or isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@st.composite
def _edited(draw: st.DrawFn, content: bytes) -> bytes:
    """Some pieces of a file replaced, dropped, or put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed)))
        gone = draw(st.sampled_from([0, 1, 1, 1, 4, len(changed)]))
        changed[at : at + gone] = draw(st.binary(max_size=6))
    return bytes(changed)


@st.composite
def _changed(draw: st.DrawFn, document: Any) -> Any:
    """A document with another value, or none, in one to three of its places."""
    root = {"": document}
    for _ in range(draw(st.integers(1, 3))):
        place, key = root, ""
        while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 5)):
            place = place[key]
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(list(keys)))
        if place is not root and draw(st.integers(0, 3)) == 0:
            del place[key]
        else:
            place[key] = draw(JSON)
    return root[""]
