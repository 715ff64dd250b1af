"""The C++ sample of a network of named tensors, with the played engine `rows` of `cpp_stubs/`."""

import shutil

import numpy as np
import pytest
from cpp_sample import compile_, infer, save_engine
from PIL import Image

from kdcompile.bundle.samples import Tensor, write_cpp
from kdcompile.core.ports import Port, Ports
from kdcompile.data.preprocess import Preprocess, RowPreprocess

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
PORTS = Ports((Port("signal", (1, 2, 24), "float32"), Port("ids", (1, 5), "int64")))
IO = (
    [Tensor("signal", "FLOAT", (1, 2, 24)), Tensor("ids", "INT64", (1, 5))],
    [Tensor("scores", "FLOAT", (1, 6)), Tensor("trace", "FLOAT", (1, 3, 12))],
)
OLD = ("-DNV_TENSORRT_MAJOR=8", "-DNV_TENSORRT_MINOR=6")


def written(folder, prepare=None, io=IO):
    write_cpp(folder, (prepare or RowPreprocess.of(PORTS)).to_json(), io, "generic", None)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """`built(options)`: the sample, compiled once for each TensorRT."""
    made = {}

    def build(options=()):
        if options not in made:
            folder = written(tmp_path_factory.mktemp("sample"))
            compile_(folder, *options, "-o", str(folder / "infer"))
            save_engine(folder, b"rows engine")
            made[options] = folder
        return made[options]

    return build


def sample(seed=0):
    random = np.random.default_rng(seed)
    signal = random.normal(size=(1, 2, 24)).astype(np.float32)
    return {"signal": signal, "ids": random.integers(-20, 20, (1, 5)), "target": np.zeros(3)}


def wanted(given):
    """What the played engine gives."""
    total = (given["ids"] * np.arange(1, 6)).sum()
    trace = given["signal"].ravel()[:36] * (1 + np.arange(36, dtype=np.float32))
    return {
        "scores": np.arange(1, 7, dtype=np.float32)[None] * total,
        "trace": trace.reshape(1, 3, 12),
    }


@pytest.mark.parametrize("options", [(), OLD], ids=["tensorrt 10", "tensorrt 8"])
def test_archives_of_samples_give_archives_of_outputs(built, tmp_path, options):
    givens = {"a": sample(1), "b.2": sample(2)}
    for name, given in givens.items():
        np.savez(tmp_path / f"{name}.npz", **given)
    one = {name: array.squeeze(0) for name, array in sample(3).items() if name != "target"}
    np.savez(tmp_path / "c.npz", **one)  # without the axis of 1
    paths = [tmp_path / f"{name}.npz" for name in (*givens, "c")]
    done = infer(built(options), *paths, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "scores [1, 6], trace [1, 3, 12]\ta_outputs.npz" in done.stdout
    for name, given in {**givens, "c": sample(3)}.items():
        with np.load(tmp_path / f"{name}_outputs.npz") as found:
            assert found.files == ["scores", "trace"]
            for output, value in wanted(given).items():
                assert found[output].dtype == np.float32
                np.testing.assert_array_equal(found[output], value)


def test_raw_values_give_raw_values(built, tmp_path):
    given = sample()
    for name in ("signal", "ids"):
        (tmp_path / f"{name}.bin").write_bytes(given[name].tobytes())
    done = infer(built(), "ids=ids.bin", "signal=signal.bin", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "scores [1, 6]\toutput_0.bin\ntrace [1, 3, 12]\toutput_1.bin\n"
    for place, value in enumerate(wanted(given).values()):
        found = np.fromfile(tmp_path / f"output_{place}.bin", np.float32)
        np.testing.assert_array_equal(found, value.ravel())


def damaged(path, place=200):
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def test_refusals_are_one_line(built, tmp_path):
    given = sample()
    spoilt = {
        "no_ids": {"signal": given["signal"]},
        "doubles": {**given, "signal": given["signal"].astype(np.float64)},
        "short": {**given, "ids": given["ids"][:, :4]},
        "fortran": {**given, "signal": np.asfortranarray(given["signal"][0])},
        "flipped": given,
    }
    for name, arrays in spoilt.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    damaged(tmp_path / "flipped.npz")
    np.savez_compressed(tmp_path / "packed.npz", **given)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "no_ids.npz").read_bytes()[:-30])
    (tmp_path / "few.bin").write_bytes(b"1234")
    for name, words in {
        "no_ids.npz": "no array ids", "doubles.npz": "signal is <f8, the network takes <f4",
        "short.npz": "ids is [1, 4], the network takes [1, 5]", "fortran.npz": "in C order",
        "flipped.npz": "damaged", "packed.npz": "numpy.savez", "text.npz": "not an NPZ file",
        "cut.npz": "not an NPZ file", "absent.npz": "cannot be opened", "photo.jpg": "NAME=FILE",
        "ids=few.bin": "no signal=FILE",
    }.items():  # fmt: skip
        done = infer(built(), name, cwd=tmp_path)
        assert done.returncode == 1, name
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert words in errors[0]
    done = infer(built(), "ids=few.bin", "signal=few.bin", cwd=tmp_path)
    assert "signal has not as many values as its shape says" in done.stderr


def test_a_number_over_32_bits_is_refused_by_an_engine_of_32(built, tmp_path):
    given = {**sample(), "ids": np.full((1, 5), 1 << 31)}
    np.savez(tmp_path / "large.npz", **given)
    assert "does not take" in infer(built(OLD), "large.npz", cwd=tmp_path).stderr
    assert infer(built(), "large.npz", cwd=tmp_path).returncode == 0


def test_every_byte_of_an_archive_that_is_changed_or_cut_ends_well(built, tmp_path):
    """Either as one error, or as if nothing had been: no crash."""
    np.savez(tmp_path / "good.npz", **sample())
    content = (tmp_path / "good.npz").read_bytes()
    random, paths = np.random.default_rng(0), []
    for turn in range(150):
        spoilt = bytearray(content)
        places = random.integers(0, len(content), 2)
        spoilt[places[0]] = int(random.integers(0, 256))
        path = tmp_path / f"{turn}.npz"
        path.write_bytes(spoilt[: places[1]] if turn % 3 == 0 else spoilt)
        paths.append(path.name)
    codes = {infer(built(), path, cwd=tmp_path).returncode for path in paths}
    assert codes <= {0, 1}


def test_a_network_of_photos_takes_a_photo(tmp_path):
    image = Preprocess(3, (0.4, 0.5, 0.09), (0.2, 0.3, 0.155), (20, 24), (20, 24))
    ports = Ports((Port("image", (1, 3, 20, 24), "float32"),))
    io = [Tensor("image", "FLOAT", (1, 3, 20, 24))], [Tensor("density", "FLOAT", (1, 3, 20, 24))]
    folder = written(tmp_path, RowPreprocess.of(ports, image), io)
    compile_(folder, "-o", str(folder / "infer"))
    save_engine(folder, b"echo engine")
    pixels = np.random.default_rng(3).integers(0, 256, (18, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.ppm")
    prepared = image(pixels)
    np.savez(tmp_path / "prepared.npz", image=prepared)
    done = infer(folder, "photo.ppm", "prepared.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    value = prepared.ravel() * (1 + np.arange(prepared.size, dtype=np.float32) % 97)
    for name in ("photo", "prepared"):
        with np.load(tmp_path / f"{name}_outputs.npz") as found:
            np.testing.assert_allclose(found["density"].ravel(), value, rtol=1e-6, atol=1e-6)
