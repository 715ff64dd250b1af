"""`CompressAtEnd`, a callback of Hugging Face's Trainer that builds from what it has trained."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdcompile.core.optional import need
from kdcompile.integrations.at_end import AtEnd, Loss

if TYPE_CHECKING:
    from kdcompile.api import Built

Callback: Any = need("transformers", "transformers", "CompressAtEnd").TrainerCallback
ANY = "generic"  # the task that takes samples with names as they are


class CompressAtEnd(Callback):  # type: ignore[misc]  # transformers is optional
    """Compress the trained model at the end of `train`; `built` is the result.

        CompressAtEnd(data={"test": test}, task="classification", target="jetson")

    The data are those of `train_dataset` and `eval_dataset`, as `kdcompile.build` takes data sets:
    images before normalisation, without random transforms. `data` replaces any of them, and has
    `test`, which a Trainer has not. A sample is a mapping with an image and a label, or a pair.
    """

    def __init__(
        self,
        *,
        data: Mapping[str, Any],
        image: str = "pixel_values",
        label: str = "labels",
        output: str = "logits",
        loss: Loss | None = None,
        **options: Any,
    ) -> None:
        """Check the options before the training.

        Args:
            data: `test`, other splits, and other fields such as `mean`, as of `kdcompile.build`.
            image: name of the model's input, and of it in a sample.
            label: name of a sample's label.
            output: name of the model's output that the task describes.
            loss: the function that the detector was trained with, `loss(output, boxes)`.
            **options: other arguments of `kdcompile.build`: target, task, gates, out, track, ...

        Raises:
            KDError: those of `AtEnd`.
        """
        super().__init__()
        self._at_end = AtEnd(data, loss, options)
        if self._at_end.kind != ANY:
            self._at_end.form = partial(Pairs, image=image, label=label)
        self._image, self._label, self._output = image, label, output

    @property
    def built(self) -> "Built | None":
        """The result of the build, once the training is over."""
        return self._at_end.built

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Refuse early what would fail after the training.

        Raises:
            KDError: those of `AtEnd.refuse_early`.
        """
        evaluates = str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
        found = {"train": given.get("train_dataloader"), "val": evaluates or None}
        self._at_end.refuse_early(args.world_size, found)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Build from the model as it is: with `load_best_model_at_end` it is the best one.

        Raises:
            KDError: those of `kdcompile.build`.
        """
        from accelerate.utils import extract_model_from_parallel  # the Trainer needs it as well

        loaders = {"train": given.get("train_dataloader"), "val": given.get("eval_dataloader")}
        sets = {split: one.dataset for split, one in loaders.items() if one is not None}
        model = extract_model_from_parallel(copy.deepcopy(given["model"]), keep_fp32_wrapper=False)
        if self._at_end.kind != ANY:
            model = Output(model, self._image, self._output)
        self._at_end.compress(model, sets)


class Pairs:
    """A data set of mappings as one of (image, label)."""

    def __init__(self, samples: Any, image: str, label: str) -> None:
        self._samples, self._names = samples, (image, label)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Any:
        sample = self._samples[number]
        if not isinstance(sample, Mapping):
            return sample
        return tuple(sample[name] for name in self._names)


class Output(nn.Module):
    """A model of named inputs and outputs as a network of one of each."""

    def __init__(self, model: nn.Module, image: str, output: str) -> None:
        super().__init__()
        self.model, self._image, self._output = model, image, output

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The output of that name for a batch of images."""
        found: torch.Tensor = self.model(**{self._image: image})[self._output]
        return found
