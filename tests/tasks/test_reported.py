"""The task of a report whose file is not here: a board's measures are merged without it."""

import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.examples.keypoints.keypoints import KeyPoints
from kdcompile.tasks.reported import reported_task
from kdcompile.tasks.task import find_task

FACTS = KeyPoints().facts(["nose", "tail"])


def test_it_has_the_names_and_metrics_of_the_report_and_no_score():
    task = reported_task(FACTS)
    assert (task.kind, task.like, task.output, task.unit) == ("keypoints", "generic", "maps", "1")
    assert not task.takes_rows
    metric = task.find_metric("pck")
    assert (metric.points, metric.records) == (True, True)
    assert task.unit_of(metric) == "1"
    errors = task.errors(np.array([[0.1, 1, 1], [0.2, 0, 1]]), [0, 0])
    assert np.isnan(metric(errors))
    with pytest.raises(KDError, match="no metric 'mae'"):
        task.find_metric("mae")


def test_a_task_that_is_here_is_itself():
    facts = find_task("segmentation").facts(["a", "b"])
    assert reported_task(facts) is find_task("segmentation")


def test_one_that_judges_predictions_must_be_here():
    facts = {name: value for name, value in FACTS.items() if name != "of_records"}
    with pytest.raises(KDError, match="no task 'keypoints'") as caught:
        reported_task(facts)
    assert caught.value.code == "task-unknown"
