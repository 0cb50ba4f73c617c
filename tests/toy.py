"""A run of seconds: its config, and a way into its loop, that tests share."""
from ml_collections import ConfigDict

from big_transfer.data import pipeline


def config(**changes):
  """A ViT of 10k parameters on 4 fractal classes, probed on digits; `changes` at the top level."""
  settings = dict(
      seed=1, image_size=16, batch_size=16, eval_batch_size=64, total_steps=6, log_every=2,
      upstream=dict(name="toy", source="fractals",
                    options=dict(classes=4, per_class=16, test_per_class=5, size=16)),
      model=dict(name="vit", width=16, depth=1, heads=2, mlp_dim=32, patch=8, pool="gap"),
      optim=dict(lr=1e-2, rules=(("head/.*", dict(wd=1.0)), (".*", dict(wd=0.1))),
                 schedule=dict(warmup_steps=2)),
      augment=dict(crop_padding=1, flip=True),
      evals=dict(upstream=dict(kind="classification", every=4),
                 probes=dict(kind="fewshot", every=4, tasks=("digits",), shots=(1, 5),
                             seeds=(0, 1))),
      checkpoint=dict(every=2))
  return ConfigDict({**settings, **changes}).lock()


def at_step(monkeypatch, at, do):
  """Calls `do` as the batch of step `at` is asked for."""
  original = pipeline.train_batches

  class Batches:
    def __init__(self, *args, step, **kwargs):
      self._it, self._step = original(*args, step=step, **kwargs), step

    def __next__(self):
      if self._step == at:
        do()
      self._step += 1
      return next(self._it)

    def close(self):
      self._it.close()

  monkeypatch.setattr(pipeline, "train_batches", Batches)
