"""Evaluators for runs trained before: probes of every layer, and the geometry of every layer.

    python -m big_transfer.evaluate --workdir runs/first --evals configs/evaluate/layers.py

Sections are laid over the run's own of the same name and kind: `probes` keeps the run's tasks,
shots and seeds, and asks for all layers. For other tasks,
'--config.evals.probes.tasks=["digits"]'. Hardware: a laptop; about the time that the run's own
probes took.
"""
from ml_collections import ConfigDict


def get_config():
  return ConfigDict(dict(
      probes=dict(kind="fewshot", layers="all"),
      geometry=dict(kind="geometry")))
