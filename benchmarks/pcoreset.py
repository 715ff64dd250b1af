"""Does PCoreSet choose better photos, to label and to calibrate with? Paired over seeds.

Labelling: scanned digits, 10 of them labelled at random, then three rounds of 10 that are chosen
from a pool of 800 by `pcoreset`, by entropy or at random, on the mean of what teacher and student
answer. The teacher has seen 100 other digits. After each round the student is trained anew from
the same weights, with labels and soft targets on what is labelled (`kd`), or with soft targets on
the whole pool too (`pool`, the paper's loss). The pool has all digits alike (`even`) or each one
0.7 times as often as the one before it (`tail`); the 500 test digits are alike. The classes' order
is drawn by the seed.

Calibration: a short-trained student of the digits example, its int8 ranges found (`entropy`, the
default) on 16 of 1,000 canvases; judged on 400 test canvases against fp32.

    python benchmarks/pcoreset.py [--seeds 8] [--first-seed 0] [--jobs 1] [-o FILE]

A run takes less than 20 s; what FILE holds already is not run again. Seeds 0 to 7 are reported;
sizes and rates were fixed on seeds 100 and 101.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from canvases_64 import AT_64
from numpy.typing import NDArray
from paired import keep, paired, parser, run
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.core.files import write_json
from kdcompile.data.coreset import described, k_center, mean_of, space

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
POOLS, LOSSES, CHOICES = ("even", "tail"), ("kd", "pool"), ("random", "entropy", "pcoreset")
ARMS = [(loss, choice) for loss in LOSSES for choice in CHOICES]
FIRST, QUERY, ROUNDS = 10, 10, 3
TAUGHT, POOL, TEST, TAIL = 100, 800, 500, 0.7
STEPS, RATE, BATCH, TAU = 300, 3e-3, 64, 2.0
SELECTS, IMAGES = ("even", "random", "pcoreset"), 16
TRAINED = {
    "distill.recipe": "none", "distill.steps": 100, "distill.evaluations": 1,
    "quantize.images": IMAGES, "data.val": "val:50", "distill.lr": 4e-3,
}  # fmt: skip
Floats = NDArray[np.float64]


def labelling(seed: int) -> list[dict[str, Any]]:
    """The student's test accuracy after each round, for each pool, loss and choice."""
    torch.set_num_threads(1)
    rows = []
    for pool in POOLS:
        found = _rounds(_Digits(seed, pool), seed)
        rows += [{"pool": pool, "loss": loss, "choice": choice, **found[n]}
                 for n, (loss, choice) in enumerate(ARMS)]  # fmt: skip
    return rows


class _Digits:
    """The digits of a seed: the pool, the test, what the teacher says, and how a student starts."""

    def __init__(self, seed: int, kind: str) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        random = np.random.default_rng(seed)
        order, rank = random.permutation(len(images)), random.permutation(10)
        self.images = torch.tensor(images / 16, dtype=torch.float32)
        self.labels = torch.tensor(labels)
        self.test = order[TAUGHT : TAUGHT + TEST]
        rest = order[TAUGHT + TEST :]
        share = TAIL ** rank[labels[rest]] if kind == "tail" else np.ones(len(rest))
        size = min(POOL, int(share.sum()))
        self.pool = random.choice(rest, size, replace=False, p=share / share.sum())
        torch.manual_seed(seed)
        teacher, self.start = _networks(128), _networks(24)
        known = order[:TAUGHT]
        _train(teacher, lambda: functional.cross_entropy(
            _answers(teacher, self.images[known])[0], self.labels[known]))  # fmt: skip
        self.soft = _answers(teacher, self.images)[0].detach()


Weights = list[Tensor]  # of networks side by side: [A, 64, W], [A, 1, W], [A, W, 10], [A, 1, 10]


def _networks(width: int) -> Weights:
    """The start of one network of two layers."""
    layers = nn.Linear(64, width), nn.Linear(width, 10)
    return [t.detach()[None] for m in layers for t in (m.weight.T.contiguous(), m.bias[None])]


def _answers(networks: Weights, images: Tensor) -> Tensor:
    """Logits [A, N, 10] of images [N, 64], or of [A, N, 64] where each network has its own."""
    first, shift, second, last = networks
    images = images.expand(len(first), *images.shape[-2:])
    return torch.baddbmm(last, torch.baddbmm(shift, images, first).relu(), second)


def _train(networks: Weights, loss: Callable[[], Tensor]) -> None:
    """AdamW with a cosine schedule: each network as if it were alone."""
    for weight in networks:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(networks, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()


def _rounds(data: _Digits, seed: int) -> list[dict[str, list[float]]]:
    """Accuracies, and how many classes are labelled, at the start and after each round, by arm."""
    draws = [np.random.default_rng(seed) for _ in ARMS]
    chosen = [draw.permutation(len(data.pool))[:FIRST].tolist() for draw in draws]  # all alike
    found: list[dict[str, list[float]]] = [{"accuracy": [], "classes": []} for _ in ARMS]
    for _ in range(ROUNDS + 1):
        logits = _students(data, np.array(chosen))
        right = logits[:, data.test].argmax(2) == data.labels[data.test]
        for arm, (_, choice) in enumerate(ARMS):
            found[arm]["accuracy"].append(float(right[arm].float().mean()))
            labels = data.labels[data.pool[chosen[arm]]]
            found[arm]["classes"].append(len(set(labels.tolist())))
            told = [described(answer[data.pool].numpy()) for answer in (data.soft, logits[arm])]
            chosen[arm] += _chosen(choice, space([mean_of(told)]), chosen[arm], draws[arm])
    return found


def _students(data: _Digits, chosen: NDArray[np.int64]) -> Tensor:
    """Logits [A, N, 10] of all digits by students that are trained on their places [A, n]."""
    students = [weight.repeat(len(ARMS), 1, 1) for weight in data.start]
    known, draw = data.pool[chosen], np.random.default_rng(0)
    labels, on_pool = data.labels[known], torch.tensor([loss == "pool" for loss, _ in ARMS])

    def loss() -> Tensor:
        answers = _answers(students, data.images[known])
        hard = functional.cross_entropy(answers.transpose(1, 2), labels, reduction="none").mean(1)
        some = draw.choice(data.pool, BATCH)
        more = _soft(_answers(students, data.images[some]), data.soft[some])
        soft = _soft(answers, data.soft[known]) + torch.where(on_pool, more, 0.0)
        return (0.5 * hard + 0.5 * soft).sum()

    _train(students, loss)
    return _answers(students, data.images).detach()


def _soft(answers: Tensor, teacher: Tensor) -> Tensor:
    """Softened KL [A] of answers [A, N, 10]."""
    told, target = (functional.log_softmax(logits / TAU, -1) for logits in (answers, teacher))
    return TAU**2 * (target.exp() * (target - told)).sum(-1).mean(-1)


def _chosen(
    choice: str, points: Floats, chosen: Sequence[int], random: np.random.Generator
) -> list[int]:
    """`QUERY` places in the pool that are not chosen yet."""
    left = np.setdiff1d(np.arange(len(points)), chosen)
    if choice == "random":
        return random.choice(left, QUERY, replace=False).tolist()
    if choice == "entropy":
        entropy = -(points * np.log(points.clip(1e-12))).sum(1)
        return left[np.argsort(-entropy[left], kind="stable")[:QUERY]].tolist()
    picks, _ = k_center(points[left], points[list(chosen)], QUERY)
    return left[picks].tolist()


def calibration(seed: int) -> list[dict[str, Any]]:
    """SQNR and MAE in int8, for each choice of the calibration images."""
    torch.set_num_threads(1)
    from kdcompile.config.load import load_spec
    from kdcompile.passes.manager import make_plan

    with tempfile.TemporaryDirectory() as folder:
        from kdcompile.config.template import init_example

        init_example("digits", Path(folder))
        values = {**TRAINED, "seed": seed, "data.train": f"train:1000:{seed}"}
        sets = [*AT_64, *(f"{name}={value}" for name, value in values.items())]
        plan = make_plan(load_spec(Path(folder) / "kdcompile.toml", sets))
        exported = plan.make("export")
        return [{"choice": how, **_in_int8(plan.spec, exported, how)} for how in SELECTS]


def _in_int8(spec: Any, exported: Any, how: Any) -> dict[str, float]:
    """What int8 costs with ranges of images that are so chosen."""
    import onnx

    from kdcompile.calib.calibrate import table_of
    from kdcompile.calib.chosen import select_images
    from kdcompile.calib.collect import collect, tensors_to_observe
    from kdcompile.calib.qdq import insert_qdq
    from kdcompile.data.splits import load_splits
    from kdcompile.onnx_graph.session import cpu_session
    from kdcompile.tasks.agreement import pooled_sqnr
    from kdcompile.tasks.task import preprocess_of

    splits = load_splits(spec.data, spec.folder)
    prepare = preprocess_of(spec)
    model = onnx.load(exported.file("student.onnx"))
    feed = model.graph.input[0].name

    def outputs(network: Any, photos: Any) -> Any:
        session = cpu_session(network, as_written=True)
        return (session.run(None, {feed: prepare(photo.pixels(1))})[0] for photo in photos)

    photos = select_images(splits.train, how, IMAGES, spec.seed, partial(outputs, model))
    names = tensors_to_observe(model)
    seen = collect(model, (prepare(photo.pixels(1)) for photo in photos), names)
    table = table_of(seen, "", [(p.name, p.sha256()) for p in photos], "entropy", "numpy")
    true = np.array([photo.count for photo in splits.test])
    exact, coarse = ([*outputs(m, splits.test)] for m in (model, insert_qdq(model, table, "int8")))
    errors = [np.abs(np.array([o.sum() for o in got]) - true).mean() for got in (exact, coarse)]
    return {
        "mae_fp32": float(errors[0]),
        "mae_int8": float(errors[1]),
        "sqnr_db": pooled_sqnr(exact, coarse),
    }


PARTS = {"labelling": labelling, "calibration": calibration}


def one(job: tuple[str, int]) -> list[dict[str, Any]]:
    """A run: one part for one seed."""
    return [{"part": job[0], "seed": job[1], **row} for row in PARTS[job[0]](job[1])]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means by choice, and what pcoreset differs by from each other one."""
    found: dict[str, Any] = {}
    last = {(r["pool"], r["loss"], r["choice"], r["seed"]): r["accuracy"][-1]
            for r in rows if r["part"] == "labelling"}  # fmt: skip
    for pool in POOLS:
        for loss in LOSSES:
            arms = {c: {k[3]: v for k, v in last.items() if k[:3] == (pool, loss, c)}
                    for c in CHOICES}  # fmt: skip
            found[f"accuracy, {pool}, {loss}"] = _against(arms, higher=True)
        arms = {loss: {k[3]: v for k, v in last.items() if k[:3] == (pool, loss, "pcoreset")}
                for loss in LOSSES}  # fmt: skip
        found[f"accuracy, {pool}, pcoreset: pool against kd"] = paired(**dict(
            zip(("base", "other"), arms.values(), strict=True)), higher=True)  # fmt: skip
    for name, higher in (("mae_int8", False), ("sqnr_db", True)):
        arms = {c: {r["seed"]: r[name] for r in rows if r.get("choice") == c and name in r}
                for c in SELECTS}  # fmt: skip
        found[name] = _against(arms, higher=higher)
    return found


def _against(arms: dict[str, dict[int, float]], *, higher: bool) -> dict[str, Any]:
    means = {name: statistics.mean(arm.values()) for name, arm in arms.items()}
    others = [name for name in arms if name != "pcoreset"]
    own = arms["pcoreset"]
    return means | {f"- {name}": paired(arms[name], own, higher=higher) for name in others}


def main() -> None:
    """Run what is not in the file yet, print the summary, keep the result."""
    args = parser(__doc__, seeds=8).parse_args()
    is_begun = args.output is not None and args.output.is_file()
    rows = json.loads(args.output.read_text())["rows"] if is_begun else []
    done = {(row["part"], row["seed"]) for row in rows}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    jobs = [(part, seed) for part in PARTS for seed in seeds if (part, seed) not in done]
    for job, found in zip(jobs, run(one, jobs, args.jobs), strict=True):
        rows += found
        print(*job)
        if args.output is not None:
            write_json(args.output, {"rows": rows})
    rows = [row for row in rows if row["seed"] in seeds]
    keep({"rows": rows, "summary": summary(rows)}, args)


if __name__ == "__main__":
    main()
