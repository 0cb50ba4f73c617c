"""What TensorFlow Datasets says of the suite's datasets: versions, examples, sizes, manual steps.

Known without the data, so that a task can be described, and its price told, before it is there.

Sources. Examples and `prepared_bytes`: the pages docs/catalog/*.md of the repository
tensorflow/datasets, in an archive's copies (commits such as 0a77a814, 08fa2d73 and 02a380d5, not
the newest; read in November 2026). Three pages are of an earlier version than the one
here, with `pages_of` naming it: what its release notes say changed since then isn't the examples.
Where such a page says "Unknown size", `prepared_bytes` is None; sizes there are of TFRecord files,
in GiB to two digits, and ArrayRecord files are about as large. `download_bytes`: the sum of the
checksum files that tensorflow-datasets 4.9.10 is installed with, hence exact; None where all of it
is downloaded by hand. Everything else is in the installed package, which a test compares with this.
"""
import dataclasses
import functools

from big_transfer.data import tasks as tasks_lib

MIB, GIB = 2 ** 20, 2 ** 30


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A dataset of TensorFlow Datasets.

  Attributes:
    version: the one that the suite's tasks are pinned to.
    splits: examples of each split.
    config: the configuration, None where there is but one.
    classes: of the feature "label"; None where a task makes its label out of others.
    download_bytes: what preparing it downloads; None where unknown.
    prepared_bytes: what it takes once prepared; None where unknown.
    manual: what to download by hand and where from, None where TFDS downloads all.
    homepage: where the dataset comes from.
    pages_of: the version that `splits` and `prepared_bytes` are of, where not `version`.
  """

  version: str
  splits: dict
  config: str | None = None
  classes: int | None = None
  download_bytes: int | None = None
  prepared_bytes: int | None = None
  manual: str | None = None
  homepage: str = ""
  pages_of: str | None = None


CATALOG = {
    "imagenet2012": Dataset(
        "5.1.0", {"train": 1281167, "validation": 50000, "test": 100000}, classes=1000,
        prepared_bytes=round(155.84 * GIB), homepage="https://image-net.org/",
        manual="register at https://image-net.org/download-images, download "
               "ILSVRC2012_img_train.tar (138 GiB) and ILSVRC2012_img_val.tar (6.3 GiB)"),
    "caltech101": Dataset(
        "3.0.2", {"train": 3060, "test": 6084}, classes=102, download_bytes=137414764,
        prepared_bytes=round(132.86 * MIB), homepage="https://doi.org/10.22002/D1.20086",
        pages_of="3.0.1"),
    "cifar10": Dataset(
        "3.0.2", {"train": 50000, "test": 10000}, classes=10, download_bytes=170052171,
        prepared_bytes=round(132.40 * MIB), homepage="https://www.cs.toronto.edu/~kriz/cifar.html"),
    "cifar100": Dataset(
        "3.0.2", {"train": 50000, "test": 10000}, classes=100, download_bytes=168513733,
        prepared_bytes=round(132.03 * MIB), homepage="https://www.cs.toronto.edu/~kriz/cifar.html"),
    "dtd": Dataset(
        "3.0.1", {"train": 1880, "validation": 1880, "test": 1880}, classes=47,
        download_bytes=625239812, prepared_bytes=round(603.00 * MIB),
        homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/index.html"),
    "oxford_flowers102": Dataset(
        "2.1.1", {"train": 1020, "validation": 1020, "test": 6149}, classes=102,
        download_bytes=344878000, prepared_bytes=round(331.34 * MIB),
        homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"),
    "oxford_iiit_pet": Dataset(
        "4.0.0", {"train": 3680, "test": 3669}, classes=37, download_bytes=811092049,
        prepared_bytes=round(774.69 * MIB), homepage="http://www.robots.ox.ac.uk/~vgg/data/pets/",
        pages_of="3.2.0"),
    "sun397": Dataset(
        "4.0.0", {"train": 76128, "validation": 10875, "test": 21750}, config="tfds", classes=397,
        download_bytes=39095590629, homepage="https://vision.princeton.edu/projects/2010/SUN/"),
    "svhn_cropped": Dataset(
        "3.1.0", {"train": 73257, "test": 26032, "extra": 531131}, classes=10,
        download_bytes=1575594780, prepared_bytes=round(1.09 * GIB),
        homepage="http://ufldl.stanford.edu/housenumbers/"),
    "patch_camelyon": Dataset(
        "2.0.0", {"train": 262144, "validation": 32768, "test": 32768}, classes=2,
        download_bytes=8028222167, prepared_bytes=round(7.06 * GIB),
        homepage="https://patchcamelyon.grand-challenge.org/"),
    "eurosat": Dataset(
        "2.0.0", {"train": 27000}, config="rgb", classes=10, download_bytes=94280567,
        homepage="https://github.com/phelber/eurosat"),
    "resisc45": Dataset(
        "3.0.0", {"train": 31500}, classes=45, prepared_bytes=round(407.97 * MIB),
        homepage="http://www.escience.cn/people/JunweiHan/NWPU-RESISC45.html",
        manual="download the archive from https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs and "
               "unpack it"),
    "diabetic_retinopathy_detection": Dataset(
        "3.0.0", {"train": 35126, "validation": 10906, "test": 42670, "sample": 10},
        config="btgraham-300", classes=5, download_bytes=1181257,
        prepared_bytes=round(3.65 * GIB),
        homepage="https://www.kaggle.com/c/diabetic-retinopathy-detection/data",
        manual="accept the terms of https://www.kaggle.com/c/diabetic-retinopathy-detection/data, "
               "download it, and unpack train.zip to train/, test.zip to test/ and sample.zip to "
               "sample/, beside sampleSubmissions.csv and trainLabels.csv"),
    "clevr": Dataset(
        "3.1.0", {"train": 70000, "validation": 15000, "test": 15000}, download_bytes=19021600724,
        prepared_bytes=round(17.75 * GIB),
        homepage="https://cs.stanford.edu/people/jcjohns/clevr/"),
    "dmlab": Dataset(
        "2.0.1", {"train": 65550, "validation": 22628, "test": 22735}, classes=6,
        download_bytes=3017022789, prepared_bytes=round(3.13 * GIB),
        homepage="https://github.com/google-research/task_adaptation"),
    "dsprites": Dataset(
        "2.0.0", {"train": 737280}, download_bytes=28024106,
        homepage="https://github.com/deepmind/dsprites-dataset"),
    "kitti": Dataset(
        "3.3.0", {"train": 6347, "validation": 423, "test": 711}, download_bytes=12575610564,
        prepared_bytes=round(5.27 * GIB), homepage="http://www.cvlibs.net/datasets/kitti/"),
    "smallnorb": Dataset(
        "2.0.0", {"train": 24300, "test": 24300}, download_bytes=262778180,
        homepage="https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/"),
    "caltech_birds2011": Dataset(
        "0.2.0", {"train": 5994, "test": 5794}, classes=200, download_bytes=1189858222,
        prepared_bytes=round(1.11 * GIB), pages_of="0.1.1",
        homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/"),
    "cars196": Dataset(
        "2.1.0", {"train": 8144, "test": 8041}, classes=196, download_bytes=1957136468,
        prepared_bytes=round(1.85 * GIB),
        homepage="https://ai.stanford.edu/~jkrause/cars/car_dataset.html"),
    "colorectal_histology": Dataset(
        "2.0.0", {"train": 5000}, classes=8, download_bytes=258098431,
        prepared_bytes=round(179.23 * MIB),
        homepage="https://zenodo.org/record/53169#.XGZemKwzbmG"),
    "uc_merced": Dataset(
        "2.0.0", {"train": 2100}, classes=21, download_bytes=332468434,
        homepage="http://weegee.vision.ucmerced.edu/datasets/landuse.html"),
}


def of(task: tasks_lib.Task) -> Dataset | None:
  """The dataset a task reads, None if it isn't here, or at another version or configuration."""
  kind, _, rest = task.source.partition(":")
  path, _, version = rest.partition(":")
  name, _, config = path.partition("/")
  found = CATALOG.get(name) if kind == "tfds" else None
  if found and version in ("", found.version) and config in ("", found.config or ""):
    return found
  return None


def examples(task: tasks_lib.Task, split: str) -> int | None:
  """How many examples a task has in "train", "test" or "validation", without the data.

  Returns:
    Their number by TFDS's own slice arithmetic; None where the dataset isn't in the catalogue, or
    the task has no such split.

  Raises:
    ValueError: a split or slice that isn't there, such as "train[:900]" of 800 examples.
  """
  found, instruction = of(task), getattr(task, split, None)
  if found is None or instruction is None:
    return None
  try:
    return _count(instruction, tuple(found.splits.items()))
  except (ValueError, KeyError) as error:
    there = ", ".join(f"{name} {size}" for name, size in found.splits.items())
    raise ValueError(f"task {task.name!r}, split {instruction!r}: {error} Expected a part of what "
                     f"{tasks_lib.dataset(task.source)[5:]} {found.version} has: {there}"
                     ) from error


@functools.lru_cache(maxsize=256)
def _count(instruction: str, splits: tuple) -> int:
  from tensorflow_datasets.core import splits as splits_lib  # half a second, so not at import
  sizes = dict(splits)
  infos = {name: splits_lib.SplitInfo(name=name, shard_lengths=[size], num_bytes=0,
                                      filename_template=None) for name, size in splits}
  parts = splits_lib.ReadInstruction.from_spec(instruction).to_absolute(infos)
  return sum((sizes[part.splitname] if part.to is None else part.to) - (part.from_ or 0)
             for part in parts)
