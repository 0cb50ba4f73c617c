"""The figures: one function each, from the tables of points and of what was found in them alone.

A figure is a Vega-Lite specification with its data beside it. `catalogue` yields all that a study's
tables allow; `save` writes one as PNG, SVG or PDF.
"""
from big_transfer.study.figures.by_setting import settings
from big_transfer.study.figures.catalogue import CHOICES, catalogue
from big_transfer.study.figures.head import (
    head_accuracy, head_best, layer_norms, margins, norms)
from big_transfer.study.figures.layers import layer_curves, layer_overlay
from big_transfer.study.figures.matrices import peers, spearman_matrix, spearman_upstream
from big_transfer.study.figures.panels import verdict
from big_transfer.study.figures.scatter import (
    all_runs, controlled, high_upstream, overlay, overview, task_figure)
from big_transfer.study.figures.style import FORMATS, cell_name, family_name, save, shots_name
from big_transfer.study.figures.trends import (
    curves_by_shots, hull_families, irreducible_error, parameters, prediction_errors, sample_size,
    sample_size_by_task)

__all__ = [
    "CHOICES", "FORMATS", "all_runs", "catalogue", "cell_name", "controlled", "curves_by_shots",
    "family_name", "head_accuracy", "head_best", "high_upstream", "hull_families",
    "irreducible_error", "layer_curves", "layer_norms", "layer_overlay", "margins", "norms",
    "overlay", "overview", "parameters", "peers", "prediction_errors", "sample_size",
    "sample_size_by_task", "save", "settings", "shots_name", "spearman_matrix", "spearman_upstream",
    "task_figure", "verdict"]
