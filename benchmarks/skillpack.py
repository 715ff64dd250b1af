"""How small is a student's update? `kdcompile delta make` on the digits example, over seeds.

A seed's base is a quarter-width student of the example. The update is that student, trained on at
a site whose camera sees the canvases dimmer and out of focus. The delta between the two is searched
on the site's validation canvases and judged once on its test canvases, against the update itself:
it is to have at most a tenth of the update's fp16 weights and to lose at most 0.5 % of its MAE, by
value and by 95 % bound over canvases. Beside it stands a delta of the same size that was made
without looking at canvases. File sizes are those on the disk, header included.

    python benchmarks/skillpack.py [--seeds 8] [-o benchmarks/skillpack.json]

Seeds 50 to 57 are the reported ones; the method, the steps and the site were made on seeds 0, 1,
10 to 17, 20 to 23, 30 to 37, 40 to 47, 100 and 101. Seeds that are in the file are not run again.
"""

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from canvases_64 import AT_64
from paired import SEEDS, paired

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
BASE_STEPS, UPDATE_STEPS = 400, 200
SIZE, LOSS = 0.1, 0.005
CANVASES = ("data.val=val:1000", "data.test=test:4000")
SITE = """
from dataclasses import replace

import numpy as np
from canvases import photos as plain
from PIL import Image, ImageFilter


def photos(root, split):
    return [replace(photo, array=seen(photo.array)) for photo in plain(root, split)]


def seen(pixels):
    blurred = Image.fromarray(pixels[..., 0]).filter(ImageFilter.GaussianBlur(0.8))
    dim = 40 + 0.6 * np.asarray(blurred, np.float32)
    return dim.clip(0, 255).astype(np.uint8)[..., None]
"""


def train(folder: Path, name: str, seed: int, start: Path | None, *sets: str) -> dict[str, float]:
    """Train a student on labels alone and write its weights; its validation scores."""
    from kdcompile.config.load import load_spec
    from kdcompile.data.splits import load_splits
    from kdcompile.distill.train import Trainer
    from kdcompile.models.factory import load_teacher, load_weights, write_weights
    from kdcompile.models.shrunk import student_from_architecture
    from kdcompile.search.spaces.pruned import architectures
    from kdcompile.targets import load

    own = (
        *AT_64, f"seed={seed}", "distill.recipe=none", "distill.evaluations=2",
        "distill.lr=4e-3", *sets,  # the rate is for random weights
    )  # fmt: skip
    spec = load_spec(folder / "kdcompile.toml", [*own, f"data.train=train:1000:{seed}"])
    teacher, ratio = load_teacher(spec), spec.student.budget.width
    assert ratio is not None, "the example fixes the width"
    tile, shape = load(spec.target).channel_tile, spec.export.profile[1]
    architecture = architectures(teacher, shape, tile, spec.seed, [ratio])[0]
    student = student_from_architecture(teacher, architecture, folder)
    if start is not None:
        load_weights(student, start)
    splits = load_splits(spec.data, folder)
    with tempfile.TemporaryDirectory() as work:
        trainer = Trainer(spec, teacher, student, splits.train, splits.val, Path(work))
        state = trainer.run()
    about = {"architecture": json.dumps(architecture)}
    write_weights(folder / f"{name}.safetensors", state.best, about)
    return dict(state.scores)


def one(seed: int) -> dict[str, Any]:
    """Base, update and delta of a seed."""
    from kdcompile.config.load import load_spec
    from kdcompile.delta import apply, make
    from kdcompile.delta.student import Student
    from kdcompile.delta.tensors import read_student

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "digits"
        shutil.copytree(EXAMPLE, folder)
        (folder / "site.py").write_text(SITE)
        base, new, delta = (folder / n for n in ("base.safetensors", "new.safetensors", "delta"))
        train(folder, "base", seed, None, f"distill.steps={BASE_STEPS}")
        at_site = ("data.format=site.py:photos", *CANVASES)
        train(
            folder, "new", seed, base, f"distill.steps={UPDATE_STEPS}", "distill.lr=1e-3", *at_site
        )
        spec = load_spec(folder / "kdcompile.toml", [*AT_64, f"seed={seed}", *at_site])
        state, metadata = read_student(base)
        student = Student(spec, state, metadata, base)
        before = student.metric(student.errors(state, student.test))
        start = time.process_time()
        found = make(base, new, delta, spec=spec, size=SIZE, loss=LOSS)
        seconds = time.process_time() - start
        make(base, new, folder / "blind", size=found.share)
        blind = apply(base, folder / "blind", folder / "blind.safetensors").output
        made, _ = read_student(Path(str(blind)))
        blind_mae = student.metric(student.errors(made, student.test))
        judged = found.test or found.validation
        assert judged is not None, "a spec is given"
        if found.output is not None:
            assert apply(base, delta, folder / "out.safetensors").result == found.result
    return {
        "seed": seed, "verdict": found.verdict, "reason": found.reason,
        "bytes": found.bytes, "fp16_bytes": found.full_bytes, "share": found.share,
        "judged_on": "test" if found.test else "validation", "base_mae": before,
        "new_mae": judged.reference, "made_mae": judged.value, "high": judged.high,
        "blind_mae": blind_mae, "make_cpu_s": seconds,
        "kinds": [tensor.kind for tensor in found.tensors.values()],
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many met both goals, the sizes, and the metric's loss with its interval over seeds."""
    change = {r["seed"]: r["made_mae"] / r["new_mae"] - 1 for r in rows}
    return {
        "met": f"{sum(r['verdict'] == 'passed' for r in rows)} of {len(rows)}",
        "share_mean": statistics.mean(r["share"] for r in rows),
        "share_most": max(r["share"] for r in rows),
        "bound_most": max(r["high"] / r["new_mae"] for r in rows),
        "base_mae": statistics.mean(r["base_mae"] for r in rows),
        "new_mae": statistics.mean(r["new_mae"] for r in rows),
        "made_mae": statistics.mean(r["made_mae"] for r in rows),
        "blind_mae": statistics.mean(r["blind_mae"] for r in rows),
        "relative_change_of_mae": paired(dict.fromkeys(change, 0.0), change, higher=False),
    }


def main() -> None:
    """Run the seeds that are missing, print the table, keep the result."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, choices=SEEDS)
    parser.add_argument("--first-seed", type=int, default=50)
    output = Path(__file__).with_suffix(".json")
    parser.add_argument("-o", "--output", type=Path, default=output)
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(args.output.read_text())["rows"] if args.output.is_file() else []
    rows = {row["seed"]: row for row in known}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        row = rows.setdefault(seed, None) or one(seed)
        rows[seed] = row
        print(f"seed {seed:3d}  {row['share']:6.1%}  {row['verdict']}: {row['reason']}", flush=True)
        done = [row for row in rows.values() if row]
        environment = {"machine": platform.machine(), "torch_version": version("torch")}
        result: dict[str, Any] = {
            "rows": done, "steps": [BASE_STEPS, UPDATE_STEPS], "environment": environment
        }  # fmt: skip
        if len(done) in SEEDS:
            result["summary"] = summary(done)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result.get("summary"), indent=1))


if __name__ == "__main__":
    main()
