"""Eight fake CPU devices and strict promotion: what every test runs under."""
import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 "
                      "--xla_backend_optimization_level=0")  # compiling is most of the tests' time
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402  the flags above must be set before jax starts

jax.config.update("jax_numpy_rank_promotion", "raise")
