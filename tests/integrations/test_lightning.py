"""`CompressAtEnd` of Lightning: a build from the module and the loaders of `fit`."""

import pytest
import torch
from bright_images import SHORT, bright, network
from torch.utils.data import DataLoader

from kdcompile.core.errors import KDError

pytest.importorskip("lightning", reason="pip install 'kdcompile[lightning]'")
pytestmark = pytest.mark.filterwarnings("default")  # the library has many

from lightning.pytorch import LightningDataModule, LightningModule, Trainer  # noqa: E402

from kdcompile.integrations.lightning import CompressAtEnd, network_of  # noqa: E402


class Module(LightningModule):
    """A network, and a loss of its own."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, number):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, number):
        self.training_step(batch, number)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)


class Data(LightningDataModule):
    """Loaders of the three splits."""

    def train_dataloader(self):
        return DataLoader(bright(0, 8), 4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(bright(8, 12), 4)

    def setup(self, stage):
        if stage == "test":
            self.test = bright(12, 16)

    def test_dataloader(self):
        return DataLoader(self.test, 4)


def fit(callback, tmp_path, *data, **named):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        max_steps=2, accelerator="cpu", callbacks=[callback], enable_checkpointing=False,
        default_root_dir=tmp_path, **quiet,
    )  # fmt: skip
    module = Module()
    trainer.fit(module, *data, **named)
    return module


@pytest.mark.slow
def test_fit_ends_with_a_bundle_of_what_was_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = CompressAtEnd(task="classification", target="cpu", out="bundle", **SHORT)
    assert callback.built is None
    module = fit(callback, tmp_path, datamodule=Data())
    assert callback.built.bundle.joinpath("manifest.json").is_file()
    assert (callback.built.name, callback.built.details["test_photos"]) == ("Sequential", 4)
    (file,) = tmp_path.rglob("weights-*.safetensors")
    from safetensors.torch import load_file

    assert torch.equal(load_file(file)["0.weight"], module.net[0].weight)


def test_a_split_that_is_missing_is_refused_before_the_training(tmp_path):
    steps = []
    callback = CompressAtEnd(task="classification", target="cpu")
    callback.on_train_batch_end = lambda *_: steps.append(1)
    loaders = DataLoader(bright(0, 8), 4), DataLoader(bright(8, 12), 4)
    with pytest.raises(KDError, match="'test'") as error:
        fit(callback, tmp_path, *loaders)
    assert (error.value.code, steps) == ("data-split", [])
    with pytest.raises(KDError, match="'val'"):
        fit(CompressAtEnd(data={"test": bright(12, 16)}), tmp_path, loaders[0])


def test_the_network_of_a_module():
    module = Module()
    assert network_of(module, None) is module.net
    assert network_of(module, "net.0") is module.net[0]
    module.other = network()
    for name in (None, "nte"):
        with pytest.raises(KDError, match="net, other") as error:
            network_of(module, name)
        assert error.value.code == "network-unnamed"
    assert network_of(module, "other") is module.other
