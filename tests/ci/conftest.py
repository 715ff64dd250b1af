from types import SimpleNamespace

import onnx
import pytest
from bench_samples import made
from onnx_graphs import chain
from plugin_runs import MARKED

from kdcompile.latency import compare


@pytest.fixture
def run(pytester, monkeypatch):
    """pytest on a file with a marked test; gives its result."""
    # the plug-in by its module, whether it is installed as an entry point or not
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def call(words, body, *options):
        pytester.makepyfile(test_mine=MARKED.format(words=words, body=body))
        plugin = ("-p", "kdcompile.ci.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers")
        return pytester.runpytest_inprocess(*plugin, *options)

    return call


@pytest.fixture
def artifact(pytester, monkeypatch):
    """`net.onnx`, and `old.onnx` of another hash: their `speeds`, and the `calls` of measuring."""
    onnx.save(chain(3), pytester.path / "net.onnx")
    onnx.save(chain(4), pytester.path / "old.onnx")

    played = SimpleNamespace(speeds={"net.onnx": 1.0, "old.onnx": 1.0}, calls=[], noise=0.002)

    def measure(subjects, via, effort, *_, **__):
        played.calls.append(([s.name for s in subjects], via, effort.seconds, effort.processes))
        return [
            made(played.speeds[s.name], runs=1, processes=effort.processes, blocks=20, name=s.name,
                 sha256=s.sha256, noise=played.noise, seed=len(played.calls) * 100 + i)
            for i, s in enumerate(subjects)
        ]  # fmt: skip

    monkeypatch.setattr(compare, "measure", measure)
    return played
