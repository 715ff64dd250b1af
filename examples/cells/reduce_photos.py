"""Make the example's photos from the published ones: 512x384 pixels, JPEG, 4 MB in all.

    python reduce_photos.py --data FOLDER [--output FOLDER] [--width 512] [--quality 52]

FOLDER holds `images/` and `train.json`, `val.json` and `test.json` (COCO) of BCCD. Every photo is
scaled to that width (Lanczos), and its boxes with it; the centres of the red cells go into
`red_cells.jsonl`, with `train.txt`, `val.txt` and `test.txt`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, QUALITY = 512, 52
RED = "RBC"
SPLITS = ("train", "val", "test")


def main() -> None:
    """Write the photos and the annotations of the three splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--quality", type=int, default=QUALITY)
    asked = parser.parse_args()
    (asked.output / "images").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for split in SPLITS:
        given = json.loads((asked.data / f"{split}.json").read_text())
        scaled = scaled_to(given, asked.width)
        for image in scaled["images"]:
            size = (image["width"], image["height"])
            with Image.open(asked.data / image["file_name"]) as photo:
                small = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            path = asked.output / image["file_name"]
            small.save(path, "JPEG", quality=asked.quality, optimize=True, progressive=True)
        text = json.dumps(scaled, separators=(",", ":"))
        (asked.output / f"{split}.json").write_text(text + "\n")
        lines += [json.dumps(line, separators=(",", ":")) for line in red_cells(scaled)]
        names = [image["file_name"] for image in scaled["images"]]
        (asked.output / f"{split}.txt").write_text("\n".join(names) + "\n")
    (asked.output / "red_cells.jsonl").write_text("\n".join(lines) + "\n")


def scaled_to(given: dict[str, Any], width: int) -> dict[str, Any]:
    """The COCO annotations for photos of another width, boxes to a tenth of a pixel."""
    images, scales = [], {}
    for image in given["images"]:
        height = round(image["height"] * width / image["width"])
        scales[image["id"]] = (width / image["width"], height / image["height"])
        images.append(image | {"width": width, "height": height})
    annotations = []
    for annotation in given["annotations"]:
        across, down = scales[annotation["image_id"]]
        left, top, wide, high = annotation["bbox"]
        x, y = round(left * across, 1), round(top * down, 1)
        right, bottom = round((left + wide) * across, 1), round((top + high) * down, 1)
        box = [x, y, round(right - x, 1), round(bottom - y, 1)]
        annotations.append(annotation | {"bbox": box, "area": round(box[2] * box[3], 1)})
    return {"images": images, "annotations": annotations, "categories": given["categories"]}


def red_cells(coco: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each photo: its name and the centres of its red cells, x and y in pixels."""
    (red,) = (c["id"] for c in coco["categories"] if c["name"] == RED)
    centres: dict[int, list[list[float]]] = {image["id"]: [] for image in coco["images"]}
    for kept in coco["annotations"]:
        if kept["category_id"] == red:
            left, top, wide, high = kept["bbox"]
            centres[kept["image_id"]].append([round(left + wide / 2, 1), round(top + high / 2, 1)])
    return [
        {"image": image["file_name"], "points": centres[image["id"]]} for image in coco["images"]
    ]


if __name__ == "__main__":
    main()
