"""Each engine of the benchmark judged alone, and all of them timed together."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from engines_files import Results
from engines_measure import References, int8_share, judge, parity, time_all
from engines_networks import Networks, Source

from kdcompile.backends.candidate_runner import RUNS_HERE, BoardRig
from kdcompile.backends.deployed_form import DeployedForm
from kdcompile.backends.engine import Built, runner
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.store import Store, digest
from kdcompile.data.splits import evenly
from kdcompile.remote.open import Place

REFUSALS = ("onnx-refused", "precision-unsupported", "engine-refused")  # of one engine


class Engines:
    """The engines of one place, judged one by one and timed together."""

    def __init__(self, source: Source, place: Place, store: Store, results: Results,
                 options: argparse.Namespace, start: Callable[[str], None]) -> None:  # fmt: skip
        """`start` is told each job, and raises where there is no time for it."""
        board = source.plan.board
        assert board is not None, "with a place there is a board"
        self.source, self.place, self.board = source, place, board
        self.results, self.options, self.start = results, options, start
        self.test = evenly(source.splits.test, source.spec.data.max_test)
        compared = evenly(self.test, options.photos)
        self.references = References(store, compared, source.prepare)

    @cached_property
    def data_key(self) -> str:
        """Of the photos, the comparison and the engines' settings."""
        spec, photos = self.source.spec, [photo.sha256() for photo in self.test]
        compared = [photo.name for photo in self.references.photos]
        settings = spec.compile.model_dump(), spec.export.profile, self.board.facts
        return digest([photos, compared, settings, self.source.prepare.to_json()])

    def judge(self, networks: Networks) -> None:
        """Every engine that is not judged yet; what cannot be built is kept with its reason."""
        if networks.choice is not None:
            self.results.put("choice", dict(networks.choice))
        for precision in (*networks.paths, *networks.refused):
            name = f"{networks.who} {precision}"
            if precision in networks.paths:
                key = self._key(networks, precision)
                if self.results.get("engines", name).get("key") != key:
                    self.start(name)
                    found = self._judged(networks, precision)
                    self.results.put("engines", {"key": key, **found}, name)
            else:
                self.results.put("engines", {"refused": networks.refused[precision]}, name)

    def time(self, both: Sequence[Networks]) -> None:
        """Every engine that was built, all in one run."""
        options, names = self.options, {}
        for networks in both:
            for precision in networks.paths:
                name = f"{networks.who} {precision}"
                if "refused" not in self.results.get("engines", name):
                    names[name] = networks, precision
        keys = {name: self._key(*which) for name, which in names.items()}
        key = digest([keys, options.turns, options.iterations, self.source.shape])
        if self.results.get("latency").get("key") == key:
            return
        self.start("latency of all engines")
        paths = {}
        for name, which in names.items():
            built = self._built(*which)
            if isinstance(built, str):
                raise SystemExit(f"{name} was built before and is refused now: {built}")
            paths[name] = built.there
            self.place.call("unload", name=which[1])
        found = time_all(self.place, paths, self.source.image(), options.turns, options.iterations)
        self.results.put("latency", {"key": key, "engines": found})

    def _key(self, networks: Networks, precision: str) -> str:
        files = [file_sha256(networks.paths[p]) for p in (precision, "fp32")]
        return digest([files, precision, self.data_key])

    def _built(self, networks: Networks, precision: str) -> Built | str:
        """The engine, loaded under its precision; or the worker's reason against it."""
        form = DeployedForm(self.source.prepare, Path())  # as exported
        rig = BoardRig(self.place, self.board, self.source.spec, self.source.target, form)
        try:
            rig.add(precision, networks.paths)
        except KDError as error:
            if error.code not in REFUSALS:
                raise
            return f"{error.code}: {error.message}"
        return rig.refused.get(precision) or rig.built[precision]

    def _judged(self, networks: Networks, precision: str) -> dict[str, Any]:
        built = self._built(networks, precision)
        if isinstance(built, str):
            return {"refused": built}
        source, fp32 = self.source, networks.paths["fp32"]
        wanted = self.place.about["precisions"][precision]["onnx"]
        used = networks.paths[wanted]
        run = runner(self.place, self.board, precision)
        accuracy, outputs = judge(run, self.test, source.task, source.prepare)
        compared = [outputs[photo.name] for photo in self.references.photos]
        self.place.call("unload", name=precision)
        share, basis = int8_share(fp32, used, source.shape, built.about["layers"])
        kept = ("bytes", "seconds", "flags", "sha256", "onnx_sha256", "timing_cache")
        return {
            "engine": {name: built.about[name] for name in kept} | {"onnx": wanted},
            "int8_macs_share": share, "int8_basis": basis,
            "layers": _by_precision(built.about["layers"]), "accuracy": accuracy,
            "parity_fp32": parity(self.references.of(fp32), compared),
            "parity_same_file": None if wanted not in RUNS_HERE
            else parity(self.references.of(used), compared),
        }  # fmt: skip


def _by_precision(layers: Sequence[Mapping[str, Any]] | None) -> dict[str, int]:
    """How many layers of an engine compute in each precision."""
    found: dict[str, int] = {}
    for layer in layers or ():
        name = str(layer["precision"] or "unknown")
        found[name] = found.get(name, 0) + 1
    return found
