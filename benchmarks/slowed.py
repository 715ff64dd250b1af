"""A copy of a network that gives the same outputs and is slower by a known share.

    python benchmarks/slowed.py student.onnx slower.onnx 1.1

Two layers come before each output, from its channels to `width` and back, with an identity in
their corner and zeros elsewhere: ONNX Runtime multiplies by them all. The width is found by timing
both side by side.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kdcompile.core.optional import need
from kdcompile.stats.latency_interval import PairedTimes, ratio_interval

ort = need("onnxruntime", "cpu", "timing")

ROUNDS, BLOCKS, CALLS = 10, 120, 40
CLOSE = 0.004  # to the ratio asked for


def slowed(model: onnx.ModelProto, width: int) -> onnx.ModelProto:
    """The same function with more work.

    Args:
        model: its first output is float32 [N, K], or [N, K, H, W] of known K.
        width: of the layer that is added.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    output = made.graph.output[0]
    sizes = [d.dim_value for d in output.type.tensor_type.shape.dim]
    channels, image = sizes[1], len(sizes) == 4
    if channels < 1 or len(sizes) not in (2, 4):
        raise SystemExit(f"the output is {sizes}: [N, K] or [N, K, H, W] of known K is needed")
    last, wide = f"{output.name}_quick", max(width, channels)
    for node in made.graph.node:
        node.output[:] = [last if name == output.name else name for name in node.output]
        node.input[:] = [last if name == output.name else name for name in node.input]
    eye = np.eye(wide, channels, dtype=np.float32)
    # Conv's weights are [out, in, 1, 1], MatMul's [in, out]
    there, back = (eye[..., None, None], eye.T[..., None, None]) if image else (eye.T, eye)
    kind = "Conv" if image else "MatMul"
    for name, values, to in (("there", there, f"{last}_wide"), ("back", back, output.name)):
        made.graph.initializer.append(numpy_helper.from_array(values.copy(), f"slowed_{name}"))
        made.graph.node.append(helper.make_node(kind, [last, f"slowed_{name}"], [to], name))
        last = to
    onnx.checker.check_model(made)
    return made


def tuned(model: onnx.ModelProto, ratio: float) -> tuple[onnx.ModelProto, tuple[float, ...]]:
    """The copy that is slower by `ratio`, with its measured ratio and 95 % interval."""
    low, high = 0, 0
    width = 64
    found = (0.0, 0.0, 0.0)
    for _ in range(ROUNDS):
        found = measured(model, slowed(model, width))
        print(f"width {width}: {found[0]:.4f} ({found[1]:.4f} to {found[2]:.4f})", flush=True)
        if abs(found[0] - ratio) < CLOSE:
            break
        low, high = (width, high) if found[0] < ratio else (low, width)
        width = (low + high) // 2 if high else 4 * width
    return slowed(model, width), found


def measured(quick: onnx.ModelProto, slow: onnx.ModelProto) -> tuple[float, ...]:
    """How many times slower the second is, in turns in this process; by medians of blocks."""
    runs = [_runner(model) for model in (slow, quick)]
    sides: list[list[float]] = [[], []]
    for block in range(BLOCKS + 2):
        for i in (0, 1) if block % 2 else (1, 0):
            ms = [runs[i]() for _ in range(CALLS)]
            sides[i].append(float(np.median(ms)))
    slower, quicker = (np.array(side[2:]) for side in sides)  # the first two warm up
    return ratio_interval(PairedTimes(slower, quicker, CALLS), seed=0)


def _runner(model: onnx.ModelProto) -> Callable[[], float]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # as `bench` measures a CPU
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    port = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in port.shape]
    feeds = {port.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}

    def run() -> float:
        start = time.perf_counter()
        session.run(None, feeds)
        return 1000 * (time.perf_counter() - start)

    return run


def main() -> None:
    """Read, tune, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("ratio", type=float)
    asked = parser.parse_args()
    made, found = tuned(onnx.load(asked.source), asked.ratio)
    onnx.save(made, asked.target)
    print(f"{asked.target}: {found[0]:.4f} times the latency ({found[1]:.4f} to {found[2]:.4f})")


if __name__ == "__main__":
    main()
