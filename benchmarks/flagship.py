"""The flagship on a CPU: CSRNet to a quarter of its width on ShanghaiTech A, arms side by side.

    python benchmarks/flagship.py DATA WEIGHTS [--arms none dm ...] [--steps 12000] [--work FOLDER]
        [--judge] [-o FILE]

DATA is the folder of photos, WEIGHTS the teacher's. All arms start from one inherited student and
take the same steps of eight crops of 256x256 in bfloat16, from one seed; what validates best of the
start and 24 validations is kept. The arms, their steps and the intervals were fixed before the
first of them was judged. `--judge` reads the test photos: once, when the arms are done. An arm that
is done is kept, and a stopped one goes on.

Intervals (95 %) are percentile bootstraps over the test photos, paired between arms.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

EXAMPLE = Path(__file__).parent.parent / "examples" / "shanghaitech" / "kdcompile.toml"
RECURRING = "distill.views=32"  # crops a photo, so that the teacher looks at each once
ARMS = {
    "none": ["distill.recipe=none"],
    "kd": ["distill.recipe=kd", RECURRING],
    "bayesian": ["distill.recipe=none", "distill.hard=bayesian"],
    "dm": ["distill.recipe=none", "distill.hard=dm"],
    "dm, kd": ["distill.recipe=kd", "distill.hard=dm", RECURRING],
}
SHARED = ["distill.precision=bfloat16", "distill.evaluations=24"]
PRICED = (1, 3, 576, 864)
DRAWS, SEED = 9999, 0


def plan(folder: Path, arm: str, steps: int) -> Any:
    """The build of an arm."""
    from kdcompile.config.load import load_spec
    from kdcompile.passes.manager import make_plan

    return make_plan(load_spec(folder, [*SHARED, *ARMS[arm], f"distill.steps={steps}"]))


def project(work: Path, data: Path, weights: Path) -> Path:
    """The example with its photos and its teacher; one store for all arms."""
    text = re.sub(r"^root = .*$", f'root = "{data.absolute()}"', EXAMPLE.read_text(), flags=re.M)
    text = re.sub(r"^weights = .*$", f'weights = "{weights.absolute()}"', text, flags=re.M)
    work.mkdir(parents=True, exist_ok=True)
    (work / "kdcompile.toml").write_text(text)
    return work / "kdcompile.toml"


def trained(work: Path, name: str, build: Any) -> Path:
    """The folder of an arm's training; one that is there is kept, whatever code made it."""
    kept = work / "arms" / name.replace(", ", "-")
    if not (kept / "result.json").is_file():
        made = build.make("distill")
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        shutil.copytree(made.path, kept)
    return kept


def network_of(kept: Path, spec: Any) -> torch.nn.Module:
    """The trained student, its output calibration in it."""
    from kdcompile.models.factory import load_teacher
    from kdcompile.models.shrunk import student_from_architecture
    from kdcompile.models.weights import read_weights

    architecture = json.loads((kept / "architecture.json").read_text())
    network = student_from_architecture(load_teacher(spec), architecture, spec.folder)
    network.load_state_dict(read_weights(kept / "student.safetensors")[0])
    return network.eval()


def errors_of(network: torch.nn.Module, spec: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Predicted less true count of each test photo."""
    from kdcompile.data.splits import load_splits
    from kdcompile.distill.evaluate import predict
    from kdcompile.distill.training_context import training_device
    from kdcompile.tasks.task import preprocess_of, task_of

    task, photos = task_of(spec), load_splits(spec.data, spec.folder).test
    found = predict(network, photos, preprocess_of(spec), training_device(), task)
    return np.asarray(found, np.float64) - np.array([task.truth(photo) for photo in photos])


def curve(kept: Path) -> list[tuple[int, float]]:
    """Step and validation MAE."""
    rows = map(json.loads, (kept / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["val_mae"]) for row in rows if "val_mae" in row]


def interval(values: Any) -> list[float]:
    """Of resampled values, 95 %."""
    return [float(bound) for bound in np.quantile(values, (0.025, 0.975))]


def judged(errors: dict[str, Any]) -> dict[str, Any]:
    """MAE, RMSE and bias of each with intervals, and what it differs by from teacher and `none`."""
    count = len(errors["teacher"])
    drawn = np.random.default_rng(SEED).integers(count, size=(DRAWS, count))
    found = {}
    for name, own in errors.items():
        row: dict[str, Any] = {
            "mae": float(np.abs(own).mean()),
            "mae_interval": interval(np.abs(own)[drawn].mean(1)),
            "rmse": float(np.sqrt((own**2).mean())),
            "bias": float(own.mean()),
            "bias_interval": interval(own[drawn].mean(1)),
        }
        for base in {"teacher", "none"} & errors.keys() - {name}:
            more = np.abs(own) - np.abs(errors[base])
            row[f"more_than_{base}"] = [float(more.mean()), *interval(more[drawn].mean(1))]
        found[name] = row
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Train the arms, and judge them where that is asked for."""
    from reference_networks import count

    from kdcompile.models.factory import load_teacher

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--work", type=Path, default=Path(".kdcompile/flagship"))
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(words)
    spec = project(args.work, args.data, args.weights)
    arms: dict[str, dict[str, Any]] = {}
    networks = {}
    for name in args.arms:
        build = plan(spec, name, args.steps)
        kept = trained(args.work, name, build)
        result = json.loads((kept / "result.json").read_text())
        networks[name] = network_of(kept, build.spec)
        sizes = count(networks[name], PRICED)
        arms[name] = {
            "val_mae": result["val_mae"], "best_step": result["best_step"],
            "curve": curve(kept), "seconds": result["seconds"],
            "output_calibration": result["output_calibration"],
            "parameters": sizes.params, "gmac_576x864": sizes.macs / 1e9,
        }  # fmt: skip
    record: dict[str, Any] = {"steps": args.steps, "arms": arms}
    if args.judge:
        build = plan(spec, args.arms[0], args.steps)
        networks = {"teacher": load_teacher(build.spec), **networks}
        record["test"] = judged({n: errors_of(each, build.spec) for n, each in networks.items()})
    print(json.dumps(record, indent=1))
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
