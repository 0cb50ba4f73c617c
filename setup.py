"""Packaging: `pip install -e .` (add `[test]` for the tests, `[cuda]` or `[tpu]` for an accelerator)."""
import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "big_transfer/__init__.py").read_text()).group(1)

setuptools.setup(
    name="big_transfer",
    version=VERSION,
    description="What does pre-training buy downstream, and where does it stop paying?",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["big_transfer", "big_transfer.*"]),
    package_data={"big_transfer.study": ["page/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "altair>=5.5,<7",
        "array_record>=0.8,<0.9",
        "clu>=0.0.12,<0.1",
        "duckdb>=1.2,<2",
        "flax>=0.12,<0.13",
        "fsspec>=2024.6",
        "grain>=0.2.15,<0.3",
        "jax>=0.10,<0.11",
        "ml-collections>=1.1,<2",
        "ml_dtypes>=0.4",
        "numpy>=2.0,<3",
        "opencv-python-headless>=4.10,<5",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pyarrow>=18",
        "scikit-learn>=1.5,<2",
        "scipy>=1.14,<2",
        "tensorflow-datasets>=4.9.9,<5",
        "threadpoolctl>=3.1",
        "vl-convert-python>=1.7,<2",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.10,<0.11"],
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "ray": ["ray>=2.40,<3"],
        "slurm": ["submitit>=1.5,<2"],
        "gcs": ["gcsfs>=2024.6"],
        "interop": ["safetensors>=0.5,<1", "torch>=2.6,<3", "transformers>=4.57,<6"],
        "tensorboard": ["tensorboard>=2.18,<3"],
        "wandb": ["wandb>=0.19.10,<1"],
        "test": [
            "ipykernel>=6.29,<8",
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "pyyaml>=6,<7",
            "tensorboard>=2.18,<3",
        ],
    },
)
