"""The driver calls of the worker against a library of the same C signatures, on host memory."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from kdcompile.backends import worker

DRIVER = r"""
#include <stdlib.h>
#include <string.h>
typedef unsigned long long ptr;
static int context, stream, events[2], made, recorded[2];
int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int n) { *device = 40 + n; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int device) { *c = &context; return device != 40; }
int cuCtxSetCurrent(void *c) { return c != &context; }
int cuStreamCreate(void **s, unsigned flags) { *s = &stream; return flags != 1; }
int cuStreamSynchronize(void *s) { return s != &stream; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, "Stub GPU", size); return device != 40; }
int cuDeviceGetAttribute(int *value, int number, int device) {
  *value = number == 75 ? 8 : number == 76 ? 7 : -1; return device != 40; }
int cuGetErrorName(int status, const char **name) { *name = "CUDA_ERROR_PLAYED"; return 0; }
int cuMemAlloc_v2(ptr *p, size_t size) {
  if (size > 1u << 30) return 2;
  *p = (ptr)malloc(size); return 0; }
int cuMemFree_v2(ptr p) { free((void *)p); return 0; }
int cuMemcpyHtoDAsync_v2(ptr to, const void *from, size_t size, void *s) {
  memcpy((void *)to, from, size); return s != &stream; }
int cuMemcpyDtoHAsync_v2(void *to, ptr from, size_t size, void *s) {
  memcpy(to, (void *)from, size); return s != &stream; }
int cuEventCreate(void **e, unsigned flags) { *e = &events[made++ % 2]; return flags; }
int cuEventRecord(void *e, void *s) {
  recorded[e == &events[1]] = 1; return s != &stream; }
int cuEventElapsedTime(float *ms, void *a, void *b) {
  *ms = 1.5f; return a != &events[0] || b != &events[1] || !recorded[0] || !recorded[1]; }
int cuEventDestroy_v2(void *e) { return e != &events[0] && e != &events[1]; }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the stub driver with")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "cuda.c"], check=True)
    return library


@pytest.fixture
def cuda(driver, monkeypatch):
    real = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name: real(str(driver)))
    return worker.Cuda()


def test_opens_the_primary_context(cuda):
    assert (cuda.name, cuda.capability) == ("Stub GPU", "8.7")


def test_failure_is_named(cuda):
    with pytest.raises(worker.WorkerError, match=r"cuMemAlloc_v2 failed: CUDA_ERROR_PLAYED \(2\)"):
        cuda.allocate(1 << 40)


def test_absent_driver(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(worker.WorkerError) as caught:
        worker.Cuda()
    assert caught.value.code == "cuda-missing"


def test_session_on_the_driver(cuda, played_tensorrt, monkeypatch, tmp_path):
    module, _ = played_tensorrt("8.6.1")
    monkeypatch.setattr(worker, "Cuda", lambda: cuda)
    context = module.IExecutionContext
    monkeypatch.setattr(context, "stream", cuda.stream.value)
    served = worker.Worker("tensorrt")
    (tmp_path / "e.plan").write_bytes(b"an engine")
    session = served.backend.load(str(tmp_path / "e.plan"))
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(session.run({"image": image})["density"], image * 2)
    times = session.time({"image": image}, warmup=1, iterations=3)
    assert times["device"] == [1.5] * 3
    session.release()
