"""Task `heads`: counting, judged by the largest error of an image."""

import numpy as np

from kdcompile.tasks.builtin import Counting
from kdcompile.tasks.metric import Metric


def _largest(errors, axis=-1):
    return np.max(np.abs(errors), axis=axis)


class Heads(Counting):
    """Its outputs are those of counting; its words and its metric are its own."""

    kind = "heads"
    metrics = (Metric("largest", _largest),)
    map_metrics = ()

    def describe(self, output, classes):
        """`heads`, a whole number."""
        return {"heads": round(float(self.predictions(output)[0]))}
