"""Controlled scaling at toy size: data × model size × epochs, on two upstreams of different kinds.

    python -m big_transfer.sweep --sweep configs/sweeps/scaling.py --workdir runs/scaling --jobs 2
    python -m big_transfer.study --runs 'runs/scaling/*' --out runs/scaling-study

What Abnar et al. 2021 (sec. 2.3, fig. 4) varied one at a time from a default is crossed here: the
share of the upstream data (nested subsets), the ViT's size and the epochs, for shapes (`fractals`)
and for statistics (`textures`). Beside that grid, runs that vary the learning rate and the decay
of the head, and two other families, give the clouds their width.

Hardware: 2 CPU cores, offline: 130 trials in 11 minutes. Expect upstream accuracy from
chance (0.017) to above 0.9 on both, and probes that differ by upstream: fractals teach
`fractals_unseen` and `digits`, textures `textures_unseen` and `sprites_count`.
"""
import itertools
import pathlib

from big_transfer.runs import configuring

# Fractals are harder here than by default, lest the upper half of the runs be all alike.
UPSTREAMS = {"fractals": dict(classes=60, per_class=100, jitter=1.5, noise=0.1),
             "textures": dict(classes=60, per_class=100)}
FRACTIONS = (0.02, 0.1, 0.25, 0.5, 1.0)
EPOCHS = (7, 14, 21)  # the paper's
SIZES = {"Ti": 24, "S": 48, "B": 96}  # width; at these lengths depth costs more than it brings
OTHERS = {
    "mixer": dict(name="mixer", width=48, depth=3, tokens_mlp_dim=32, channels_mlp_dim=192,
                  patch=8),
    "resnet": dict(name="resnet", width=0.25, depths=(1, 1, 1), root_kernel=3, root_stride=2,
                   root_pool=True),
}
OTHERS_AT = ((0.02, 14), (0.25, 7), (0.5, 7), (1.0, 14))  # fraction, epochs
RATES = (5e-4, 1e-3, 3e-3)  # around 1.5e-3
DECAYS = (0.3, 1.0, 3.0)  # of the head, above 0.1
VARIED_AT = ((0.5, 7), (1.0, 7))


def get_config():
  base = pathlib.Path(__file__).parents[1] / "pretrain" / "fractals.py"
  config = configuring.load(base).unlock()
  config.name = ""
  config.total_steps, config.total_epochs = None, 7.0
  config.batch_size, config.accumulate = 32, 1
  config.optim.lr = 1.5e-3
  at_the_end = 10_000  # steps; more than any run takes
  config.evals.upstream.every = config.evals.probes.every = at_the_end
  config.checkpoint.every = at_the_end
  config.evals.probes.shots = (1, 5, 25)
  config.evals.probes.tasks = (
      "fractals_unseen", "textures_unseen", "digits", "sprites_count", "sprites_location",
      "sprites_orientation", "sprites_scale")
  return config


def get_sweep():
  for upstream in UPSTREAMS:
    vits = {size: dict(name="vit", width=width, depth=2, heads=4, mlp_dim=4 * width, patch=8,
                       pool="gap") for size, width in SIZES.items()}
    for size, fraction, epochs in itertools.product(SIZES, FRACTIONS, EPOCHS):
      yield _trial(upstream, f"ViT-{size}", vits[size], fraction, epochs)
    for (fraction, epochs), rate in itertools.product(VARIED_AT, RATES):
      yield _trial(upstream, "ViT-S", vits["S"], fraction, epochs, **{"optim.lr": rate})
    for (fraction, epochs), decay in itertools.product(VARIED_AT, DECAYS):
      yield _trial(upstream, "ViT-S", vits["S"], fraction, epochs,
                   **{"optim.rules[0][1].wd": decay})
    for label, model in OTHERS.items():
      for fraction, epochs in OTHERS_AT:
        yield _trial(upstream, label, model, fraction, epochs)


def _trial(upstream, label, model, fraction, epochs, **more):
  varied = "".join(f", {key.rpartition('.')[2]} {value:g}" for key, value in more.items())
  return {"name": f"{upstream}, {label}, {fraction:.0%}, {epochs} epochs{varied}",
          "upstream.name": upstream, "upstream.source": upstream,
          "upstream.options": UPSTREAMS[upstream], "upstream.fraction": fraction, "model": model,
          "total_epochs": epochs, **more}
