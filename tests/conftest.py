"""Two fake CPU devices for the whole suite, and quick compilation: most of its time is XLA's."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

# before jax is imported: the number of devices is fixed when its backend starts
_FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # XLA ends the process over a flag that it does not know
    _FLAGS += (  # compiles in 0.6 of the time
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

_MANY_MAPS, _EVERY = 25_000, 5
"""Every compiled function maps memory, a process may have 65,530 maps, and XLA aborts where it can
have no more: looked at every few tests.
"""
_tests = 0


@pytest.fixture(autouse=True)
def _forget_compiled_functions():
    yield
    global _tests
    _tests += 1
    maps = Path("/proc/self/maps")
    if _tests % _EVERY == 0 and maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPS:
        import jax

        jax.clear_caches()
