"""Weight decay of the head over three decades, the body's fixed: does it push information down?

    python -m big_transfer.sweep --sweep configs/sweeps/head_weight_decay.py \\
        --workdir runs/head-decay --jobs 2
    python -m big_transfer.study --runs 'runs/head-decay/*' --out runs/head-decay-study

Abnar et al. 2021 (sec. 4; app. C at ICLR): the more the head is decayed while pre-training, the
worse upstream and the better downstream tasks that are related to it; what the head no longer
holds, the layers below it have to, which their margins and norms show. λ is that of

    θ ← θ − s(t) · η · (m · u + λ · θ)

(`training/optim.py`), decoupled and at the schedule's rate: without a gradient a weight would
shrink by exp(−η λ Σ_t s(t)) over the run, here by exp(−λ). big_vision and Zhai et al. 2021
write the product η·λ: their head of 3.0 · lr over a body of 0.03 · lr is λ = 3 over 0.03, a ratio
of 100.

Argument: what to pre-train on. fractals (default) or textures, offline; cifar10, under
TFDS_DATA_DIR; or images of your own, which take no other flag:

    … --sweep configs/sweeps/head_weight_decay.py:folder:/path/to/images --workdir runs/mine-decay

likewise npz:/path/file.npz and tfds:NAME. Hardware: 2 CPU cores.
"""
import itertools
import pathlib

from big_transfer.runs import configuring

DECAYS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the head
BODY_DECAY = 0.03
SEEDS = (0, 1, 2)
MODELS = ("vit", "resnet")
TASKS = ("digits", "fractals_unseen", "textures_unseen", "sprites_count", "sprites_location")
MORE_TASKS = {"cifar10": ("cifar10", "omniglot_small")}  # read from where CIFAR-10 is


def _pretrain(name):
  return configuring.load(str(pathlib.Path(__file__).parents[1] / "pretrain" / name)).unlock()


def get_config(data="fractals"):
  config = _pretrain("cifar10.py" if data == "cifar10" else "fractals.py")
  if data == "textures":
    config.upstream = _pretrain("textures.py").upstream
  elif data == "fractals":  # harder than by default, lest all runs be near 1
    config.upstream.options = dict(classes=60, per_class=100, jitter=1.5, noise=0.1)
  elif ":" in data:
    config.upstream = dict(name=pathlib.PurePath(data.partition(":")[2]).stem, source=data,
                           options={}, fraction=1.0, fraction_seed=0)
  elif data != "cifar10":
    raise ValueError(f"data {data!r}: expected fractals, textures, cifar10, or images of your own "
                     "as folder:/path, npz:/path/file.npz or tfds:name")
  config.name = ""
  config.model = _pretrain("fractals.py").model
  config.batch_size, config.accumulate, config.total_steps = 64, 1, 1000
  config.optim.lr = 2e-3
  config.optim.schedule.warmup_steps = 60
  config.optim.rules = (("head/.*", dict(lr=1.0, wd=BODY_DECAY)), (".*", dict(wd=BODY_DECAY)))
  at_the_end = 10_000  # steps; more than any run takes
  config.evals = dict(
      upstream=dict(kind="classification", every=at_the_end),
      probes=dict(kind="fewshot", every=at_the_end, shots=(1, 5, 10), seeds=(0, 1, 2),
                  l2=(1024.0,), layers="all", tasks=TASKS + MORE_TASKS.get(data, ())),
      geometry=dict(kind="geometry", every=at_the_end, examples=512))
  config.checkpoint.every = at_the_end
  return config


def get_sweep():
  for seed, name in itertools.product(SEEDS, MODELS):
    model = _pretrain(f"fractals.py:{name}").model.to_dict()
    for decay in DECAYS:
      yield {"name": f"{name}, head decay {decay:g}, seed {seed}", "model": model, "seed": seed,
             "optim.rules[0][1].wd": decay}
