"""Accuracy and loss on the held-out part of what is trained on, over every example once."""
import functools

from clu import metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from big_transfer.data import pipeline
from big_transfer.data import transforms


@flax.struct.dataclass
class Totals(metrics.Collection):
  """Sums over the examples that the mask counts."""
  accuracy: metrics.Average.from_output("correct")
  loss: metrics.Average.from_output("loss")


@functools.lru_cache(maxsize=16)  # one compiled function serves all runs of one model
def _measure(apply, loss, members=False):
  """Returns `measure(params, batch) -> Totals`, jitted; of stacked parameters if `members`."""

  def measure(params, batch):
    logits_BC, _ = apply({"params": params}, transforms.to_float(batch["image"]), train=False)
    targets_BC = jax.nn.one_hot(batch["label"], logits_BC.shape[-1])
    correct_B = (logits_BC.argmax(axis=-1) == batch["label"]).astype(jnp.float32)
    return Totals.single_from_model_output(
        correct=correct_B, loss=loss(logits_BC, targets_BC), mask=batch["mask"])

  return jax.jit(jax.vmap(measure, in_axes=(0, None)) if members else measure)


class Classification:
  """Metrics `accuracy` (a fraction) and `loss` (nats per example) of the held-out examples.

  Its rows are those of evaluator `upstream`. In a run that is fine-tuned they are a result
  downstream: then the evaluator is `finetune`, and rows have the run's seed and the number of
  training examples too.
  """

  def __init__(self, context):
    self._context = context

  def rows(self, params):
    yield from self._told(self._totals(params), 0)

  def rows_members(self, params_M):
    totals = self._totals(params_M, members=True)
    members = len(next(iter(totals.values())))
    return [list(self._told({key: value_M[i] for key, value_M in totals.items()}, i))
            for i in range(members)]

  def _totals(self, params, members=False):
    """`{metric: value}`, NumPy arrays `()`, or `(M,)` of members."""
    upstream = self._context.upstream
    measure = _measure(self._context.apply, upstream.loss, members)
    totals = None
    for batch in pipeline.batches(upstream.test, np.arange(len(upstream.test)),
                                  self._context.batch_size, self._context.process):
      self._context.check()
      more = measure(params, self._context.put(batch))
      totals = more if totals is None else totals.merge(more)
    return self._context.fetch(
        jax.vmap(Totals.compute)(totals) if members else totals.compute())

  def _told(self, totals, member):
    upstream = self._context.upstream
    own = {"evaluator": "upstream"}
    if upstream.setting != "upstream":
      used = upstream.train if upstream.examples is None else upstream.examples
      own = {"evaluator": "finetune", "seed": upstream.seeds[member], "examples_used": len(used)}
    for metric, value in totals.items():
      yield {**own, "task": upstream.name, "variant": upstream.variant,
             "setting": upstream.setting, "split": "test", "metric": metric, "value": float(value),
             "status": "ok"}
