"""A run's parameters as a public file, as a user asks for it."""
import numpy as np
import pytest

from big_transfer import export as export_lib
from big_transfer import trees
from big_transfer.models import published
from big_transfer.models import transformers_folder
from big_transfer.runs import records
from big_transfer.training import checkpoint
from big_transfer.training import program
from big_transfer.training import settings
from big_transfer.training import step as step_lib
from tests import toy

MODELS = {
    "vit": dict(name="vit", width=16, depth=1, heads=2, mlp_dim=24, patch=8, dtype="bfloat16"),
    "fixed": dict(name="vit", width=16, depth=1, heads=2, mlp_dim=24, patch=8, pool="gap",
                  posemb="sincos2d", head_bias=-3.0),
    "mixer": dict(name="mixer", width=16, depth=1, tokens_mlp_dim=8, channels_mlp_dim=24, patch=8),
    "resnet": dict(name="resnet", depths=(1,), width=0.125, root_kernel=3),
    "slow": dict(name="resnet", depths=(1,), width=0.125, root_kernel=3, root_stride=1)}


@pytest.fixture
def run(request, tmp_path):
  """A run with checkpoints of steps 2 and 4, written without training; returns its parameters."""
  folder = tmp_path / "run"
  config = settings.recorded(toy.config(model=MODELS[request.param], evals={}))
  net = program.network(model=config["model"], classes=4, image_size=config["image_size"])
  rng = np.random.default_rng(0)
  saved = {}
  with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
    for step in (2, 4):
      saved[step] = trees.map_named(
          lambda name, leaf: rng.normal(name.endswith("scale"), 0.3, leaf.shape).astype(np.float32),
          net.shapes)
      checkpoints.save(step_lib.TrainState(np.int32(step), saved[step], (), np.int32(-1)), {})
  with records.Record(folder) as record:
    record.write_config(config)
    record.update_run(id="toy", status="finished")
  return folder, saved


def _same(path, params):
  found = trees.flatten(published.load(path))
  for name, value in trees.flatten(params).items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("run", ["vit"], indirect=True)
def test_the_newest_checkpoint_or_one_of_a_step(run, tmp_path, capsys):
  folder, saved = run
  out = tmp_path / "a.npz"
  export_lib.main(["--workdir", str(folder), "--out", str(out)])
  _same(out, saved[4])
  said = capsys.readouterr().out
  assert f"ViT 16x1/8, step 4, as vit_jax: {out}" in said
  assert f"sha256 {published.digest(out)}" in said and "all outputs are the run's" in said
  assert "trained at 16 pixels" in said
  assert (f"timm.create_model(\"vit_base_patch16_224\", checkpoint_path='{out}', num_classes=4, "
          "img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_ratio=1.5, "
          "act_layer=\"gelu_tanh\")") in said
  done = export_lib.export(folder, out, layout="big_vision", step=2)
  assert done.step == 2 and done.saved.layout == "big_vision" and done.model["pool"] == "tok"
  assert "no_embed_class=True" in export_lib.how_timm_loads(str(out), "big_vision", done.model)
  np.testing.assert_array_equal(published.load(out)["head"]["kernel"], saved[2]["head"]["kernel"])


@pytest.mark.parametrize("run", ["vit"], indirect=True)
def test_a_folder_for_transformers(run, tmp_path, capsys, monkeypatch):
  pytest.importorskip("safetensors", reason="the extra \"interop\" is not installed")
  monkeypatch.setattr(transformers_folder, "_difference", lambda *_: None)  # torch is slow to load
  folder, _ = run
  export_lib.main(["--workdir", str(folder), "--out", str(tmp_path / "hf"), "--layout",
                   "transformers"])
  said = capsys.readouterr().out
  assert "check: none: torch and transformers are not installed" in said
  assert f"AutoModelForImageClassification.from_pretrained('{tmp_path / 'hf'}')" in said
  assert (tmp_path / "hf/config.json").is_file()


@pytest.mark.parametrize("run, says", [
    ("fixed", "class_token=False, global_pool=\"avg\", fc_norm=False"),
    ("mixer", "timm reads no .npz of a Mixer"), ("resnet", "BiT's own sizes alone")],
    indirect=["run"])
def test_every_family(run, says, tmp_path):
  folder, saved = run
  done = export_lib.export(folder, tmp_path / "a.npz")
  _same(tmp_path / "a.npz", saved[4])
  assert done.saved.difference < 1e-6
  assert says in export_lib.how_timm_loads("a.npz", done.saved.layout, done.model)


def test_what_timm_is_told_of_published_sizes():
  bit = dict(name="resnet", depths=(3, 4, 6, 3), width=1.0, root_kernel=7, num_classes=21843)
  assert export_lib.how_timm_loads("a.npz", "bit", bit) == (
      "timm.create_model(\"resnetv2_50x1_bit\", checkpoint_path='a.npz', num_classes=21843)")
  vit = dict(name="vit", width=1152, depth=27, heads=16, mlp_dim=4304, patch=14, pool="tok",
             posemb="learn", representation_size=None, num_classes=9, image_size=224)
  # 4304 / 1152 has no short decimal; timm takes the whole part of width times the ratio.
  assert "mlp_ratio=4304/1152" in export_lib.how_timm_loads("a.npz", "vit_jax", vit)
  assert int(1152 * (4304 / 1152)) == 4304
  assert "no layer before the head" in export_lib.how_timm_loads(
      "a.npz", "vit_jax", {**vit, "representation_size": 1152})
  assert "take the layout \"vit_jax\"" in export_lib.how_timm_loads(
      "a.npz", "big_vision", {**vit, "posemb": "sincos2d"})


@pytest.mark.parametrize("run, arguments, says", [
    ("vit", ["--out", "a.npz", "--layout", "bit"], "bit has no vit; take big_vision or vit_jax"),
    ("vit", ["--out", "a.npz", "--step", "3"], "no checkpoint of step 3"),
    ("vit", ["--out", "folder"], "expected a file's name that ends in .npz"),
    ("slow", ["--out", "a.npz"], "no layout can say that this ResNet has {'root_stride': 1}")],
    indirect=["run"])
def test_what_cannot_be_exported(run, arguments, says, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit, match=says):
    export_lib.main(["--workdir", str(run[0]), *arguments])
  assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_no_run(tmp_path):
  with pytest.raises(SystemExit, match="no run in"):
    export_lib.main(["--workdir", str(tmp_path / "none"), "--out", str(tmp_path / "a.npz")])
