#!/usr/bin/env python3
# ruff: noqa: T201
"""Run this bundle's network on images: python3 infer.py photo.jpg ...

Runs the engine where the bundle has one (with numpy and the device's TensorRT or OpenVINO), else
model.onnx (onnxruntime). Needs Pillow; Python 3.8 or newer. Its only input is the bundle's folder.
Each result is printed as soon as it is known; an image that fails is an error line, the others are
run all the same, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
INPUT = "image"
OF_TASK: dict[str, Callable[..., Any]] = {}  # what a part of this file adds for the bundle's task
PROVIDERS = {"CUDAExecutionProvider": "-cuda", "TensorrtExecutionProvider": "-tensorrt"}


class ImageError(Exception):
    """Why an image has no result; the others may have one."""


def shown(text: Any) -> str:
    """A name on one line, of which neither a terminal nor a CI system obeys any part."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return ("\\" if line.lstrip().startswith("::") else "") + line.replace("##", "#\\#")


def read(manifest: dict[str, Any], name: str) -> bytes:
    """A file's bytes, if they are those that the manifest names."""
    data = (HERE / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
        sys.exit(f"error: {name} is not the file of the manifest")
    return data


def open_onnx(manifest: dict[str, Any], provider: str) -> Callable[[Any], Any]:
    """model.onnx as a function of its inputs by name, which gives its outputs by name."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it sends usage data else; read when it loads
    try:
        import onnxruntime
    except ImportError as error:
        sys.exit(f"error: {error}; pip install onnxruntime")
    data, known = read(manifest, manifest["model"]), onnxruntime.get_available_providers()
    if provider not in known:
        sys.exit("error: onnxruntime has no {} here, only {}".format(provider, ", ".join(known)))
    session = onnxruntime.InferenceSession(data, providers=[provider])
    names = [output.name for output in session.get_outputs()]

    def run(given: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(zip(names, session.run(None, given)))  # noqa: B905  Python 3.8
        except Exception as error:  # the library's have no base of their own
            sys.exit(f"error: the network does not run: {shown(error)}")

    return run


def imported(manifest: dict[str, Any], where: str, module: str, scratch: str) -> Any:
    """A module of the bundle's, from a private copy of what was just checked."""
    copy = Path(scratch, Path(where).name)
    copy.write_bytes(read(manifest, where))
    sys.path.insert(0, str(copy if copy.suffix == ".pyz" else copy.parent))
    return importlib.import_module(module)


def open_engine(manifest: dict[str, Any], scratch: str) -> Callable[[Any], Any]:
    """The engine as such a function, run by the program that is in the bundle."""
    name = manifest["engine"]
    read(manifest, name)
    if "opener.py" in manifest["files"]:
        try:
            opener: Callable[[str], Any] = imported(
                manifest, "opener.py", "opener", scratch
            ).open_network
            network: Callable[[Any], Any] = opener(str(HERE / name))
            return lambda given: {"": network(next(iter(given.values())))}
        except ImportError as error:
            sys.exit(f"error: {error}; pip install it, or run model.onnx with --onnx")
    built = json.loads(read(manifest, name + ".json").decode())
    agent = "kit/agent.pyz" if "kit/agent.pyz" in manifest["files"] else "agent.pyz"
    worker = imported(manifest, agent, "kdcompile.remote.agent.worker", scratch)
    backend = "onnxruntime" + PROVIDERS.get(built.get("provider"), "")
    try:
        place = worker.Worker("tensorrt" if "tensorrt" in built else backend)
    except worker.WorkerError as error:
        sys.exit(f"error: {error.message}; {error.fix}, or run model.onnx with --onnx")
    files = {"inputs": os.path.join(scratch, "in.npz"), "outputs": os.path.join(scratch, "out.npz")}

    def ask(**request: Any) -> Any:
        answer = place.answer(dict(request, id=1))
        if "error" in answer:
            sys.exit("error: {message}; {fix}".format(**answer["error"]))
        return answer["ok"]

    def run(given: dict[str, Any]) -> dict[str, Any]:
        np.savez(files["inputs"], **given)
        ask(op="run", **files)
        with np.load(files["outputs"]) as arrays:
            return {output: arrays[output] for output in arrays.files}

    ask(op="load", path=str(HERE / name))
    return run


def decode(path: str, channels: int) -> Any:
    """The image of a file, upright, in grey or in colour."""
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file)
        if upright.mode.startswith("I"):  # grey of 16 bits: the upper 8
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return upright.convert("L" if channels == 1 else "RGB")


def prepare(path: str, pre: dict[str, Any]) -> Any:
    """The image, normalised: float32 [1, C, h, w]; larger than max_hw it is scaled to fit.

    Where the network normalises by itself, its pixels: uint8 [1, h, w, C].
    """
    return normalised(decode(path, pre["channels"]), pre)


def normalised(image: Any, pre: dict[str, Any]) -> Any:
    """What `decode` gave as `prepare` gives it."""
    channels = pre["channels"]
    scale = min(1.0, pre["max_hw"][0] / image.height, pre["max_hw"][1] / image.width)
    if scale < 1.0:
        bilinear = getattr(Image, "Resampling", Image).BILINEAR  # Pillow before 9.1 has no enum
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        image = image.resize(size, bilinear, reducing_gap=3.0)
    pixels = np.asarray(image).reshape(image.height, image.width, channels)
    if pre.get("in_graph"):
        return np.ascontiguousarray(pixels[None])
    mean, std = np.float32(pre["mean"]), np.float32(pre["std"])
    chw = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    return np.ascontiguousarray(chw[None], dtype=np.float32)


def padded(image: Any, pre: dict[str, Any]) -> Any:
    """The image as the network takes it, float32 [1, C, h, w] or uint8 [1, h, w, C].

    Smaller than min_hw it is padded right and below: mirrored, or with the mean colour.
    """
    have = sides(image)
    pad = [(0, max(0, pre["min_hw"][axis] - have[axis])) for axis in (0, 1)]
    mode: Any = "symmetric" if pre.get("padding") == "mirror" else "constant"
    if pre.get("in_graph"):
        whole = np.pad(image, [(0, 0), *pad, (0, 0)], mode=mode)
        if mode == "constant":
            colour = np.clip(np.rint(np.float32(pre["mean"]) * 255), 0, 255).astype(np.uint8)
            whole[:, have[0] :] = colour
            whole[:, :, have[1] :] = colour
        return np.ascontiguousarray(whole)
    return np.ascontiguousarray(np.pad(image, [(0, 0), (0, 0), *pad], mode=mode))


def sides(image: Any) -> Any:
    """Height and width of what `prepare` gave; bytes are pixels, their channels last."""
    return image.shape[1:3] if image.dtype == np.uint8 else image.shape[2:]


def predict(
    network: Callable[[Any], Any], image: Any, manifest: dict[str, Any], pre: Any, size: Any = None
) -> Any:
    """The network's answer to what `prepare` gave of a photo of that size, (width, height).

    That of counting is the density of the image alone, of segmentation the class of each pixel,
    uint8 [H, W], of detection the boxes [D, 6]; else it is the output.
    """
    whole = padded(image, pre)
    return answer(next(iter(network({INPUT: whole}).values())), image, whole, manifest, size)


def answer(output: Any, image: Any, whole: Any, manifest: dict[str, Any], size: Any) -> Any:
    """What `predict` gives, of the network's output for `whole`, which `padded` made of `image`."""
    checked(output, manifest)
    if "answer" in OF_TASK:
        return OF_TASK["answer"](output, sides(image), sides(whole), size, manifest)
    return output


def checked(output: Any, manifest: dict[str, Any]) -> Any:
    """The network's output, if its task can have such a one."""
    task, shape = manifest["task"], output.shape
    maps, row = (4,), (2,)
    forms = {"counting": maps, "segmentation": maps, "classification": row, "regression": row}
    axes = {**forms, "detection": (3, 4)}.get(task, (output.ndim,))
    if len(shape) not in axes or shape[0] != 1 or (task == "counting" and shape[1] != 1):
        sys.exit(f"error: the network gives {list(shape)}, which is no {task}")
    if not np.isfinite(output).all():
        raise ImageError("the network gives NaN or infinity for this image")
    return output


def told_of(path: str, output: Any, manifest: dict[str, Any], taken: set[str]) -> str:
    """What the answer says of an image, in a line; a class map is written, too."""
    told = meaning(output, manifest)
    if manifest["task"] != "segmentation":
        return told
    return "{}\t{}".format(told, OF_TASK["painted"](path, output, taken))


def meaning(output: Any, manifest: dict[str, Any]) -> str:
    """The count, the shares of classes or the boxes; the value; the class and its probability."""
    if "meaning" in OF_TASK:
        return str(OF_TASK["meaning"](output, manifest))
    if manifest["task"] == "regression":
        return f"{float(output[0, 0]):.6g}"
    powers = np.exp(output[0].astype(np.float64) - output[0].max())
    best = int(powers.argmax())
    name = manifest["classes"][best] if manifest["classes"] else best
    return f"{shown(name)}\t{powers[best] / powers.sum():.4f}"


def tensors(path: str, pre: dict[str, Any]) -> dict[str, Any]:
    """The network's inputs: arrays of an .npz file by name, or what `prepare` makes of an image."""
    if pre["image"] is not None:
        return {INPUT: padded(image_of(path, pre["image"]), pre["image"])}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {
                port["name"]: arrays[port["name"]].reshape(port["shape"]).astype(port["dtype"])
                for port in pre["inputs"]
            }
    except (OSError, ValueError, KeyError) as error:
        wanted = ", ".join("{name} {shape}".format(**port) for port in pre["inputs"])
        raise ImageError(f"{error}; it must be an .npz file of {wanted}") from error


def written(path: str, outputs: dict[str, Any], taken: set[str]) -> str:
    """Write the outputs to the current folder; what they are, in a line.

    `taken` are files that are not to be replaced, such as the images, and then this one too.
    """
    there = kept(path, "_outputs.npz", taken, lambda file: np.savez(file, **outputs))
    told = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
    return f"{told}\t{there}"


def kept(path: str, ending: str, taken: set[str], write: Callable[[Any], Any]) -> str:
    """The file in the current folder that was written for an image; it is in `taken` then."""
    stem, number = Path(path).stem, 2
    there = f"{stem}{ending}"
    while os.path.realpath(there) in taken or os.path.islink(there):
        there, number = f"{stem}-{number}{ending}", number + 1
    taken.add(os.path.realpath(there))
    temporary = f".{there}.{os.getpid()}"
    with open(temporary, "xb") as file:
        write(file)
    os.replace(temporary, there)
    return there


def preprocessing(manifest: dict[str, Any]) -> Any:
    """How a sample becomes the network's inputs."""
    pre = json.loads(read(manifest, "preprocess.json").decode())
    if manifest["task"] == "generic" and "inputs" not in pre:
        return {"inputs": [], "image": pre}  # a task of the user's: its outputs as they are
    return pre


def main() -> None:
    """Print each image and what the network says of it."""
    parser = argparse.ArgumentParser(description="run this bundle's network on images")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="or .npz, as the network takes")
    parser.add_argument("--onnx", action="store_true", help="model.onnx, not the engine")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="of onnxruntime")
    parser.add_argument("--tiles", action="store_true", help="run larger images in tiles, unscaled")
    parser.add_argument("--save-input", metavar="FILE.npy", help="only write it for cpp/infer")
    arguments = parser.parse_args()
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    if arguments.tiles and "tiles.json" not in manifest["files"]:
        sys.exit("error: this bundle has no tiles, as its output is no map")
    pre = preprocessing(manifest)
    if arguments.save_input:
        if len(arguments.images) > 1:
            sys.exit("error: --save-input takes one image")
        image = pre["image"] if "inputs" in pre else pre
        if image is None:
            sys.exit("error: the network takes no image; cpp/infer reads the .npz file itself")
        try:
            np.save(arguments.save_input, image_of(arguments.images[0], image))
        except ImageError as error:
            sys.exit(f"error: {shown(arguments.images[0])}: {shown(error)}")
        return
    failed, taken = 0, {os.path.realpath(path) for path in arguments.images}
    with tempfile.TemporaryDirectory() as scratch:
        if manifest.get("engine") and not arguments.onnx:
            network = open_engine(manifest, scratch)
        else:
            network = open_onnx(manifest, arguments.provider)
        for path in arguments.images:
            try:
                if "inputs" in pre:
                    told = written(path, network(tensors(path, pre)), taken)
                else:
                    if arguments.tiles and OF_TASK["is_larger"](path, pre):
                        output = OF_TASK["tiled"](network, path, manifest, pre, scratch)
                    else:
                        image = image_of(path, pre)
                        output = predict(network, image, manifest, pre, size_of(path))
                    told = told_of(path, output, manifest, taken)
            except ImageError as error:
                failed = 1
                print(f"error: {shown(path)}: {shown(error)}", file=sys.stderr, flush=True)
            else:
                print(f"{shown(path)}\t{told}", flush=True)
    sys.exit(failed)


def size_of(path: str) -> Any:
    """Width and height of the upright photo."""
    with Image.open(path) as file:
        turned = file.getexif().get(274, 1) > 4  # EXIF's orientation: on its side
        return file.size[::-1] if turned else file.size


def image_of(path: str, pre: dict[str, Any]) -> Any:
    """`prepare`, or what is wrong with the image's file."""
    try:
        return prepare(path, pre)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(str(error)) from error  # Pillow raises them for damaged files


if __name__ == "__main__":
    main()
