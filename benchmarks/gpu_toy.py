"""Write the toy task of the dry run: bright squares on photos of 16x16 pixels, and a teacher.

python benchmarks/gpu_toy.py FOLDER
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from tiny_training import MODEL, SPEC, network, write_photos

SPLITS = {"train": 8, "val": 4, "test": 4}


def write(folder: Path) -> None:
    """Photos, points, splits, model and weights; the spec last, which says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_photos(folder, SPLITS)
    (folder / "model.py").write_text(MODEL)
    # a bright square is its count: a network that is worth keeping without any training
    weights = {name: 0.01 * value for name, value in network(32, 0).state_dict().items()}
    weights["0.weight"][0, 0, 1, 1] = weights["3.weight"][0, 0, 1, 1] = 1.0
    weights["5.weight"][0, 0] = 0.25
    save_file(weights, folder / "w.safetensors")
    (folder / "kdcompile.toml").write_text(SPEC)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
