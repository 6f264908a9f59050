"""The driver is asked through its C interface; a library of its name stands in for it where there is none."""

import os
import shutil
import subprocess
import sys

import pytest

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return %(init)d; }
int cuDeviceGet(int *device, int ordinal) { *device = 5; return ordinal; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return device != 5; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return device != 5;
}
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
"""
ASK = """
from edgepoint2_ros.engines.tensorrt.gpu import find_gpu
from edgepoint2_ros.errors import EngineError
try:
    print(find_gpu())
except EngineError as error:
    print(error)
"""


@pytest.fixture
def ask(tmp_path):
    """Return a function that compiles a driver and asks it in a process of its own."""
    if shutil.which('cc') is None:
        pytest.skip('there is no C compiler')

    def ask(**answers) -> str:
        (tmp_path / 'driver.c').write_text(DRIVER % answers)
        library = tmp_path / 'libcuda.so.1'
        subprocess.run(['cc', '-shared', '-fPIC', '-o', library, tmp_path / 'driver.c'], check=True)
        environment = {**os.environ, 'LD_LIBRARY_PATH': str(tmp_path)}
        done = subprocess.run([sys.executable, '-c', ASK], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return ask


@pytest.mark.slow
def test_the_gpu_is_named_with_its_capability_and_its_drivers_cuda(ask):
    assert ask(init=0) == "Gpu(name='Orin', compute_capability='8.7', cuda='12.6')"


@pytest.mark.slow
def test_a_driver_without_a_gpu_is_one_sentence(ask):
    assert ask(init=100) == 'the NVIDIA driver finds no GPU to use (cuInit: error 100)'
