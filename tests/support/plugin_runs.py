"""A file with one test that is marked `kdcompile_latency`, and what pytest said of it."""

import importlib

# pytester forgets what an inner run imports, and NumPy's libraries load only once in a process
for name in ("scipy.special", "kdcompile.stats.latency_test", "kdcompile.ci.pytest_latency"):
    importlib.import_module(name)

MARKED = """
import pytest

@pytest.mark.kdcompile_latency({words})
def test_it(kdcompile_latency):
    {body}
"""


def said(result):
    """Standard output of a run."""
    return result.stdout.str()
