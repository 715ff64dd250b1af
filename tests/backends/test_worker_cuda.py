"""The driver calls of the worker against a library of the same C signatures, on host memory."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from kdcompile.remote.agent.cuda import Cuda
from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.worker import Worker

DRIVER = r"""
#include <stdlib.h>
#include <string.h>
typedef unsigned long long ptr;
static int context, stream, events[2], made, recorded[2], graph, exec;
int held, capturing, launches;
int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int n) { *device = 40 + n; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int device) { *c = &context; return device != 40; }
int cuCtxSetCurrent(void *c) { return c != &context; }
int cuStreamCreate(void **s, unsigned flags) { *s = &stream; held++; return flags != 1; }
int cuStreamDestroy_v2(void *s) { held--; return s != &stream; }
int cuStreamSynchronize(void *s) { return s != &stream; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, "Stub GPU", size); return device != 40; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)6 << 30; return device != 40; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  *free = (size_t)5 << 30; *total = (size_t)6 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int number, int device) {
  *value = number == 75 ? 8 : number == 76 ? 7 : -1; return device != 40; }
int cuGetErrorName(int status, const char **name) { *name = "CUDA_ERROR_PLAYED"; return 0; }
int cuMemAlloc_v2(ptr *p, size_t size) {
  if (size > 1u << 30) return 2;
  held++; *p = (ptr)malloc(size); return 0; }
int cuMemFree_v2(ptr p) { held--; free((void *)p); return 0; }
int cuMemAllocHost_v2(void **p, size_t size) { held++; *p = malloc(size); return 0; }
int cuMemFreeHost(void *p) { held--; free(p); return 0; }
int cuMemcpyHtoDAsync_v2(ptr to, const void *from, size_t size, void *s) {
  memcpy((void *)to, from, size); return s != &stream; }
int cuMemcpyDtoHAsync_v2(void *to, ptr from, size_t size, void *s) {
  memcpy(to, (void *)from, size); return s != &stream; }
int cuEventCreate(void **e, unsigned flags) { held++; *e = &events[made++ % 2]; return flags; }
int cuEventRecord(void *e, void *s) {
  recorded[e == &events[1]] = 1; return s != &stream; }
int cuEventElapsedTime(float *ms, void *a, void *b) {
  *ms = 1.5f; return a != &events[0] || b != &events[1] || !recorded[0] || !recorded[1]; }
int cuEventDestroy_v2(void *e) { held--; return e != &events[0] && e != &events[1]; }
int cuStreamBeginCapture_v2(void *s, int mode) { capturing = 1; return s != &stream || mode != 1; }
int cuStreamEndCapture(void *s, void **g) {
  if (!capturing) return 901;
  held++; capturing = 0; *g = &graph; return s != &stream; }
int cuGraphInstantiateWithFlags(void **e, void *g, ptr flags) {
  held++; *e = &exec; return g != &graph || flags; }
int cuGraphDestroy(void *g) { held--; return g != &graph; }
int cuGraphExecDestroy(void *e) { held--; return e != &exec; }
int cuGraphLaunch(void *e, void *s) { launches++; return e != &exec || s != &stream; }
"""
OPEN = ctypes.CDLL


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the stub driver with")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "cuda.c"], check=True)
    return OPEN(str(library))


@pytest.fixture
def cuda(driver, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    return Cuda()


def counter(driver, name):
    return ctypes.c_int.in_dll(driver, name).value


def test_opens_the_primary_context(cuda):
    assert cuda.about() == {"name": "Stub GPU", "compute_capability": "8.7", "memory_mb": 6144,
                            "free_mb": 5120}  # fmt: skip


def test_failure_is_named(cuda):
    with pytest.raises(WorkerError, match=r"cuMemAlloc_v2 failed: CUDA_ERROR_PLAYED \(2\)"):
        cuda.allocate(1 << 40)


def test_absent_driver(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(WorkerError) as caught:
        Cuda()
    assert caught.value.code == "cuda-missing"


def test_session_on_the_driver(cuda, driver, played_tensorrt, order, tmp_path):
    module, _ = played_tensorrt("8.6.1")
    served = Worker("tensorrt")
    served.backend.cuda = cuda
    (tmp_path / "m.onnx").write_bytes(b"graph")
    served.backend.build(**order())
    served.load(str(tmp_path / "e.plan"))
    module.scene.driver.alive.append(("stream", cuda.stream.value))
    session = served.loaded["main"]
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(session.run({"image": image})["density"], image * 2)
    for mode in ("device", "graph"):
        times, _ = session.time({"image": image}, 1, 3, mode)
        assert times["device"] == [1.5] * 3
    assert counter(driver, "launches") == 4
    times, _ = session.time({"image": image}, 1, 3, "end_to_end")
    assert len(times["end_to_end"]) == 3
    served.quit()
    assert counter(driver, "held") == 0
