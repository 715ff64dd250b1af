"""Real disks that are full or read-only, and a real limit of a file's size.

Where this process may not mount (the patched versions in tests/test_artifact.py and
tests/bundle/test_swap.py run everywhere) the tests say so and are skipped.
"""

import shlex
import subprocess
import sys

import pytest
from killed_builds import same, tiny_spec
from soak_results import told

pytestmark = pytest.mark.soak
UNDECIDED = 5  # twelve photos cannot decide the accuracy
KD = f"{shlex.quote(sys.executable)} -P -m kdcompile"
SIZES_KB = (48, 160, 512, 1024)
FILE_BLOCKS = (2, 8, 40, 120)  # of 512 bytes


def _shell(script, folder):
    """Lines of a script in a mount namespace of its own; gives what it printed."""
    words = ["unshare", "-m", "sh", "-c", script]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def mounting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mount")
    try:
        found = _shell(f"mount -t tmpfs tmpfs {shlex.quote(str(folder))}", folder)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if found.returncode:
        pytest.skip(f"mounting is not allowed here: {found.stderr.strip()}")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    builds = tiny_spec(tmp_path_factory.mktemp("whole"))
    assert builds.run(("build", "tiny")) == UNDECIDED, builds.said()
    return builds.results()


def _refused(text, code):
    assert "Traceback" not in text
    assert text.count("error[") == 1, text
    assert f"error[{code}]" in text
    assert "  where: " in text
    assert "  fix:   " in text


def test_a_full_disk_under_the_store(tmp_path, mounting, expected):
    """At each size: what is said, what stays, and that the same command then goes on."""
    codes = []
    for size in SIZES_KB:
        folder = tmp_path / str(size)
        folder.mkdir()
        builds = tiny_spec(folder)
        found = _shell(
            f"""cp -r tiny kept; mount -t tmpfs -o size={size}k tmpfs tiny; cp kept/* tiny/
            {KD} build tiny > first 2>&1; echo $? > code
            find tiny -name '.*.making' -o -name '*.tmp' > left
            ls tiny/.kdcompile/teacher > before
            mount -o remount,size=64m tiny
            {KD} build tiny > second 2>&1; echo $? >> code
            ls tiny/.kdcompile/teacher > after
            rm -r kept; mkdir out; cp -r tiny/.kdcompile out/""",
            folder,
        )
        assert found.returncode == 0, found.stderr
        first, second = (folder / "code").read_text().split()
        text = (folder / "first").read_text()
        codes.append(int(first))
        if first == "1":
            _refused(text, "disk-full")
        assert (folder / "left").read_text() == ""
        kept = set((folder / "before").read_text().split())
        assert kept <= set((folder / "after").read_text().split())
        assert int(second) == UNDECIDED, (folder / "second").read_text()
        assert "Traceback" not in (folder / "second").read_text()
        (folder / "out" / ".kdcompile").rename(builds.store)
        same(builds.results(), expected)
    assert 1 in codes, "a disk of some size was too small"
    told("disk-full-store", f"disks of {SIZES_KB} kB: exit codes {codes}, then the same results")


def test_a_limit_of_a_files_size(tmp_path, expected):
    codes = []
    for blocks in FILE_BLOCKS:
        folder = tmp_path / str(blocks)
        folder.mkdir()
        builds = tiny_spec(folder)
        limited = ["sh", "-c", f"ulimit -f {blocks}; exec {KD} build tiny"]
        done = subprocess.run(limited, cwd=folder, capture_output=True, text=True, check=False)
        codes.append(done.returncode)
        if done.returncode == 1:
            _refused(done.stderr, "disk-full")
        assert [n for n in builds.leftovers() if "/work/" not in n] == []
        assert builds.run(("build", "tiny")) == UNDECIDED, builds.said()
        same(builds.results(), expected)
    assert 1 in codes
    told("file-size", f"files of at most {FILE_BLOCKS} blocks: exit codes {codes}, then the same")


def test_a_full_disk_under_the_bundle(tmp_path, mounting):
    tiny_spec(tmp_path)
    _shell(
        f"""mkdir dist; mount -t tmpfs -o size=200k tmpfs dist
        {KD} build tiny > first 2>&1; echo $? > code; ls -A dist > left
        mount -o remount,size=64m dist
        {KD} build tiny > second 2>&1; echo $? >> code; ls -A dist > there""",
        tmp_path,
    )
    assert (tmp_path / "code").read_text().split() == ["1", str(UNDECIDED)]
    _refused((tmp_path / "first").read_text(), "disk-full")
    assert (tmp_path / "left").read_text() == ""
    assert (tmp_path / "there").read_text().split() == ["tiny-jetson"]
    assert "distill" not in (tmp_path / "second").read_text().splitlines()
    told("disk-full-bundle", "disk-full, nothing half-written; then installed at once")


def test_read_only_folders(tmp_path, mounting):
    """A fresh spec, a finished one, and the folder of the bundle."""
    tiny_spec(tmp_path)
    _shell(
        f"""mount --bind tiny tiny; mount -o remount,ro,bind tiny
        {KD} plan tiny > plan 2>&1; echo $? > code
        {KD} build tiny > fresh 2>&1; echo $? >> code
        mount -o remount,rw,bind tiny
        mkdir dist; mount --bind dist dist; mount -o remount,ro,bind dist
        {KD} build tiny > no_dist 2>&1; echo $? >> code
        mount -o remount,ro,bind tiny
        {KD} build tiny -o elsewhere > elsewhere.txt 2>&1; echo $? >> code""",
        tmp_path,
    )
    codes = (tmp_path / "code").read_text().split()
    assert codes == ["1", "1", "1", str(UNDECIDED)]
    _refused((tmp_path / "plan").read_text(), "store-readonly")  # it estimates the student
    _refused((tmp_path / "fresh").read_text(), "store-readonly")
    _refused((tmp_path / "no_dist").read_text(), "output-unwritable")
    assert "distill" not in (tmp_path / "elsewhere.txt").read_text().splitlines()
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()
    told("read-only", "store-readonly and output-unwritable; a finished build is installed with -o")
