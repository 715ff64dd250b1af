"""The C++ sample: it compiles for each TensorRT, and prepares images as the pipeline does.

The headers of `cpp_stubs/` play TensorRT and CUDA with an engine that gives its input back, so that
the whole program runs on a CPU. TENSORRT_INCLUDE names real headers, where there are any.
"""

import os
import shutil
import subprocess

import numpy as np
import pytest
from cpp_sample import STUBS, compile_, includes, infer, save_engine
from PIL import Image

from kdcompile.bundle.samples import Tensor, float32, write_cpp
from kdcompile.core.escape import c_string
from kdcompile.data.preprocess import Preprocess
from kdcompile.tasks.task import find_task

IO = (
    [Tensor("image", "FLOAT", (1, -1, -1, -1))],
    [Tensor("density", "FLOAT", (1, 1, -1, -1))],
)
RGB = Preprocess(3, (0.4, 0.5, 0.09), (0.2, 0.3, 0.155), (20, 24), (64, 80))
GREY = Preprocess(1, (0.4,), (1 / 3,), (20, 24), (64, 80))
MIRRORED = Preprocess(3, (0.4, 0.5, 0.09), (0.2, 0.3, 0.155), (45, 60), (64, 80), "mirror")
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sample of a preprocessing and a task, built once each."""
    made = {}

    def build(preprocess, task="counting", classes=None):
        key = (preprocess, task)
        if key not in made:
            folder = tmp_path_factory.mktemp("sample")
            write_cpp(folder, preprocess.to_json(), IO, task, classes)
            compile_(folder, "-o", str(folder / "infer"))
            save_engine(folder, b"echo engine")
            made[key] = folder
        return made[key]

    return build


def echoed(values):
    """What the played engine gives, whose sum depends on the order of the values."""
    flat = values.ravel().astype(np.float64)
    return flat * (1 + np.arange(flat.size) % 97)


def printed(done):
    assert done.returncode == 0, done.stderr
    return [float(line.split("\t")[1]) for line in done.stdout.splitlines()]


@needs_gxx
@pytest.mark.parametrize("version", [(8, 5), (11, 0)])
def test_compiles_for_each_generation(tmp_path, version):
    write_cpp(tmp_path, RGB.to_json(), IO, "counting", None)
    major, minor = version
    compile_(
        tmp_path, "-fsyntax-only", f"-DNV_TENSORRT_MAJOR={major}", f"-DNV_TENSORRT_MINOR={minor}"
    )


@needs_gxx
def test_too_old_a_tensorrt_is_told_at_compile_time(tmp_path):
    write_cpp(tmp_path, RGB.to_json(), IO, "counting", None)
    with pytest.raises(AssertionError, match=r"TensorRT 8\.5 or newer"):
        compile_(tmp_path, "-fsyntax-only", "-DNV_TENSORRT_MAJOR=8", "-DNV_TENSORRT_MINOR=4")


@needs_gxx
@pytest.mark.skipif("TENSORRT_INCLUDE" not in os.environ, reason="TENSORRT_INCLUDE is not set")
def test_compiles_against_real_headers(tmp_path):
    write_cpp(tmp_path, RGB.to_json(), IO, "counting", None)
    cuda = os.environ.get("CUDA_INCLUDE", "/usr/local/cuda/include")
    flags = includes(os.environ["TENSORRT_INCLUDE"], cuda)
    compile_(tmp_path, "-fsyntax-only", flags=flags)


@needs_gxx
@pytest.mark.parametrize("preprocess", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("size", [(31, 42), (7, 9), (64, 80)])
def test_photo_is_prepared_as_by_the_pipeline(built, tmp_path, preprocess, size):
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "photo.ppm")
    image.convert("L").save(tmp_path / "photo.pgm")
    mode = "L" if preprocess.channels == 1 else "RGB"
    wanted = [
        echoed(preprocess(np.asarray(i.convert(mode)).reshape(*size, preprocess.channels))).sum()
        for i in (image, image.convert("L"))
    ]
    done = infer(built(preprocess), tmp_path / "photo.ppm", tmp_path / "photo.pgm")
    assert printed(done) == pytest.approx(wanted, rel=1e-6)


@needs_gxx
@pytest.mark.parametrize("size", [(31, 42), (7, 9), (64, 20), (45, 61)])
def test_what_is_counted_is_within_the_photo(built, tmp_path, size):
    """Of cells of 8 x 8, some of which lie across the border, by the pipeline's definition."""
    pixels = np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.ppm")
    prepared, frame = MIRRORED(pixels), MIRRORED.frame(*size)
    mean, std = np.float32(MIRRORED.mean), np.float32(MIRRORED.std)
    photo = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    np.save(tmp_path / "photo.npy", photo[None])  # as infer.py --save-input writes it
    folder = built(MIRRORED)
    save_engine(folder, b"pool engine", name="pool.engine")
    done = infer(folder, tmp_path / "photo.ppm", tmp_path / "photo.npy", engine="pool.engine")
    high, wide = (side // 8 * 8 + 8 for side in prepared.shape[2:])
    padded = np.zeros((3, high, wide))
    padded[:, : prepared.shape[2], : prepared.shape[3]] = prepared[0]
    cells = padded.reshape(3, high // 8, 8, wide // 8, 8).sum((0, 2, 4))
    cells = cells[: -(-prepared.shape[2] // 8), : -(-prepared.shape[3] // 8)]
    counted = find_task("counting").within(cells[None, None], frame).sum()
    assert printed(done) == pytest.approx([counted] * 2, rel=1e-4, abs=1e-3)


@needs_gxx
@pytest.mark.parametrize("host", [RGB, GREY, MIRRORED], ids=["rgb", "grey", "mirrored"])
@pytest.mark.parametrize("size", [(31, 42), (7, 9), (64, 80)])
def test_pixels_go_to_a_network_that_normalises(built, tmp_path, host, size):
    prepare = host.deployed("in-graph")
    folder = built(prepare)
    save_engine(folder, b"byte engine", name="byte.engine")
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "photo.ppm")
    kept = np.asarray(image.convert("L" if host.channels == 1 else "RGB"))
    kept = kept.reshape(*size, host.channels)
    np.save(tmp_path / "photo.npy", kept[None])  # as infer.py --save-input writes it
    given = prepare(kept)[0].astype(np.float64)
    cells = (given * (1 + np.arange(host.channels))).sum(2)
    cells *= 1 + np.arange(cells.size).reshape(cells.shape) % 97
    wanted = find_task("counting").within(cells[None, None], host.frame(*size)).sum()
    photos = tmp_path / "photo.ppm", tmp_path / "photo.npy"
    done = infer(folder, *photos, engine="byte.engine")
    assert printed(done) == pytest.approx([wanted] * 2, rel=1e-6)
    np.save(tmp_path / "float.npy", np.zeros((1, host.channels, 24, 30), np.float32))
    assert "must be uint8" in infer(folder, tmp_path / "float.npy", engine="byte.engine").stderr


def _photos(folder, sizes):
    """Photos of these sizes, and what the played engine gives of each."""
    wanted, paths = [], []
    for place, size in enumerate(sizes):
        pixels = np.random.default_rng(place).integers(0, 256, (*size, 3), dtype=np.uint8)
        paths.append(folder / f"{place}.ppm")
        Image.fromarray(pixels).save(paths[-1])
        wanted.append(echoed(RGB(pixels)).sum())
    return paths, wanted


COUNTED = ["enqueue", "record enqueue", "launch"]
PLAIN, RECORDED = ["copy", "enqueue", "copy"], ["record copy", "record enqueue", "record copy"]


@needs_gxx
def test_two_photos_run_at_once_and_what_recurs_is_a_graph(built, tmp_path):
    """Each of the two has its memory and its graph: plain, recorded and launched, launched."""
    paths, wanted = _photos(tmp_path, [(31, 42)] * 7)
    done = infer(built(RGB), *paths, KD_CALLS=str(tmp_path / "calls"))
    assert printed(done) == pytest.approx(wanted, rel=1e-6)
    calls = (tmp_path / "calls").read_text().split("\n")[:-1]
    memory = ["pin", "malloc"] * 2
    assert calls == [
        *memory, *PLAIN, *memory, *PLAIN,
        "wait", *RECORDED, "launch", "wait", *RECORDED, "launch",
        *["wait", "launch"] * 3, *["wait"] * 2,
    ]  # fmt: skip


@needs_gxx
def test_another_size_is_run_plainly_before_it_is_recorded(built, tmp_path):
    """The played engine records nothing that did not run at its size."""
    sizes = [(31, 42)] * 4 + [(20, 30)] * 4 + [(31, 42)] * 2
    paths, wanted = _photos(tmp_path, sizes)
    done = infer(built(RGB), *paths, KD_CALLS=str(tmp_path / "calls"))
    assert printed(done) == pytest.approx(wanted, rel=1e-6)
    calls = (tmp_path / "calls").read_text().split("\n")
    assert (calls.count("enqueue"), calls.count("record enqueue"), calls.count("launch")) == (
        6,
        4,
        4,
    )
    assert calls.count("malloc") == 4, "a smaller photo needs no more memory"


@needs_gxx
def test_an_engine_that_cannot_be_recorded_runs_all_the_same(built, tmp_path):
    paths, wanted = _photos(tmp_path, [(31, 42)] * 6)
    done = infer(built(RGB), *paths, KD_CALLS=str(tmp_path / "calls"), KD_NO_GRAPHS="1")
    assert printed(done) == pytest.approx(wanted, rel=1e-6)
    calls = (tmp_path / "calls").read_text().split("\n")
    assert (calls.count("enqueue"), calls.count("record enqueue"), calls.count("launch")) == (
        6,
        2,
        0,
    )


@needs_gxx
def test_photos_before_one_that_cannot_be_read_are_printed(built, tmp_path):
    paths, wanted = _photos(tmp_path, [(31, 42)] * 3)
    done = infer(built(RGB), *paths, tmp_path / "absent.ppm", paths[0])
    assert done.returncode == 1
    assert "absent.ppm" in done.stderr
    found = [float(line.split("\t")[1]) for line in done.stdout.splitlines()]
    assert found == pytest.approx(wanted, rel=1e-6)


@needs_gxx
def test_prepared_input_is_taken_as_it_is(built, tmp_path):
    values = np.random.default_rng(4).normal(size=(1, 3, 24, 30)).astype(np.float32)
    np.save(tmp_path / "photo.npy", values)
    done = infer(built(RGB), tmp_path / "photo.npy")
    assert printed(done) == pytest.approx([echoed(values).sum()], rel=1e-5)


@needs_gxx
def test_class_and_probability(built, tmp_path):
    shape = Preprocess(1, (0.0,), (1.0,), (1, 1), (1, 3))
    folder = built(shape, "classification", ["a cat", 'a "dog"', "größe"])
    logits = np.array([0.5, 0.8, 0.7], np.float32)
    np.save(tmp_path / "photo.npy", logits.reshape(1, 1, 1, 3))
    done = infer(folder, tmp_path / "photo.npy")
    assert done.returncode == 0, done.stderr
    _, name, probability = done.stdout.strip().split("\t")
    assert name == "größe"
    powers = np.exp(echoed(logits))
    assert float(probability) == pytest.approx(powers[2] / powers.sum(), rel=1e-6)


@needs_gxx
def test_refusals_are_one_line(built, tmp_path):
    folder = built(RGB)
    np.save(tmp_path / "double.npy", np.zeros((1, 3, 24, 30)))
    np.save(tmp_path / "large.npy", np.zeros((1, 3, 240, 300), np.float32))
    Image.fromarray(np.zeros((100, 80, 3), np.uint8)).save(tmp_path / "large.ppm")
    (tmp_path / "short.ppm").write_bytes(b"P6 30 30 255\nabc")
    (tmp_path / "text.ppm").write_bytes(b"P6 # no numbers at all\n")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0 a photo of another kind")
    for name, words in {
        "double.npy": "float32", "large.npy": "in range", "large.ppm": "infer.py --save-input",
        "short.ppm": "cut short", "text.ppm": "number is missing", "photo.jpg": "neither",
        "absent.ppm": "cannot be opened",
    }.items():  # fmt: skip
        done = infer(folder, tmp_path / name)
        assert done.returncode == 1, name
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert words in errors[0]


@needs_gxx
def test_engine_that_is_not_what_was_built_is_refused(built, tmp_path):
    folder = tmp_path
    shutil.copy(built(RGB) / "infer", folder)
    np.save(folder / "x.npy", np.zeros((1, 3, 24, 30), np.float32))
    save_engine(folder, b"echo engine", sha256="0" * 64)
    assert "not the file that was built" in infer(folder, folder / "x.npy").stderr
    save_engine(folder, b"a plan of another version")
    done = infer(folder, folder / "x.npy")
    assert done.returncode == 1
    assert "build it here" in done.stderr
    (folder / "model.engine.json").unlink()
    assert "model.engine.json: cannot be opened" in infer(folder, folder / "x.npy").stderr


@needs_gxx
@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here")
def test_cmake_builds_it(tmp_path):
    write_cpp(tmp_path, RGB.to_json(), IO, "counting", None)
    given = {
        "TENSORRT_INCLUDE": STUBS / "tensorrt",
        "CUDA_INCLUDE": STUBS / "cuda",
        "TENSORRT_LIBRARY": "m",
        "CUDART_LIBRARY": "m",
        "CMAKE_BUILD_TYPE": "Debug",
    }
    options = [f"-D{name}={value}" for name, value in given.items()]
    for command in (
        ["cmake", "-S", tmp_path / "cpp", "-B", tmp_path / "build", *options],
        ["cmake", "--build", tmp_path / "build"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "build/infer").is_file()


def test_literals_of_cpp():
    assert c_string('a "b"\\\n') == r'"a \042b\042\134\012"'
    assert float32(0.09) == "0.0900000036f"
    assert float32(1.0) == "1.0f"
    assert float32(1e-20) == "9.99999968e-21f"
