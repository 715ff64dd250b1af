"""The order of the files: it names files that there are, and moves no test within its file."""

from types import SimpleNamespace

from longest_first import LONGEST, TESTS, pytest_collection_modifyitems


def test_every_file_is_there_once():
    assert len(set(LONGEST)) == len(LONGEST)
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []


def test_the_longest_begin_and_tests_of_a_file_stay_together():
    files = ("bench/a.py", LONGEST[3], "kernels/b.py", LONGEST[0])
    items = [SimpleNamespace(path=TESTS / file, number=n) for file in files for n in (1, 2)]
    pytest_collection_modifyitems(items)
    found = [(str(item.path.relative_to(TESTS)), item.number) for item in items]
    order = (LONGEST[0], LONGEST[3], "kernels/b.py", "bench/a.py")
    assert found == [(file, n) for file in order for n in (1, 2)]


def test_make_test_keeps_the_order():
    text = (TESTS.parent / "Makefile").read_text()
    lines = [line for line in text.splitlines() if "--dist loadfile" in line]
    assert lines
    assert all("--no-loadscope-reorder" in line for line in lines)
