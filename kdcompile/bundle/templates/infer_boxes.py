"""Part of `infer.py` in bundles of detection: the boxes that a network's output says."""

from __future__ import annotations

import base64
import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdcompile.bundle.templates.infer import OF_TASK, read, shown

# joined to infer.py from here on

OWN: dict[str, Callable[..., Any]] = {}  # decodes that the bundle carries, once they are imported


def found_boxes(output: Any, seen: Any, plane: Any, size: Any, manifest: dict[str, Any]) -> Any:
    """The boxes of a photo of that size, (width, height): [D, 6] of x0 y0 x1 y1, score, class."""
    about = json.loads(read(manifest, "task.json").decode())
    head, decode = about["head"], about["decode"]
    overlap = head["overlap"]
    if ":" in (decode or ""):
        rows, overlap = decoded(output, decode, plane, manifest), 1  # it suppresses as it likes
    elif decode in ("ssd", "detr"):
        rows = of_pair(output[0].astype(np.float64), about, plane)
    else:
        rows = candidates(output[0].astype(np.float64), decode, head["lowest"], plane)
    middle = (rows[:, :2] + rows[:, 2:4]) / 2
    rows = rows[(middle < np.array(seen[::-1])).all(1) & (rows[:, 4] >= head["threshold"])]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")[:1000]]
    kept: list[Any] = []
    while len(rows):
        kept.append(rows[0])
        clash = (overlaps(rows[0], rows) > overlap) & (rows[:, 5] == rows[0, 5])
        clash[0] = True
        rows = rows[~clash]
    found = np.array(kept[:100]).reshape(-1, 6)
    found[:, :4] *= np.tile(np.array(size) / np.array(seen[::-1]), 2)
    found[:, :4] = np.clip(found[:, :4], 0, np.tile(size, 2))
    return found[(found[:, 2:4] > found[:, :2]).all(1)]


def decoded(output: Any, name: str, plane: Any, manifest: dict[str, Any]) -> Any:
    """What the bundle's own decode says, [D, 6]."""
    try:
        if name not in OWN:
            OWN[name] = own_decode(name, manifest)
        boxes, scores, kinds = OWN[name]({"boxes": output}, tuple(plane))
    except Exception as error:  # whatever a user's code raises
        sys.exit(f"error: {shown(name)} fails: {shown(error)}")
    return np.column_stack([np.reshape(boxes, (-1, 4)), scores, kinds])


def own_decode(name: str, manifest: dict[str, Any]) -> Callable[..., Any]:
    """The function of a file in code/, or of a package: `file.py:f` or `package.module:f`."""
    module, _, function = name.partition(":")
    if module.endswith(".py"):
        module = module[:-3].replace("/", ".")
    with tempfile.TemporaryDirectory() as scratch:
        for file in manifest["files"]:
            if file.startswith("code/"):
                copy = Path(scratch, *file.split("/")[1:])
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(read(manifest, file))
        sys.path.insert(0, scratch)
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        finally:
            sys.path.remove(scratch)
    return found


def candidates(output: Any, decode: Any, lowest: float, plane: Any) -> Any:
    """What an output says before suppression, [D, 6] in pixels of the network's input."""
    if output.ndim == 3:  # centre maps: class logits, then logarithms of distances in cells
        logits, raw = output[:-4], output[-4:]
        height, width = logits.shape[1:]
        wide = np.pad(logits, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        around = [wide[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        scores = 0.5 * (1 + np.tanh(0.5 * logits))
        kind, row, column = np.nonzero((logits >= np.max(around, axis=0)) & (scores >= lowest))
        down, along = plane[0] / height, plane[1] / width
        y, x = (row + 0.5) * down, (column + 0.5) * along
        left, top, right, bottom = np.exp(np.clip(raw[:, row, column], -8, 8))
        columns = [x - left * along, y - top * down, x + right * along, y + bottom * down]
        return np.stack([*columns, scores[kind, row, column], kind], axis=1)
    if decode == "boxes":
        return output
    if output.shape[1] > output.shape[0]:  # 4 + C rows; else 5 + C columns with an objectness
        boxes, scores = output[:4].T, output[4:].T
    else:
        boxes, scores = output[:, :4], output[:, 5:] * output[:, 4:5]
    row, kind = np.nonzero(scores >= lowest)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    return np.column_stack([low[row], high[row], scores[row, kind], kind])


def of_pair(rows: Any, about: dict[str, Any], plane: Any) -> Any:
    """The same of rows of boxes and scores [A, 4 + C], by `task.json`."""
    head, boxes, scores = about["head"], rows[:, :4], rows[:, 4:]
    if head["scores"] == "sigmoid":
        scores = 0.5 * (1 + np.tanh(0.5 * scores))
    elif head["scores"] == "softmax":
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores = scores / scores.sum(1, keepdims=True)
    nothing = head["background"]
    scores = scores[:, int(nothing == "first") : scores.shape[1] - int(nothing == "last")]
    if about.get("anchors"):
        anchors = np.frombuffer(base64.b64decode(about["anchors"]), "<f4").reshape(-1, 4)
        centre, size = head["variances"]
        places = anchors[:, :2] + boxes[:, :2] * centre * anchors[:, 2:]
        sizes = anchors[:, 2:] * np.exp(np.minimum(boxes[:, 2:] * size, 8))
    elif head["boxes"] == "centre":
        places, sizes = boxes[:, :2], boxes[:, 2:]
    else:
        places, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    if head["unit"] == "share":
        places, sizes = places * plane[::-1], sizes * plane[::-1]
    row, kind = np.nonzero(scores >= head["lowest"])
    low, high = places - sizes / 2, places + sizes / 2
    return np.column_stack([low[row], high[row], scores[row, kind], kind])


def overlaps(box: Any, others: Any) -> Any:
    """Intersection over union of a box with others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    area = np.prod(box[2:4] - box[:2]) + np.prod(others[:, 2:4] - others[:, :2], axis=1)
    return common / np.maximum(area - common, 1e-12)


def listed(boxes: Any, manifest: dict[str, Any]) -> str:
    """Boxes as JSON: class, score and corners each."""
    names = manifest["classes"]
    rows = [
        {
            "class": names[int(row[5])] if names else int(row[5]),
            "score": round(float(row[4]), 4),
            "box": [round(float(value), 1) for value in row[:4]],
        }
        for row in boxes
    ]
    return json.dumps(rows)


OF_TASK.update(answer=found_boxes, meaning=listed)
