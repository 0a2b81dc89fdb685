"""Two fake CPU devices for the whole suite, and quick compilation: most of its time is XLA's."""

import os

# before jax is imported: the number of devices is fixed when its backend starts
_FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
