"""The tiny counting task as a spec file."""

import pytest
from tiny_training import SPEC

from kdcompile.config.load import load_spec


@pytest.fixture
def spec(tmp_path):
    """`spec(*sets)` loads it; `more` is appended to the file."""

    def load(*sets, more=""):
        (tmp_path / "kdcompile.toml").write_text(SPEC + more)
        return load_spec(tmp_path / "kdcompile.toml", sets)

    return load
