"""On what and with what a record was made."""
import platform
from typing import Any

import flax
import jax
import numpy as np
import optax

import big_transfer


def provenance() -> dict[str, Any]:
  """The fields `device` and `versions` of a run.json."""
  return dict(
      device={"platform": jax.devices()[0].platform, "kind": jax.devices()[0].device_kind,
              "count": jax.device_count()},
      versions={"big_transfer": big_transfer.__version__, "python": platform.python_version(),
                **{m.__name__: m.__version__ for m in (jax, flax, optax, np)}})
