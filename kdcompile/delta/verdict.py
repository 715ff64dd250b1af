"""Is what a delta makes as accurate as it should be? The rule is that of the accuracy gate."""

from kdcompile.delta.result import Judged
from kdcompile.delta.student import Floats, Student
from kdcompile.stats.noninferiority import observed_text
from kdcompile.tasks.metric import Metric

LOSS = 0.005  # of the metric


def is_proven(judged: Judged, metric: Metric) -> bool:
    """Whether photos that a delta was chosen by prove its loss: an improvement does not count.

    Rounding makes no student better. What it seems to gain on the photos that it was chosen by is
    luck, which other photos take back; the width of the bound stays.
    """
    if judged.verdict != "passed" or judged.high is None:
        return False
    gain = max(0.0, -metric.worse_by(judged.value, judged.reference))
    return bool(judged.high + gain <= metric.allowance(judged.reference, judged.loss))


def judge(student: Student, errors: Floats, reference: Floats, loss: float) -> Judged:
    """The verdict of some photos by their errors, against those of a reference.

    Raises:
        KDError: `accuracy-images` or `accuracy-nonfinite`.
    """
    found = student.compare(errors, reference, loss)
    shown = observed_text(student.metric, found.reference, found.value)
    return Judged(
        found.verdict,
        f"{shown}: {found.reason}",
        student.metric.name,
        found.value,
        found.reference,
        found.high,
        loss,
        len(errors),
    )
