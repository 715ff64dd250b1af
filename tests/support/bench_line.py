"""`kdcompile bench`, `compare` and `baseline` on a played place: no real clock, no engine."""

import json
import shlex
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphs
from benching import Scene
from command_line import CommandLine

from kdcompile.cli import cli
from kdcompile.cli.baseline import baseline
from kdcompile.cli.bench import bench, compare
from kdcompile.latency import compare as against
from kdcompile.latency import sampler

UNIT_MS = 10.0  # so slow that a block is few inferences, and a test quick


class BenchLine(CommandLine):
    """The command line in a folder of its own, with networks of known latency.

    `scene.ms` and `scene.facts` are the place's; `out` is the standard output of the last call.
    """

    def __init__(self, monkeypatch, capsys, folder):
        super().__init__(monkeypatch, capsys)
        self.folder, self.out = folder, ""
        monkeypatch.chdir(folder)
        for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            monkeypatch.delenv(name, raising=False)
        for command in (bench, compare, baseline):
            monkeypatch.setitem(cli.commands, command.name, command)
        self.speeds, self.rng = {}, np.random.default_rng(0)
        self.scene = Scene(ms=self._ms)
        self.noise, self.of_process = 0.003, {}
        monkeypatch.setattr(sampler, "Tools", self.scene.tools)

    def _ms(self, network, process, number):
        """Of one inference: noise of the process, which all of it shares, and its own."""
        if (network, process) not in self.of_process:
            self.of_process[network, process] = self.rng.normal(0, self.noise / 20)
        noise = self.of_process[network, process] + self.rng.normal(0, self.noise)
        return self.speeds[network] * float(np.exp(noise))

    def network(self, name, ms, seed=0):
        """An ONNX file, by its stem, of a latency in `UNIT_MS`; the seed is of its weights."""
        graph = onnx_graphs.Graph(seed)
        path = self.folder / f"{name}.onnx"
        onnx.save(graph.model(graph.conv("c", "image", 3, 4)), path)
        self.speeds[name] = ms * UNIT_MS
        return path

    def undecided(self, looks):
        """The first looks at a comparison decide nothing; gives the list of their levels."""
        levels, real = [], against._compare

        def compare(candidate, reference, paired, plan, level):
            levels.append(level)
            found = real(candidate, reference, paired, plan, level)
            if len(levels) > looks:
                return found
            return replace(found, decision="inconclusive", more_blocks=40)

        self.monkeypatch.setattr(against, "_compare", compare)
        return levels

    @property
    def processes(self):
        """How many processes latencies were taken in; energy and memory are read in others."""
        return sum(bool(place.timed) and not place.asks("memory") for place in self.scene.places)

    def typed(self, out=None):
        """Types what the last report says would decide; gives the exit code."""
        (advice,) = [
            line for line in (out or self.out).splitlines() if line.startswith("to decide")
        ]
        program, *words = shlex.split(advice.removeprefix("to decide: "))
        assert program == "kdcompile", advice
        return self(*words)[0]

    def json(self, *words):
        """Exit code and the one JSON document on standard output."""
        code, _ = self(*words, "--json")
        return code, json.loads(self.out)
