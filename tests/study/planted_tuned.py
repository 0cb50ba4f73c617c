"""Fine-tuning runs with planted accuracies, written as a training writes them."""
import json

TASK = {"task": "digits", "variant": "full"}


def row(value, *, step=30, setting="finetune", seed=0, **changes):
  """A row of evaluator "finetune"."""
  return {"step": step, "examples": step * 8, "evaluator": "finetune", "setting": setting,
          "split": "test", "examples_used": 1000, "seed": seed, "metric": "accuracy",
          "value": value} | TASK | changes


def write(root, name, base, rows, *, config=None, seed=0, setting="finetune", status="finished",
          **pretrained):
  """A fine-tuning run's folder, which began from the run in the folder `base`."""
  of_base = json.loads((base / "run.json").read_text())
  folder = root / name
  folder.mkdir(parents=True)
  source = {"source": str(base), "identity": of_base["id"], "step": of_base["step"],
            "what": "params", "head": "zero", "name": of_base["name"],
            "run": {key: of_base.get(key) for key in ("id", "name", "model", "upstream",
                                                      "setting")}} | pretrained
  (folder / "run.json").write_text(json.dumps({
      "id": f"tuned-{name}", "name": name, "status": status, "setting": setting, "step": 30,
      "model": of_base["model"], "seed": seed, "total_steps": 30, "pretrained": source,
      "upstream": {"name": "digits", "classes": 10, "train_examples": 1000}}))
  (folder / "config.json").write_text(json.dumps(
      {"init": {"source": str(base), "head": "zero"}, "seed": seed, "name": name,
       "optim": {"lr": 0.01}, "total_steps": 30} | (config or {})))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
  return folder
