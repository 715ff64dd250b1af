"""The Python sample of a bundle, `infer.py`, which is shipped as it is."""

from pathlib import Path

NAME = "infer.py"
PATH = Path(__file__).with_name("templates") / NAME


def text() -> str:
    """Its source."""
    return PATH.read_text(encoding="utf-8")
