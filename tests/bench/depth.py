"""What depth costs: blocks one by one or as a scanned loop, and each policy of rematerialisation.

    .venv/bin/python tests/bench/depth.py [--depths 4 12 24 48] [--width 64] [--batch 32]

Prints, for a ViT in float32 and for one in bfloat16, the CPU seconds of compiling a step of plain
gradient descent and of running it, and the temporary memory that the compiler says the step needs.
"""
import argparse
import time

import jax
import jax.numpy as jnp

from big_transfer import models


def measure(depth, width, batch, repeats, **arguments):
  """Returns CPU seconds to compile a step, CPU seconds a step, and temporary bytes."""
  model = models.build("vit", width=width, depth=depth, heads=4, mlp_dim=4 * width, patch=4,
                       pool="gap", num_classes=10, **arguments)
  images = jnp.zeros((batch, 32, 32, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1])["params"]
  params = jax.tree.map(lambda p: jnp.full(p.shape, 0.01, p.dtype), shapes)

  def step(params):
    grads = jax.grad(lambda p: (model.apply({"params": p}, images, train=True)[0] ** 2).sum())(
        params)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)

  began = time.process_time()
  compiled = jax.jit(step, donate_argnums=0).lower(params).compile()
  compiling = time.process_time() - began
  params = jax.block_until_ready(compiled(params))
  began = time.process_time()
  for _ in range(repeats):
    params = compiled(params)
  jax.block_until_ready(params)
  return (compiling, (time.process_time() - began) / repeats,
          compiled.memory_analysis().temp_size_in_bytes)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
  parser.add_argument("--depths", type=int, nargs="+", default=[4, 12, 24, 48])
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
  parser.add_argument("--remat", nargs="+", default=["none", "dots", "dots_no_batch", "full"])
  args = parser.parse_args()
  print("depth  dtype     blocks      remat          compile s  step s  temporary MB")
  for depth in args.depths:
    for dtype in args.dtypes:
      for scan in (False, True):
        for remat in args.remat if depth == 12 or len(args.depths) == 1 else ["none"]:
          found = measure(depth, args.width, args.batch, args.repeats, dtype=dtype, scan=scan,
                          remat=remat)
          print(f"{depth:>5}  {dtype:<8}  {'scanned' if scan else 'one by one':<10}  {remat:<13}  "
                f"{found[0]:>9.1f}  {found[1]:>6.2f}  {found[2] / 2**20:>12.1f}", flush=True)


if __name__ == "__main__":
  main()
