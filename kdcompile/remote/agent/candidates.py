"""The candidates of a kit on the board: built, compared, evaluated on images, and timed."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from typing import Any

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.remote.agent.judging import (
    AT_HOME,
    OVERFLOW,
    agreement,
    judge_accuracy,
    teacher_of,
)
from kdcompile.remote.agent.networks import BLOCKS, OTHER_BLOCKS, Networks
from kdcompile.remote.agent.pack import Outputs, Pack
from kdcompile.remote.agent.second_worker import read_usage
from kdcompile.tasks.agreement import distance

TELL_SECONDS = 5.0
AGENT = "agent.pyz"  # its name in a kit


def say(text: str) -> None:
    """Progress, apart from the results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def predictions_apart(outputs: list[Any], reference: list[Any], task: str) -> dict[str, float]:
    """The share of equal classes, of images or pixels, or the largest difference of a number."""
    pairs = list(zip(outputs, reference))
    is_finite = all(np.isfinite(output).all() for output in outputs)
    if task == "classification":
        equal = [float(is_finite and a.argmax() == b.argmax()) for a, b in pairs]
        return {"top1_agreement": sum(equal) / len(equal)}
    if task == "segmentation":
        same = [float(is_finite and (a.argmax(1) == b.argmax(1)).mean()) for a, b in pairs]
        return {"pixel_agreement": sum(same) / len(same)}
    if task == "generic":
        apart = [distance({"": a}, {"": b}) for a, b in pairs]
        return {"relative_error": max(apart) if is_finite else OVERFLOW}
    name = "count_difference" if task == "counting" else "value_difference"
    gaps = [abs(float((a.astype(np.float64) - b).sum())) for a, b in pairs]
    return {name: max(gaps) if is_finite else OVERFLOW}


class Build:
    """One run over the kit's candidates."""

    def __init__(
        self,
        backend: Any,
        options: argparse.Namespace,
        folder: str,
        kit: dict[str, Any],
        scratch: str,
    ) -> None:
        """Read the kit in a folder and the test pack; `backend` is an open worker."""
        self.options, self.folder, self.kit = options, folder, kit
        ports = kit["input"], kit["output"]
        self.networks = Networks(backend, options.out, scratch, ports, kit.get("inputs"))
        self.here = self.networks.here
        self.gates = self.read_json("gates.json")
        given = {key: getattr(options, key, None) for key in kit["compile"]}
        told = {key: value for key, value in given.items() if value is not None}
        self.settings = dict(kit["compile"], **told)
        self.pack = Pack(options.test, kit) if options.test else None
        with np.load(self.path("reference.npz")) as arrays:
            self.reference = {key: arrays[key] for key in arrays.files}
        self.count = sum(key.startswith("input_") for key in self.reference)

    def path(self, name: str) -> str:
        """A file of the kit."""
        return os.path.join(self.folder, name)

    def read_json(self, name: str) -> Any:
        """A JSON file of the kit."""
        with open(self.path(name), encoding="utf-8") as stream:
            return json.load(stream)

    def engine(self, name: str, precision: str, onnx: str) -> dict[str, Any]:
        """Build and load one engine."""
        say(f"engine {name}")
        settings = dict(self.settings, profile=self.kit["profile"])
        return self.networks.build(name, onnx, precision, settings)

    def candidate(self, precision: str) -> dict[str, Any]:
        """Build one precision and compare it with the reference."""
        found: dict[str, Any] = {"precision": precision, "verdict": "skipped"}
        source = self.networks.source(precision)
        if source is None:
            version = f"{self.here['backend']} {self.here['backend_version']}"
            return dict(found, why=f"{version} builds no {precision} here")
        found["onnx"] = f"student_{source}.onnx"
        path = self.path(found["onnx"])
        if not os.path.isfile(path):
            return dict(found, why=f"the kit has no {found['onnx']}")
        try:
            built = self.engine(precision, precision, path)
            images = [self.reference[f"input_{i}"] for i in range(self.count)]
            save, run = self.networks.save, self.networks.run
            outputs = [run(precision, save(image)) for image in images]
        except KDError as error:
            why = " ".join(f"{error.code}: {error.message}".split())
            return dict(found, verdict="failed", why=why)
        wanted = [self.reference[f"output_fp32_{i}"] for i in range(self.count)]
        parity = agreement(outputs, wanted)
        parity.update(predictions_apart(outputs, wanted, self.kit["task"]))
        limit = self.gates["parity"]["min_sqnr_db"]
        found["verdict"] = "passed" if parity["sqnr_db"] >= limit else "failed"
        found["why"] = f"SQNR {parity['sqnr_db']:.1f} dB, at least {limit:g} dB wanted"
        found["parity"], found["parity_why"] = found["verdict"], found["why"]
        engine = os.path.basename(self.networks.file(precision))
        return dict(found, engine=engine, build=built, **parity)

    def judge_accuracy(self, built: list[dict[str, Any]], pack: Pack) -> None:
        """Run every built candidate over the images of the test pack, and judge it.

        Where home judges, its outputs are kept beside the engines.
        """
        task = self.kit["task"]
        broken: dict[str, str] = {}
        found: dict[str, list[float]] = {c["precision"]: [] for c in built}
        kept: dict[str, Outputs] = {}
        for name in found if pack.is_judged_at_home else ():
            kept[name] = Outputs(os.path.join(self.options.out, "outputs_%s.npz" % name))
        told = time.monotonic()
        for index, sample in enumerate(pack.photos(self.read_json("preprocess.json"))):
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                say(f"image {index + 1} of {len(pack.names)}")
            inputs = self.networks.save(sample.given)
            for name in [n for n in found if n not in broken]:
                try:
                    output = self.networks.run(name, inputs)
                    found[name].append(pack.predicted(output, sample))
                except KDError as error:
                    broken[name] = f"{pack.names[index]}: {error.code}: {error.message}"
                    continue
                if not math.isfinite(found[name][-1]):
                    broken[name] = f"the output is NaN or infinity on {pack.names[index]}"
                elif name in kept:
                    kept[name].add(output)
        for c in built:
            name = c["precision"]
            outputs = kept[name].close() if name in kept else None
            if name in broken:
                c["accuracy"] = {"verdict": "failed", "reason": broken[name]}
            elif outputs is not None:
                c["outputs"] = outputs
                c["accuracy"] = {"verdict": "inconclusive", "reason": AT_HOME}
            else:
                c["predictions"] = found[name]
                numbers = (pack.true, pack.teacher, np.array(found[name]))
                true, teacher, student = (values[pack.taught] for values in numbers)
                c["accuracy"] = judge_accuracy(
                    self.gates["accuracy"], task, true, teacher, student, pack.about["seed"]
                )
            verdict, reason = c["accuracy"]["verdict"], c["accuracy"]["reason"]
            c["why"] += f"; accuracy {verdict}: {reason}"
            if c["verdict"] == "passed":
                c["verdict"] = verdict

    def teachers(self, built: list[dict[str, Any]], pack: Pack) -> dict[str, dict[str, Any]]:
        """The teacher's engines that the candidates are timed beside, by precision."""
        found: dict[str, dict[str, Any]] = {}
        for precision in sorted({teacher_of(c["precision"]) for c in built}):
            source = self.networks.source(precision)
            onnx = None if source is None else pack.onnx(source)
            if onnx is None:
                found[precision] = {"why": f"the test pack has no teacher for {precision}"}
                continue
            try:
                about = self.engine(f"teacher_{precision}", precision, onnx)
                found[precision] = {"engine": f"teacher_{precision}", "build": about}
            except KDError as error:
                found[precision] = {"why": f"the teacher: {error.code}: {error.message}"}
        return found

    def usage(self, chosen: dict[str, Any], mode: str) -> dict[str, Any]:
        """What the engine that ships takes of the board, once nothing else is loaded."""
        precision = chosen["precision"]
        say(f"energy and memory, {precision}")
        inputs = self.networks.save(self.typical())
        engine = self.networks.file(precision)
        found = read_usage(self.path(AGENT), self.here["backend"], engine, inputs, mode)
        return dict(found, precision=precision)

    def typical(self) -> Any:
        """An input of the typical shape."""
        if self.kit.get("inputs"):
            return self.reference["input_0"]
        return np.resize(self.reference["input_0"], self.kit["profile"][1])

    def measure(self, names: list[str]) -> tuple[str, dict[str, Any]]:
        """Latencies of all networks by mode, and the mode that decides: the first that works."""
        image = self.typical()
        found: dict[str, Any] = {}
        judged, failure = "", None
        for mode in self.networks.modes(not self.options.no_graph):
            say(f"latency, {mode}")
            blocks = OTHER_BLOCKS if judged else BLOCKS
            try:
                found[mode] = self.networks.time(
                    names, image, mode, self.options.iterations, blocks
                )
                judged = judged or mode
            except KDError as error:
                failure, found[mode] = error, {"error": f"{error.code}: {error.message}"}
        if not judged and failure is not None:
            raise failure
        return judged, found
