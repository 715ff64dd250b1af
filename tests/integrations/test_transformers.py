"""`CompressAtEnd` of Hugging Face's Trainer: a build from its model and its data sets."""

import pytest
import torch
from bright_images import SHORT, bright, network
from torch import nn

from kdcompile import api
from kdcompile.core.errors import KDError

pytest.importorskip("accelerate", reason="pip install 'kdcompile[transformers]'")
pytest.importorskip("transformers", reason="pip install 'kdcompile[transformers]'")
pytestmark = pytest.mark.filterwarnings("default")  # the libraries have many

from transformers import Trainer, TrainingArguments  # noqa: E402
from transformers.modeling_outputs import ImageClassifierOutput  # noqa: E402

from kdcompile.integrations.transformers import CompressAtEnd  # noqa: E402


class Model(nn.Module):
    """A classifier in the form of the library."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def samples(first, last):
    return [{"pixel_values": image, "labels": label} for image, label in bright(first, last)]


def train(callback, tmp_path, evaluates=True):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-4,
        eval_strategy="steps" if evaluates else "no", eval_steps=2,
    )  # fmt: skip
    model, data = Model(), samples(8, 12) if evaluates else None
    trainer = Trainer(model, arguments, train_dataset=samples(0, 8), eval_dataset=data,
                      callbacks=[callback])  # fmt: skip
    trainer.train()
    return model


@pytest.mark.slow
def test_train_ends_with_a_bundle_of_what_was_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = CompressAtEnd(
        data={"test": samples(12, 16)}, task="classification", target="cpu", out="bundle", **SHORT
    )
    assert callback.built is None
    model = train(callback, tmp_path)
    assert callback.built.bundle.joinpath("manifest.json").is_file()
    assert (callback.built.name, callback.built.details["test_photos"]) == ("Output", 4)
    (file,) = tmp_path.rglob("weights-*.safetensors")
    from safetensors.torch import load_file

    assert torch.equal(load_file(file)["model.net.0.weight"], model.net[0].weight)


def test_other_tasks_take_the_model_and_its_samples_as_they_are(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(api, "build", lambda **named: given.update(named))
    test = samples(12, 16)
    callback = CompressAtEnd(data={"test": test}, task={"kind": "generic"}, target="cpu")
    model = train(callback, tmp_path)
    assert type(given["teacher"]) is Model
    assert torch.equal(given["teacher"].net[0].weight, model.net[0].weight)
    assert given["data"]["test"] is test
    assert (given["task"], given["target"]) == ({"kind": "generic"}, "cpu")


def test_what_is_missing_is_refused_before_the_training(tmp_path):
    for data, evaluates, split in (({}, True, "test"), ({"test": samples(12, 16)}, False, "val")):
        callback, steps = CompressAtEnd(data=data, target="cpu"), []
        callback.on_step_end = lambda *_, steps=steps, **__: steps.append(1)
        with pytest.raises(KDError, match=f"'{split}'") as error:
            train(callback, tmp_path, evaluates)
        assert (error.value.code, steps) == ("data-split", [])
