"""A place whose worker is an object of this process: every request is JSON there and back."""

import json
from collections import Counter
from contextlib import contextmanager

import computing_tensorrt

from kdcompile.backends import engine
from kdcompile.config.step import Board
from kdcompile.remote import open as via
from kdcompile.remote.open import LocalPlace, evidence_of, facts_of


class _Asked:
    """In place of the worker's process."""

    def __init__(self, served, counts):
        self.served, self.counts = served, counts

    def ask(self, request, limit):
        self.counts[request["op"]] += 1
        answer = self.served.answer(json.loads(json.dumps({"id": 1, **request})))
        return json.loads(json.dumps(answer))

    def close(self, at_once=False):
        self.served.answer({"id": 1, "op": "quit"})


class NearPlace(LocalPlace):
    """Files lie in `work`; `counts` says how often each operation was asked for."""

    def __init__(self, served, work, counts, label="here"):
        (work / "blobs").mkdir(parents=True, exist_ok=True)
        self.label, self.work, self.counts = label, str(work), counts
        self._lost, self._token, self._inputs_sha256 = None, "near", ""
        self._worker = _Asked(served, counts)
        self.about = self.call("hello")


class Near:
    """A place that may be opened many times; `serve()` gives the worker of each."""

    def __init__(self, serve, work, label="here"):
        self.serve, self.work, self.label, self.counts = serve, work, label, Counter()

    def open(self, via=None, backend="tensorrt"):
        """What `open_place` would give."""
        return NearPlace(self.serve(), self.work, self.counts, self.label)

    def board(self, target):
        """The board that a build for this target would have found."""
        with self.open() as place:
            about = place.about
        evidence = evidence_of(about, target, self.label)
        return Board(None, about["backend"], self.label, facts_of(about), evidence)

    @contextmanager
    def installed(self, patch):
        """`patch`, a monkeypatch, makes it what every `--via` leads to."""
        with patch.context() as m:
            m.setattr(engine, "open_place", self.open)
            m.setattr(via, "open_place", self.open)
            yield self


class NearGpu(Near):
    """Of the played TensorRT, an H100's by default; `change(scene)` sets each scene up."""

    def __init__(self, version, work, change=lambda scene: None, **gpu):
        super().__init__(self._serve, work)
        self.version, self.change, self.gpu, self.scenes = version, change, gpu, []

    def _serve(self):
        served, scene = computing_tensorrt.serve(self.version, **self.gpu)
        self.change(scene)
        self.scenes.append(scene)
        return served
