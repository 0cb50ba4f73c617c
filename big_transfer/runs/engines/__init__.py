"""Where the trials of a sweep run: this machine's processes, a Ray cluster, a Slurm cluster.

Every engine takes tasks and a function and returns what became of each; none knows of training.
Neither Ray nor submitit is imported before it is used.
"""
from big_transfer.runs.engines.local import run_local
from big_transfer.runs.engines.ray_cluster import run_ray
from big_transfer.runs.engines.slurm_cluster import run_slurm
from big_transfer.runs.engines.tasks import EngineError, Outcome, Progress, Task

__all__ = ["EngineError", "Outcome", "Progress", "Task", "run_local", "run_ray", "run_slurm"]
