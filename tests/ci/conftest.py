import pytest
from plugin_runs import MARKED


@pytest.fixture
def run(pytester, monkeypatch):
    """pytest on a file with a marked test; gives its result."""
    # the plug-in by its module, whether it is installed as an entry point or not
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def call(words, body, *options):
        pytester.makepyfile(test_mine=MARKED.format(words=words, body=body))
        plugin = ("-p", "kdcompile.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers")
        return pytester.runpytest_inprocess(*plugin, *options)

    return call
