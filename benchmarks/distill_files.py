"""The files of the distillation benchmark: a row and a record an arm, and the best student."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kdcompile.core.files import write_json, write_text
from kdcompile.models.factory import write_weights

COLUMNS = ("arm", "seed", "steps", "minutes", "steps_per_s", "val_mae", "test_mae", "card")
STUDENT = "csrnet_quarter_sha"
Row = dict[str, str]


class Results:
    """`distill.csv` and `distill.json` in a folder, and `models/` beside them.

    The record of an arm is kept before its row: what has a row has a record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table, self.details = folder / "distill.csv", folder / "distill.json"

    def rows(self) -> list[Row]:
        """The rows so far."""
        if not self.table.is_file():
            return []
        with self.table.open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise SystemExit(f"{self.table} has other columns than {', '.join(COLUMNS)}")
            return list(reader)

    def row(self, arm: str, seed: int, card: str) -> Row | None:
        """The row of an arm on a card, if it is done."""
        key = (arm, str(seed), card)
        return next((r for r in self.rows() if (r["arm"], r["seed"], r["card"]) == key), None)

    def records(self) -> dict[str, dict[str, Any]]:
        """Every record, by `key`."""
        return json.loads(self.details.read_text()) if self.details.is_file() else {}

    def add(self, row: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Keep what an arm gave: the record, one line in the file, then the row."""
        records = self.records() | {key(row["arm"], row["seed"], row["card"]): dict(record)}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(r)}" for name, r in records.items())
        write_text(self.details, f"{{\n{lines}\n}}\n")
        new = not self.rows() and not self.table.is_file()
        with self.table.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({name: _cell(row[name]) for name in COLUMNS})

    def offer(
        self, weights: dict[str, Tensor], architecture: Mapping[str, Any], report: Mapping[str, Any]
    ) -> bool:
        """Keep a student if its validation MAE is the best so far; whether it was."""
        models = self.folder / "models"
        path, told = models / f"{STUDENT}.safetensors", models / f"{STUDENT}.json"
        if told.is_file() and json.loads(told.read_text())["val_mae"] <= report["val_mae"]:
            return False
        models.mkdir(exist_ok=True)
        write_weights(path, weights, {"architecture": json.dumps(architecture)})
        write_json(told, dict(report))
        return True


def key(arm: str, seed: int | str, card: str) -> str:
    """The name of a record."""
    return f"{arm} | seed {seed} | {card}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
