"""Tracker `tensorboard`: its event files, read back by TensorBoard's event accumulator."""

import logging

import pytest
from tracked_run import FILES, GATE, LOSSES, MAES, SIZE, track

pytest.importorskip("tensorboard", reason="pip install 'kdcompile[tensorboard]'")
pytestmark = pytest.mark.filterwarnings("default")  # the library has many


def test_a_run_is_read_back(tmp_path, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with caplog.at_level(logging.WARNING, "kdcompile"):
        track(f"tensorboard:{tmp_path / 'logs'}", tmp_path / "bundle", caplog)
    (folder,) = (tmp_path / "logs").iterdir()
    assert folder.name.startswith("net-cpu-")
    for name, text in FILES.items():
        assert (folder / name).read_text() == text
    found = EventAccumulator(str(folder)).Reload()
    for name, values in (("train/loss", LOSSES), ("val/mae", MAES)):
        scalars = [(one.step, one.value) for one in found.Scalars(name)]
        assert scalars == list(enumerate(values, 1))
    assert [one.value for one in found.Scalars(SIZE)] == [0.25]
    texts = {
        tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in found.Tags()["tensors"]
    }
    assert f"| gate.accuracy | {GATE} |" in texts["verdict/text_summary"]
    assert "| distill.lr | 0.5 |" in texts["spec/text_summary"]
    assert texts["report/text_summary"] == FILES["report.md"]
