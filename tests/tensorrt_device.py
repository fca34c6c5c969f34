"""A device: the stand-ins that build and that run as one package, and CUDA's driver in C.

The driver is compiled, so that the scripts' declarations of its functions are truly used; its
memory is that of the host.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import tensorrt_builder
import tensorrt_runtime
from exported_net import CLASSES, SHAPE

# Each function fails that the variable CUDA_FAILS names, and every one before cuInit.
_DRIVER = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int ready, current;
static struct { char *start; size_t size; } *buffers;
static int count;
static char context, stream;

static int refused(const char *name) {
    const char *fails = getenv("CUDA_FAILS");
    return fails && !strcmp(fails, name) ? 2 : ready ? 0 : 3;
}
static int inside(uint64_t address, size_t size) {
    for (int i = 0; i < count; i++)
        if ((uint64_t)buffers[i].start == address && size <= buffers[i].size) return 1;
    return 0;
}
int cuInit(unsigned flags) { ready = flags == 0; return refused("cuInit"); }
int cuGetErrorString(int error, const char **text) {
    *text = error == 2 ? "out of memory" : error == 3 ? "initialization error" : 0;
    return *text ? 0 : 1;
}
int cuDeviceGet(int *device, int ordinal) { *device = 5; return refused("cuDeviceGet"); }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, "Orin", size);
    return device == 5 ? refused("cuDeviceGetName") : 101;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return device == 5 ? refused("cuDeviceGetAttribute") : 101;
}
int cuDevicePrimaryCtxRetain(void **made, int device) {
    *made = &context;
    return device == 5 ? refused("cuDevicePrimaryCtxRetain") : 101;
}
int cuCtxSetCurrent(void *given) { current = given == &context; return current ? 0 : 201; }
int cuStreamCreate(void **made, unsigned flags) {
    *made = &stream;
    return flags == 1 && current ? refused("cuStreamCreate") : 201;
}
int cuStreamSynchronize(void *given) { return given == &stream ? 0 : 400; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    buffers = realloc(buffers, (count + 1) * sizeof *buffers);
    buffers[count].start = malloc(size);
    buffers[count].size = size;
    *address = (uint64_t)buffers[count++].start;
    return current ? refused("cuMemAlloc_v2") : 201;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *given) {
    if (given != &stream || !inside(to, size)) return 1;
    memcpy((void *)to, from, size);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *given) {
    if (given != &stream || !inside(from, size)) return 1;
    memcpy(to, (void *)from, size);
    return 0;
}
"""


def compile_driver(folder: Path) -> Path:
    """`libcuda.so.1` in a folder; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is missing, and the driver must be compiled; install a C compiler")
    source, library = folder / "libcuda.c", folder / "libcuda.so.1"
    source.write_text(_DRIVER)
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


def use_driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this library to whoever opens CUDA's driver by its name."""
    load = ctypes.CDLL

    def chosen(name: str) -> ctypes.CDLL:
        assert name == "libcuda.so.1"
        return load(str(library))

    monkeypatch.setattr(ctypes, "CDLL", chosen)


class TensorRT(tensorrt_runtime.TensorRT):
    """Builds as one stand-in and runs as the other; `building` is the first."""

    def __init__(self, version: str = "10.3.0") -> None:
        super().__init__(version)
        self.building = tensorrt_builder.TensorRT(version, strongly_typed=1)
        self.shapes = {"images": (-1, *SHAPE), "logits": (-1, CLASSES)}
        for name, value in vars(self.building).items():
            if name[0].isupper() and name not in vars(self):
                setattr(self, name, value)
