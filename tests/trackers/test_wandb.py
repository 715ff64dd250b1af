"""Tracker `wandb`: its offline folder, and the records in it."""

import json
import logging
import struct

import pytest
from tracked_run import FILES, GATE, LOSSES, MAES, SIZE, track

from kdcompile.core.optional import need

pytest.importorskip("wandb", reason="pip install 'kdcompile[wandb]'")
pytestmark = pytest.mark.filterwarnings("default")  # the library has many
BLOCK, HEADER, FULL, LAST = 32768, 7, 1, 4


def chunks(content):
    """The records of a LevelDB log whose file begins with 7 bytes of its own."""
    assert content[:4] == b":W&B"
    at, record = 7, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # the end of a block is filled
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield record
            record = b""


def records(path):
    """The records of a run's file, by kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for data in chunks(path.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    return found


def items(updates):
    return {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in updates}


def test_an_offline_run_is_read_back(tmp_path, caplog, monkeypatch):
    for variable in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    with caplog.at_level(logging.WARNING, "kdcompile"):
        track(f"wandb:{tmp_path / 'logs'}", tmp_path / "bundle", caplog)
    (folder,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    for name, text in FILES.items():
        assert (folder / "files" / name).read_text() == text
    (file,) = folder.glob("*.wandb")
    found = records(file)
    (run,) = found["run"]
    assert (run.project, run.display_name) == ("kdcompile", "net-cpu")
    assert items(run.config.update)["distill.lr"] == "0.5"
    rows = [items(one.item) for one in found["history"]]
    kept = [(row["_step"], row["train/loss"], row["val/mae"]) for row in rows]
    assert kept == list(zip((1, 2), LOSSES, MAES, strict=True))
    summary = items(one for update in found["summary"] for one in update.update)
    assert summary[SIZE] == 0.25
    assert (summary["verdict"], summary["gate.accuracy"]) == ("failed: accuracy", GATE)
    assert "stats" not in found, "of this machine"
    assert run.host == "unnamed"
    assert {path.name for path in (folder / "files").iterdir()} <= {
        *FILES,
        "config.yaml",
        "wandb-summary.json",
    }
    assert [one.exit_code for one in found["exit"]] == [0]


def test_its_own_error_reports_are_off():
    from wandb import env

    need("wandb", "wandb", "this test")
    assert not env.error_reporting_enabled()
