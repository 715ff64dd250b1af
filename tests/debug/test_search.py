"""The search itself: on lines, on branches, and where a difference heals."""

import math
import random

import pytest

from kdcompile.debug.bisect import Probe, ancestors, bits_of, most_even, questions, search

LIMIT = 0.5


def probes(*parents):
    return [Probe(f"t{i}", f"t{i}", tuple(above)) for i, above in enumerate(parents)]


def line(length):
    return probes((), *((i,) for i in range(length - 1)))


def looked(errors):
    """A measure of known errors, and the list of what it was asked."""
    asked = []

    def measure(places):
        asked.append(list(places))
        return {place: errors[place] for place in places}

    return measure, asked


@pytest.mark.parametrize("length", [1, 2, 7, 64, 500])
def test_a_line_takes_about_log2_runs(length):
    for first in {0, length // 3, length - 1}:
        errors = [0.0] * first + [1.0] * (length - first)
        measure, asked = looked(errors)
        found = search(line(length), length - 1, LIMIT, measure)
        assert found is not None
        assert (found.place, found.error, found.before) == (first, 1.0, 0.0)
        assert found.runs == len(asked) <= math.ceil(math.log2(length)) + 3


def test_an_output_that_agrees_ends_the_search_after_one_run():
    measure, asked = looked([1.0, 0.1])
    assert search(line(2), 1, LIMIT, measure) is None
    assert asked == [[1]]


def test_the_faulty_branch_is_followed_and_not_the_sound_one():
    #      0 -> 1 -> 2 -> 5
    #      0 -> 3 -> 4 -> 5
    graph = probes((), (0,), (1,), (0,), (3,), (2, 4))
    for bad in ({3, 4, 5}, {4, 5}, {1, 2, 5}, {2, 5}):
        measure, _ = looked([float(i in bad) for i in range(6)])
        assert search(graph, 5, LIMIT, measure).place == min(bad)


def test_a_difference_that_heals_and_comes_back_is_found_where_its_inputs_agree():
    errors = [0.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 1.0]  # two faults: at 1, and anew at 7
    measure, _ = looked(errors)
    assert search(line(8), 7, LIMIT, measure).place == 7


def test_a_difference_that_passes_a_sound_tensor_by_is_followed_to_its_source():
    # 1 differs; 2 agrees (a ReLU hides it); 3 reads both 1 and 2
    graph = probes((), (0,), (1,), (1, 2))
    measure, asked = looked([0.0, 1.0, 0.0, 1.0])
    found = search(graph, 3, LIMIT, measure)
    assert found.place == 1
    assert [1, 2] in asked or [1] in asked


def test_what_is_found_always_differs_while_all_that_it_reads_agrees():
    rng = random.Random(0)
    for _ in range(300):
        size = rng.randint(1, 40)
        graph = probes(
            *(
                sorted(rng.sample(range(i), min(i, rng.randint(1, 3)))) if i else ()
                for i in range(size)
            )
        )
        errors = [float(rng.random() < 0.4) for _ in range(size)]  # nothing monotone about it
        errors[-1] = 1.0
        measure, asked = looked(errors)
        found = search(graph, size - 1, LIMIT, measure)
        assert errors[found.place] > LIMIT
        assert all(errors[parent] <= LIMIT for parent in graph[found.place].parents)
        assert found.place == size - 1 or ancestors(graph)[size - 1] >> found.place & 1
        flat = [place for places in asked for place in places]
        assert len(flat) == len(set(flat)), "nothing is run twice"


def test_the_most_even_suspect_halves_a_line():
    above = ancestors(line(9))
    suspects = (1 << 8) - 1  # 0 to 7
    assert most_even(suspects, above) in (3, 4)
    assert bits_of(0b10110) == [1, 2, 4]


def test_seven_probes_answer_three_levels():
    above = ancestors(line(100))
    asked = questions((1 << 99) - 1, above, 3)
    assert len(set(asked)) == 7
    assert asked[0] == most_even((1 << 99) - 1, above)
    assert questions(0b1, above, 3) == [0]


@pytest.mark.parametrize("length", [2, 7, 64, 500])
def test_a_dear_run_answers_three_questions(length):
    for first in {0, length // 3, length - 1}:
        errors = [0.0] * first + [1.0] * (length - first)
        measure, asked = looked(errors)
        found = search(line(length), length - 1, LIMIT, measure, levels=3)
        assert (found.place, found.before) == (first, 0.0)
        assert found.runs == len(asked) <= math.ceil(math.log2(length) / 3) + 3
        flat = [place for places in asked for place in places]
        assert len(flat) == len(set(flat)), "nothing is run twice"


def test_where_looking_at_several_makes_the_difference_go_each_is_looked_at_alone():
    errors = [0.0] * 40 + [1.0] * 24
    one, asked = looked(errors)
    found = search(line(64), 63, LIMIT, lambda places: one(places) if len(places) == 1 else {}, 3)
    assert (found.place, found.before) == (40, 0.0)
    assert all(len(places) == 1 for places in asked)
    assert found.runs == len(asked) + 1  # the first of several was in vain, and no more were tried


def test_the_same_is_found_whatever_is_asked_at_once():
    rng = random.Random(1)
    for _ in range(100):
        size = rng.randint(2, 40)
        graph = probes(
            *(
                sorted(rng.sample(range(i), min(i, rng.randint(1, 3)))) if i else ()
                for i in range(size)
            )
        )
        errors = [float(rng.random() < 0.4) for _ in range(size)]
        errors[-1] = 1.0
        found = search(graph, size - 1, LIMIT, looked(errors)[0], levels=3)
        assert errors[found.place] > LIMIT
        assert all(errors[parent] <= LIMIT for parent in graph[found.place].parents)
