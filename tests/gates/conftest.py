"""What the tests of single gates judge: a context with made outcomes."""

from collections.abc import Callable

import numpy as np
import pytest

from kdcompile import targets
from kdcompile.gates.context import Latency, Origin, Outcomes, Parity, VerifyContext
from kdcompile.stats.latency_interval import PairedTimes
from kdcompile.tasks.task import find_task

HERE = Origin("here", "onnxruntime", "1", "host")


@pytest.fixture(scope="session")
def make_context() -> Callable[..., VerifyContext]:
    """`make_context(kind, true, teacher, student, **outcomes)`: a context of such predictions."""

    def make(kind, true, teacher, student, classes=None, earlier=None, **more):
        true, teacher, student = (np.asarray(v, np.float64) for v in (true, teacher, student))
        names = tuple(f"{i}.jpg" for i in range(len(true)))
        return VerifyContext(
            target=targets.load("cpu"), precision="int8", task=find_task(kind),
            outcomes=Outcomes(names, true, teacher, student, student, student, len(true), **more),
            parity=Parity(31.0, 0.04, len(true), ""),
            latency=Latency(PairedTimes(np.ones(6), np.ones(6), 1), "int8", ""),
            predictions={}, files={"model.onnx": 1}, seed=0, deployed=HERE, host=HERE,
            earlier=earlier, classes=classes,
        )  # fmt: skip

    return make
