"""Make the example's photos from the published ones: 512x384 pixels, JPEG, 4 MB in all.

    python reduce_photos.py --data FOLDER [--output .]

FOLDER holds `images/` and `train.json`, `val.json` and `test.json` (COCO) of BCCD. Every photo is
scaled to 4/5 of its size (Lanczos) and written at JPEG quality 52, and its boxes with it; the
centres of the red cells go into `red_cells.jsonl`, with `train.txt`, `val.txt` and `test.txt`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT, QUALITY = 512, 384, 52
RED = "RBC"
SPLITS = ("train", "val", "test")


def main() -> None:
    """Write the photos and the annotations of the three splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    asked = parser.parse_args()
    (asked.output / "images").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for split in SPLITS:
        given = json.loads((asked.data / f"{split}.json").read_text())
        for image in given["images"]:
            with Image.open(asked.data / image["file_name"]) as photo:
                small = photo.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
            path = asked.output / image["file_name"]
            small.save(path, "JPEG", quality=QUALITY, optimize=True, progressive=True)
        scaled = scaled_to(given, WIDTH, HEIGHT)
        text = json.dumps(scaled, separators=(",", ":"))
        (asked.output / f"{split}.json").write_text(text + "\n")
        lines += [json.dumps(line, separators=(",", ":")) for line in red_cells(scaled)]
        names = [image["file_name"] for image in scaled["images"]]
        (asked.output / f"{split}.txt").write_text("\n".join(names) + "\n")
    (asked.output / "red_cells.jsonl").write_text("\n".join(lines) + "\n")


def scaled_to(given: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """The COCO annotations for photos of another size, boxes to a tenth of a pixel."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in given["images"]}
    annotations = []
    for kept in given["annotations"]:
        across, down = sizes[kept["image_id"]]
        left, top, wide, high = kept["bbox"]
        right = round((left + wide) * width / across, 1)
        bottom = round((top + high) * height / down, 1)
        left, top = round(left * width / across, 1), round(top * height / down, 1)
        box = [left, top, round(right - left, 1), round(bottom - top, 1)]
        area = round(box[2] * box[3], 1)
        annotations.append(kept | {"bbox": box, "area": area})
    images = [image | {"width": width, "height": height} for image in given["images"]]
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
