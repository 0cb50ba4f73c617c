"""What the documents name is there, and the rooms keep to themselves."""
import pathlib
import re
import subprocess
import sys

import pytest

from big_transfer.runs import configuring

ROOT = pathlib.Path(__file__).parents[1]


def test_paths_in_the_readme_exist():
  text = (ROOT / "README.md").read_text()
  paths = set(re.findall(r"(?<![\w/.-])((?:big_transfer|configs|launch|tests|\.github)/[\w./-]+\w)",
                         text))
  assert len(paths) > 10
  assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("module", ["train", "sweep", "evaluate", "plan", "study.__main__"])
def test_commands_of_the_readme_explain_themselves(module):
  name = module.removesuffix(".__main__")
  result = subprocess.run([sys.executable, "-m", f"big_transfer.{name}", "--help"],
                          capture_output=True, text=True, check=True)
  assert "usage:" in result.stdout and not result.stderr


def test_config_keys_in_the_readme_can_be_set():
  text = (ROOT / "README.md").read_text()
  pretrain = configuring.load(ROOT / "configs/pretrain/fractals.py")
  transfer = configuring.load(f"{ROOT}/configs/transfer/vit.py:digits,32")
  quoted = re.findall(r"'--config\.([^=']+)=([^']*)'", text)  # as a shell wants brackets quoted
  bare = re.findall(r"(?<!')--config\.([\w.]+)=([^\s'`]+)", text)
  found = quoted + bare
  assert len(found) > 5
  for path, value in found:
    config = transfer if path.startswith("init.") or path.endswith("layer_decay") else pretrain
    configuring.override(config, configuring.parse_values(config, {path: value}))


def test_no_figure_is_missing_in_the_readme():
  assert not re.findall(r"@[A-Z]+@", (ROOT / "README.md").read_text())


def test_flags_in_the_readme_are_taken():
  text = (ROOT / "README.md").read_text()
  for module in ("train", "sweep", "evaluate", "plan", "study"):
    usage = subprocess.run([sys.executable, "-m", f"big_transfer.{module}", "--help"],
                           capture_output=True, text=True, check=True).stdout
    for command in re.findall(rf"-m big_transfer\.{module} (.+)", text):
      for flag in re.findall(r"--(\w+)(?=[ =\n]|$)", command):
        assert f"--{flag}" in usage, f"{module} --{flag}"


def test_the_core_never_imports_tensorflow_or_torch():
  code = ("import big_transfer.train, big_transfer.evaluate, big_transfer.sweep, big_transfer.plan, sys;"
          "import big_transfer.study.__main__;"
          "print([m for m in ('tensorflow', 'torch', 'pickle5') if m in sys.modules])")
  result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True,
                          text=True, check=False)
  assert result.stdout == "[]\n", result.stderr


def test_the_study_needs_no_accelerator_code():
  code = ("import big_transfer.study.__main__, big_transfer.study.saturation, sys;"
          "print('jax' in sys.modules)")
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert result.stdout == "False\n"
