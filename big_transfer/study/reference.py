"""Published fits of Eq. 1, by name, for figures to draw against.

`PAPER_FITS` holds the laws of the eight tasks shown in the main part of Abnar et al., "Exploring
the Limits of Large Scale Pre-training" (arXiv:2110.02095): pre-trained on JFT, 25 shots. They were
recovered from an authors' figure of the NeurIPS-2021 version (over 3,000 vision transformers) by
tracing both curves of each panel and fitting Eq. 1 to the trace: the median residual was 0.0006, so
Eq. 1 is what is drawn. The figure's upstream accuracies go from 0 to 0.59; beyond, the laws are an
extrapolation by their authors. The paper prints no table of these numbers.
"""
import types
import typing

UPSTREAM, SHOTS = "JFT", 25
US_HIGH = 0.59  # the highest upstream accuracy in the figure
ACCURACY = 0.002  # of a point of a traced curve, in accuracy

REFERENCE_COLUMNS = {
    "task": ("VARCHAR", "the task, as the paper calls it"),
    "fit": ("VARCHAR", "'hull': the upper hull; 'all': all points"),
    "upstream": ("VARCHAR", "the dataset pre-trained on"),
    "shots": ("BIGINT", "examples a class of the probe"),
    "k": ("DOUBLE", "Eq. 1: factor"),
    "alpha": ("DOUBLE", "Eq. 1: exponent"),
    "e_IR": ("DOUBLE", "Eq. 1: irreducible error"),
    "saturation": ("DOUBLE", "the dotted line of the figure, saturation value 1 - e_IR; read by "
                             "itself, so that it may differ from e_IR by 0.002"),
    "us_high": ("DOUBLE", "highest upstream accuracy in the figure"),
    "source": ("VARCHAR", "where the numbers are from"),
}


class Law(typing.NamedTuple):
  """Parameters of Eq. 1, e_DS = k e_US^alpha + e_IR, in errors."""
  k: float
  alpha: float
  e_IR: float


# Per task: k, alpha, e_IR and the dotted line, on the upper hull and on all points. The hull of
# col_hist is so flat that any exponent from 8 to 10 fits; 9 stands for them.
_TRACED = {
    "pets": ((0.866, 9.7, 0.040, 0.960), (0.899, 6.9, 0.078, 0.922)),
    "cifar100": ((0.574, 3.8, 0.099, 0.902), (0.613, 3.25, 0.162, 0.838)),
    "imagenet": ((0.795, 3.24, 0.124, 0.875), (0.856, 1.69, 0.059, 0.942)),
    "cars": ((0.927, 10.2, 0.048, 0.952), (1.061, 8.0, 0.075, 0.925)),
    "col_hist": ((0.032, 9.0, 0.110, 0.892), (0.170, 8.7, 0.128, 0.872)),
    "dtd": ((0.410, 4.0, 0.202, 0.798), (0.489, 6.45, 0.295, 0.705)),
    "caltech": ((0.330, 8.5, 0.059, 0.942), (0.496, 10.1, 0.090, 0.910)),
    "uc_merced": ((0.145, 6.2, 0.034, 0.967), (0.281, 8.5, 0.065, 0.935)),
}
# The same tasks under the names of their datasets in TensorFlow Datasets.
_OTHER_NAMES = types.MappingProxyType({
    "oxford_iiit_pet": "pets", "imagenet2012": "imagenet", "cars196": "cars",
    "colorectal_histology": "col_hist", "caltech101": "caltech"})


def _lines():
  for task, pair in _TRACED.items():
    for fit, (k, alpha, e_ir, saturation) in zip(("hull", "all"), pair):
      source = ("traced from an authors' figure of the NeurIPS-2021 version of arXiv:2110.02095 "
                f"(JFT, 25 shots), within {ACCURACY:g} of accuracy")
      if (task, fit) == ("col_hist", "hull"):
        source += "; exponents from 8 to 10 fit alike"
      yield types.MappingProxyType({
          "task": task, "fit": fit, "upstream": UPSTREAM, "shots": SHOTS, "k": k, "alpha": alpha,
          "e_IR": e_ir, "saturation": saturation, "us_high": US_HIGH, "source": source})


PAPER_FITS = tuple(_lines())


def known_as(task):
  """The paper's name of a task, None if it isn't among the eight.

  >>> known_as("Oxford-IIIT-Pet"), known_as("digits")
  ('pets', None)
  """
  name = str(task).lower().replace("-", "_").replace(" ", "_")
  name = _OTHER_NAMES.get(name, name)
  return name if name in _TRACED else None


def law(task, fit):
  """The published law of a task.

  Args:
    task: its name, the paper's or that of its dataset, such as "pets" or "oxford_iiit_pet".
    fit: "hull" or "all".

  Returns:
    A `Law`; `laws.SATURATING.predict(law(task, fit), 1 - us)` is the error downstream.

  Raises:
    ValueError: a task or a fit that isn't in the table.
  """
  name = known_as(task)
  for line in PAPER_FITS:
    if (line["task"], line["fit"]) == (name, fit):
      return Law(line["k"], line["alpha"], line["e_IR"])
  if name is None:
    raise ValueError(f"task: no published fit for {task!r}; there are {', '.join(_TRACED)}")
  raise ValueError(f"fit: expected 'hull' or 'all', got {fit!r}")
