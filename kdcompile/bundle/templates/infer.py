#!/usr/bin/env python3
# ruff: noqa: T201
"""Run this bundle's network on images: python3 infer.py photo.jpg ...

Needs numpy, onnxruntime and Pillow; Python 3.8 or newer. Its only input is the bundle's folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

HERE = Path(__file__).resolve().parent


def load(manifest: dict[str, Any], provider: str) -> Any:
    """The session of model.onnx, if that is the file which the manifest names."""
    data = (HERE / manifest["model"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["files"][manifest["model"]]["sha256"]:
        sys.exit("error: {} is not the file of the manifest".format(manifest["model"]))
    if provider not in onnxruntime.get_available_providers():
        known = ", ".join(onnxruntime.get_available_providers())
        sys.exit(f"error: onnxruntime has no {provider} here, only {known}")
    return onnxruntime.InferenceSession(data, providers=[provider])


def prepare(path: str, pre: dict[str, Any]) -> Any:
    """The image as the network takes it: float32 [1, C, h, w].

    Larger than max_hw: scaled down, keeping its aspect. Smaller than min_hw: padded with the mean.
    """
    channels = pre["channels"]
    with Image.open(path) as file:
        image = file.convert("L" if channels == 1 else "RGB")
    scale = min(1.0, pre["max_hw"][0] / image.height, pre["max_hw"][1] / image.width)
    if scale < 1.0:
        bilinear = getattr(Image, "Resampling", Image).BILINEAR  # Pillow before 9.1 has no enum
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        image = image.resize(size, bilinear, reducing_gap=3.0)
    pixels = np.asarray(image).reshape(image.height, image.width, channels)
    mean, std = np.float32(pre["mean"]), np.float32(pre["std"])
    chw = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    down = max(0, pre["min_hw"][0] - chw.shape[1])
    right = max(0, pre["min_hw"][1] - chw.shape[2])
    padded = np.pad(chw, ((0, 0), (0, down), (0, right)), mode="constant")
    return np.ascontiguousarray(padded[None], dtype=np.float32)


def meaning(output: Any, manifest: dict[str, Any]) -> str:
    """The count; or the class and its probability; or the value."""
    if manifest["task"] == "counting":
        return f"{float(output.sum(dtype=np.float64)):.3f}"
    if manifest["task"] == "regression":
        return f"{float(output[0, 0]):.6g}"
    powers = np.exp(output[0].astype(np.float64) - output[0].max())
    best = int(powers.argmax())
    name = manifest["classes"][best] if manifest["classes"] else best
    return f"{name}\t{powers[best] / powers.sum():.4f}"


def main() -> None:
    """Print each image and what the network says of it."""
    parser = argparse.ArgumentParser(description="run this bundle's network on images")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="of onnxruntime")
    arguments = parser.parse_args()
    pre = json.loads((HERE / "preprocess.json").read_text(encoding="utf-8"))
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    session = load(manifest, arguments.provider)
    name = session.get_inputs()[0].name
    for path in arguments.images:
        try:
            image = prepare(path, pre)
        except (OSError, Image.DecompressionBombError) as error:
            sys.exit(f"error: {path}: {error}")
        output = session.run(None, {name: image})[0]
        print(f"{path}\t{meaning(output, manifest)}")


if __name__ == "__main__":
    main()
