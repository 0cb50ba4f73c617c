"""Linear probes on all training examples of some tasks, and few-shot probes beside them.

    python -m big_transfer.evaluate --workdir runs/fractions/* \\
        --evals configs/evaluate/linear.py:omniglot_small,digits
    python -m big_transfer.evaluate --init ViT-B_16.npz --out runs/vit-b \\
        --evals configs/evaluate/linear.py:vtab1k

Argument: tasks and names of suites, `builtin` by default. Any key can be set:
'--config.evals.linear.layers=all' for every layer, '--config.evals.linear.missing=skip' (and the
same of probes) for a row that says so in the place of a task whose data isn't there. What the
probe is and how its strength is chosen says `evaluators/linear.py`.

Hardware: what trained the model, or less: a forward pass of each training and test image, and for
a layer of width 768 and 1,000 classes some 10 seconds of a CPU core.
"""
from ml_collections import ConfigDict


def get_config(tasks="builtin"):
  tasks = tuple(task.strip() for task in tasks.split(","))
  return ConfigDict(dict(
      linear=dict(kind="linear", tasks=tasks, layers=("pre_logits",), seed=0, missing="error"),
      probes=dict(kind="fewshot", tasks=tasks, shots=(1, 5, 10, 25), seeds=(0, 1, 2),
                  l2=(1024.0,), layers=("pre_logits",), missing="error")))
