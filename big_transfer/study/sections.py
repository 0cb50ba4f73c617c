"""The sections of the report after the plots of downstream against upstream accuracy."""
import dataclasses

from big_transfer.study import controlled, ranks


@dataclasses.dataclass(frozen=True)
class Part:
  """One figure or table of the page.

  Attributes:
    kind: "figure": of a table; "panels": of points, a panel a task; "table".
    name: of the figure (`payload.figures`), the sort of panels, or the table.
    caption: what is plotted.
    finding: what it shows in these rows, one of `findings.FINDINGS` or of
      `claims.FINDINGS`; None: nothing is said.
  """
  kind: str
  name: str
  caption: str
  finding: str | None = None


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading with its parts; a section none of whose parts has anything to show is left out."""
  anchor: str
  title: str
  parts: tuple[Part, ...]


_FACTORS = (("head_decay", "the head's weight decay"),
            ("head_rate", "the head's learning rate, as a multiple of the body's"))

SECTIONS = (
    Section("fits", "The fits", (
        Part("table", "fits", "The laws, a line a task, number of shots and fit."),
        Part("table", "robust",
             "The robust fit of the same points, this project's own, for predicting beyond the "
             "runs; the lines of the table above are the paper's plain fits. What Eq. 1 and a "
             "quadratic in logits miss is taken for a path along upstream accuracy, not for "
             "independent errors: it follows the runs where there are some, even in a bump, and "
             "those nearest the highest upstream accuracy count most for what lies beyond. Its "
             "curve is drawn to half-way from there to an upstream accuracy of 1; the saturation "
             "value is of its Eq. 1, low and high the ends of a posterior interval."),
    )),
    Section("settings", "Few-shot, linear and fine-tuned", (
        Part("figure", "settings", "The same pre-trained runs, by how the task was learnt: probes "
             "of a few examples a class, a linear probe on all training examples, and fine-tuning "
             "of the whole model. A mark is a run.", "settings"),
        Part("table", "settings", "Each way to learn a task: accuracy, what it gains over the few-"
             "shot probe with the most shots (the mean over the runs that have both, with an "
             "interval over these runs, cut at ±1, wide where they are few), how alike the two "
             "rank the runs, how upstream accuracy ranks them, and the hull's saturation value."),
        Part("table", "settings_pairs", "The same for every pair of ways."),
        Part("table", "settings_claims", "What the paper says of few-shot probes, that they order "
             "runs as upstream accuracy does and that they saturate, tested for the other ways: "
             "confirmed or contradicted where intervals say so."),
    )),
    Section("shots", "The number of shots", (
        Part("figure", "irreducible_error",
             "Irreducible error, downstream error as upstream error goes to 0, against the number "
             "of shots; bars are intervals, pale marks aren't identified. All upstreams.", "shots"),
        Part("figure", "curves_hull", "The laws fitted to the upper hulls, a curve a number of "
             "shots; dashed where they reach beyond the runs."),
        Part("figure", "curves_all", "The same, fitted to all points."),
        Part("figure", "parameters", "The three parameters of the law against the number of shots."
             " k and α trade off where a law is nearly straight; pale marks are of fits that don't "
             "identify a saturation value. All upstreams."),
        Part("table", "shots", "Correlation of each parameter with the number of shots, and the "
             "share of pairs of numbers of shots between which it rises or falls. A line “(all)” "
             "pools the tasks."),
    )),
    Section("prediction", "Predicting the best runs upstream", (
        Part("panels", "held_out", "Orange: runs held out, those with the highest upstream "
             "accuracy. The two laws are fitted to the runs in grey alone."),
        Part("figure", "prediction_errors", "Root mean squared error on what was held out, by "
             "method: Eq. 1 (saturating), the law without saturation (log-linear), a line and a "
             "quadratic in logits, and the mean of the runs fitted. Left of the mean is better "
             "than knowing nothing.", "prediction"),
        Part("table", "prediction", "The same in numbers; bias is predicted less observed."),
    )),
    Section("samples", "How many runs a law needs", (
        Part("figure", "sample_size", "Mean squared errors of laws fitted to samples of the runs, "
             "averaged over tasks, on the runs fitted and on the held-out best ones upstream; "
             "bands hold 10 to 90 % of the samples.", "sample_size"),
        Part("figure", "sample_size_by_task", "The same, task by task."),
    )),
    Section("controlled", "Scaling one thing at a time", (
        Part("panels", "controlled", "Coloured: runs in series in which nothing else that is known "
             "differs. If scale mattered only through upstream accuracy, the colours would mix "
             "along one curve.", "controlled"),
        Part("table", "controlled_tests", "Does the factor say anything of downstream accuracy "
             "that upstream accuracy doesn't? “Slope” is accuracy a doubling of the factor, given "
             "upstream accuracy, low and high its interval. “Same curve” is yes where that lies "
             f"within {controlled.NEGLIGIBLE:g} of 0, and no where it excludes 0 and what noise "
             "upstream explains. With many lines some p values are small by chance."),
    )),
    Section("families", "Whose runs make the hull", (
        Part("figure", "hull_families", "The share of each architecture in the runs, and in the "
             "length of the upper hull (each place counts for the nearest vertex).", "families"),
    )),
    Section("ranks", "How tasks rank the runs", (
        Part("figure", "spearman", "Spearman's rank correlation between tasks, over all runs "
             "measured on both, architectures pooled.", "ranks"),
        Part("figure", "spearman_upstream", "The same of each task with upstream accuracy; bars "
             "are intervals."),
        Part("panels", "overlay", "Orange: the runs on one task's upper hull, shown on every other "
             "task.", "overlay"),
        Part("figure", "peers", "Among runs of like upstream accuracy: for the best run on the "
             "task of the row, the share of its peers that it beats on the task of the column.",
             "peers"),
    )),
    Section("layers", "Where in the layers", (
        Part("panels", "layers", "Pale circles: all runs, downstream against upstream accuracy "
             "(top axis). Triangles, joined by a line: the accuracy of probes of each layer, from "
             "the stem to pre_logits, which the head sees (bottom axis, relative depth), of one "
             "run a family, that best upstream. The large one is the earliest layer whose "
             "shortfall from the best is within what the probes' seeds explain.", "layer_overlay"),
        Part("figure", "layer_curves", "Accuracy by relative depth less that of pre_logits, mean "
             "over a family's runs, with the range of 10 to 90 % of them. Above 0, a layer is "
             "worth more to a linear probe than what the head sees.", "layer_curves"),
        Part("table", "best_layers", "The runs whose layers are drawn, a line a task and number of "
             "shots."),
    )),
    Section("head", "The head's weight decay and learning rate", tuple(
        part for factor, words in _FACTORS for part in (
            Part("figure", f"{factor}_accuracy", f"Accuracy against {words}, upstream and on each "
                 "task, in series of runs that differ in nothing else that is known but their "
                 "seeds: means over run seeds, bars ± a standard error. Runs of a seed are "
                 "compared with each other in the intervals below, so that these may be surer than "
                 "the bars look. The grey line is the neutral setting, with which gains below "
                 "are compared: the body's own, or the lowest where that wasn't tried.",
                 f"{factor}_accuracy"),
            Part("figure", f"{factor}_best", f"The best of the tried values of {words} for each "
                 "task, against how well upstream accuracy ranks the study's runs on that task, over "
                 "all runs, architectures pooled. "
                 "Grey bars: settings that can't be told from the best. Orange: the same for "
                 "upstream accuracy itself.", f"{factor}_best"))) + (
        Part("table", "accuracy_effects", "Slopes of accuracy over the logarithm of the setting, "
             "and the change from the lowest to the highest, with intervals over run seeds; "
             "“(all)” takes those of all its series as draws alike. An accuracy that is highest "
             "at some setting in between, beyond what run seeds explain, “peaks” there: of it a "
             "slope says little, and the best setting more."),
    )),
    Section("geometry", "Margins and norms", (
        Part("table", "geometry", "Margins and norms by layer of one run a family, that best "
             "upstream among those that had them measured: the median margin of upstream examples, "
             "true class against the strongest competitor, over the norm of the difference's "
             "gradient there; normalised: over the square root of the activations' total variance; "
             "and the L2 norm of all the layer's weights. The file has all runs."),
        ) + tuple(
        part for factor, words in _FACTORS for part in (
            Part("figure", f"{factor}_margins", "Median margin of upstream examples at each layer, "
                 f"a line a value of {words}: true class against the strongest competitor, over "
                 "the norm of the difference's gradient there; normalised: over the square root of the "
                 "activations' total variance. Means over run seeds, bars ± a standard error.",
                 f"{factor}_margins"),
            Part("figure", f"{factor}_norms", "L2 norm of the head's weights, and the sum of those "
                 f"of all other layers, against {words}.", f"{factor}_norms"),
            Part("figure", f"{factor}_layer_norms", f"The L2 norm of each layer's weights, a line "
                 f"a value of {words}.", f"{factor}_layer_norms"))) + (
        Part("table", "geometry_effects", "Slopes over the logarithm of the setting, with "
             "intervals over run seeds; those of norms are of their logarithm to base 10. What "
             "“peaks” or “dips” turns at the setting beside."),
    )),
    Section("explained", "What goes with saturation, task by task", (
        Part("table", "explained", "Each task's saturation value (hull fit), which is that of "
             "probes of pre_logits; rank correlation with upstream accuracy over all runs, "
             "architectures pooled, and beside it the mean of those inside each architecture with "
             f"at least {ranks.MIN_RUNS} runs; best layer in the run best upstream among those "
             "with probes of layers; and best setting of the head.", "explained"),
    )),
    Section("left-out", "What was left out", (
        Part("table", "left_out", "Input that no fit or figure uses, and why."),
    )),
)
