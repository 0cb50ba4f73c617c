"""The folder for `transformers`, as far as can be seen without it; test_interop.py loads it."""
import json

import numpy as np
import pytest

from big_transfer.models import transformers_folder
from tests.models import examples


def test_a_folder_of_arrays_with_outputs_first(tmp_path, monkeypatch):
  safetensors = pytest.importorskip("safetensors.numpy",
                                    reason="the extra \"interop\" is not installed")
  monkeypatch.setattr(transformers_folder, "_difference", lambda *_: None)  # torch is slow to load
  params = examples.params("tok")
  saved = transformers_folder.save(tmp_path / "folder", params, model=examples.build("tok"),
                                   image_size=32)
  assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
      "config.json", "model.safetensors", "preprocessor_config.json"]
  assert saved.difference is None and saved.layout == "transformers"
  config = json.loads((tmp_path / "folder/config.json").read_text())
  assert config["hidden_act"] == "gelu_pytorch_tanh" and config["layer_norm_eps"] == 1e-6
  assert len(config["id2label"]) == 5
  found = safetensors.load_file(tmp_path / "folder/model.safetensors")
  attention = params["Transformer"]["encoderblock_1"]["MultiHeadDotProductAttention_0"]
  prefix = "vit.encoder.layer.1.attention."
  np.testing.assert_array_equal(found[prefix + "attention.query.weight"],
                                attention["query"]["kernel"].reshape(32, 32).T)
  np.testing.assert_array_equal(found[prefix + "output.dense.weight"],
                                attention["out"]["kernel"].reshape(32, 32).T)
  np.testing.assert_array_equal(found["classifier.weight"], params["head"]["kernel"].T)


@pytest.mark.parametrize("kind, overrides, says", [
    ("mixer", {}, "it has no Mixer"), ("gap", {}, "pools a class token alone"),
    ("tok", {"posemb": "sincos2d"}, "learns its positions"),
    ("tok", {"representation_size": 8}, "no layer before the head"),
    ("resnet", {"root_kernel": 3}, "BiT's root alone"),
    ("resnet", {"width": 0.25}, "channels by the 32 alone")])
def test_models_that_it_has_not(tmp_path, kind, overrides, says):
  with pytest.raises(ValueError, match=f"transformers has no such model: .*{says}"):
    transformers_folder.save(tmp_path / "folder", examples.params(kind),
                             model=examples.build(kind, **overrides), image_size=32)
  assert not (tmp_path / "folder").exists()
