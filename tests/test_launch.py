"""The launch files do what their heads say: against stand-ins for gcloud, srun and the like."""
import ast
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import stat
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
TPU_VM = LAUNCH / "tpu_vm.sh"
FLAGS = ["--config", "configs/pretrain/fractals.py:vit", "--config.optim.rules[0][1].wd=3.0",
         "--config.name=it's \"mine\" $HOME"]
BASE = ["--zone", "us-west4-a", "--name", "mine"]

# Stands for the cloud: the slice's state is a file, a worker a folder that is its home.
GCLOUD = r"""#!/usr/bin/env bash
set -u
printf '%s\n' "$(printf '%q ' "$@")" >> "$CLOUD/calls"
args=("$@") command="" worker=all
for word in "$@"; do
  case $word in --command=*) command=${word#*=} ;; --worker=*) worker=${word#*=} ;; esac
done
[[ $worker != all ]] || worker="0 1"
case "$1 ${4:-}" in
  "compute describe")
    [[ -f $CLOUD/state ]] || { echo "ERROR: NOT_FOUND: no such slice" >&2; exit 1; }
    head -n 1 "$CLOUD/state"
    [[ $(wc -l < "$CLOUD/state") == 1 ]] || sed -i 1d "$CLOUD/state" ;;
  "compute create") printf '%s\n' CREATING READY > "$CLOUD/state" ;;
  "compute start") echo READY > "$CLOUD/state" ;;
  "compute delete") rm "$CLOUD/state" ;;
  "compute ssh")
    for n in $worker; do
      (cd "$CLOUD/worker$n" && HOME=$PWD bash -c "$command") || exit
    done ;;
  "compute scp")
    case " $* " in
      *" --recurse "*) cd "$CLOUD/worker0" && cp -r "${6#*:}" "$OLDPWD/$7" ;;
      *) for n in $worker; do cp "$5" "$CLOUD/worker$n/${6#*:}"; done ;;
    esac ;;
  "storage "*) cp -r "$CLOUD/bucket/${4#gs://*/}/." "$5" ;;
  *) echo "unknown: $*" >&2; exit 1 ;;
esac
"""
# Stands for the interpreter: tells its arguments, and trains until told to stop or to end.
PYTHON = """#!/usr/bin/env bash
trap 'echo saved; exit 143' TERM
printf 'argument: %s\\n' "$@"
echo "data in ${TFDS_DATA_DIR:-nowhere}"
while [[ ! -e $CLOUD/end ]]; do sleep 0.05; done
exit "$(cat "$CLOUD/end")"
"""


def _script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(name="cloud")
def _cloud(tmp_path):
  """A folder with the stand-ins, two workers' homes and a small repository with the script."""
  cloud = tmp_path / "cloud"
  for name in ("worker0", "worker1", "bucket"):
    (cloud / name).mkdir(parents=True)
  _script(cloud / "bin/gcloud", GCLOUD)
  _script(cloud / "bin/python3", '#!/bin/sh\necho "python3 $*"\n')
  _script(cloud / "bin/uv", f'#!/bin/sh\n[ "$2" != find ] || echo {cloud}/bin/trainer\n')
  _script(cloud / "bin/mountpoint", '#!/bin/sh\n[ -h "$2" ]\n')
  _script(cloud / "bin/gcsfuse", '#!/usr/bin/env bash\nrmdir "${@: -1}"\n'
          f'ln -s {cloud}/bucket "${{@: -1}}"\n')
  _script(cloud / "bin/trainer", PYTHON)
  repository = tmp_path / "repository"
  _script(repository / "launch/tpu_vm.sh", TPU_VM.read_text())
  _script(repository / "launch/setup.sh",  # as the real one, it goes to the repository
          'cd "$(dirname "${BASH_SOURCE[0]}")/.."\n'
          'echo "set up: $BIG_TRANSFER_EXTRAS" >> "$HOME/setups"\n'
          f"PYTHON={cloud}/bin/trainer\n")
  for command in (["init", "-q"], ["add", "."],
                  ["-c", "user.name=n", "-c", "user.email=n@e", "commit", "-qm", "all"]):
    subprocess.run(["git", *command], cwd=repository, check=True)
  yield cloud
  (cloud / "end").write_text("1")  # whatever still trains ends


def _environment(cloud):
  ours = {name: value for name, value in os.environ.items() if name != "BIG_TRANSFER_EXTRAS"}
  return {**ours, "CLOUD": str(cloud), "PATH": f"{cloud}/bin:{os.environ['PATH']}",
          "TMPDIR": str(cloud), "BIG_TRANSFER_POLL_SECONDS": "0"}


def _launch(cloud, *arguments, check=True):
  result = subprocess.run(
      [cloud.parent / "repository/launch/tpu_vm.sh", *arguments], env=_environment(cloud),
      cwd=cloud.parent, capture_output=True, text=True, check=False, timeout=60)
  assert not check or result.returncode == 0, result.stdout + result.stderr
  return result


def _commands(text):
  """The commands a run of the script echoed, each a list of words."""
  return [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("+ ")]


def _called(cloud):
  """What gcloud was called for: "create", "ssh", …"""
  path = cloud / "calls"
  return [shlex.split(line)[3] for line in path.read_text().splitlines()] if path.exists() else []


def _remote(words):
  """The words of the command that a gcloud ssh hands to the workers' shell."""
  [command] = [word for word in words if word.startswith("--command=")]
  subprocess.run(["bash", "-n", "-c", command.removeprefix("--command=")], check=True)
  return shlex.split(command.removeprefix("--command="))


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.s*")), ids=lambda path: path.name)
def test_scripts_are_good_shell(path):
  subprocess.run(["bash", "-n", path], check=True)
  assert "set -euo pipefail" in path.read_text()
  assert all(len(line) <= 100 for line in path.read_text().splitlines())
  if shutil.which("shellcheck"):
    subprocess.run(["shellcheck", "--severity=warning", "--external-sources", path], check=True)


def test_a_dry_run_of_everything_prints_every_command_in_order_and_runs_none(cloud):
  result = _launch(cloud, "all", *BASE, "--project", "ours", "--spot", "--dry-run", "--workdir",
                   "/mnt/runs/first", "--", *FLAGS)
  commands = _commands(result.stdout)
  assert not _called(cloud) and not list(cloud.glob("*.tar.gz"))
  gcloud = [words for words in commands if words[0] == "gcloud"]
  assert [words[4] for words in gcloud] == [
      "describe", "create", "scp", "ssh", "ssh", "ssh", "ssh", "ssh", "ssh", "scp"]
  assert all({"--zone=us-west4-a", "--project=ours"} <= set(words) for words in gcloud)
  assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot", "mine"} <= (
      set(gcloud[1]))
  assert "delete" not in result.stdout.split("dry run: nothing was done")[0]
  assert "goes on being billed" not in result.stdout and "the run is in" not in result.stdout
  assert gcloud[2][-1] == gcloud[3][-2] == gcloud[7][-2] == "--worker=all"
  assert _remote(gcloud[3])[-3:] == ["big_transfer/launch/tpu_vm.sh", "worker", "install"]
  assert _remote(gcloud[7]) == [
      "env", "BIG_TRANSFER_EXTRAS=tpu", "big_transfer/launch/tpu_vm.sh", "worker", "start",
      "/mnt/runs/first", "-m", "big_transfer.train", "--distributed", *FLAGS]
  assert gcloud[9][5:7] == ["--recurse", "mine:/mnt/runs/first"]


@pytest.mark.parametrize("command", ["create", "install", "run", "logs", "fetch", "stop", "ssh",
                                     "all"])
@pytest.mark.parametrize("flags", [[], ["--queued"], ["--recreate", "--yes"]])
def test_nothing_but_delete_deletes(cloud, command, flags):
  result = _launch(cloud, command, *BASE, *flags, "--dry-run", "--", *FLAGS)
  assert _commands(result.stdout)
  assert not any("delete" in words for words in _commands(result.stdout))


def test_delete_leaves_the_question_to_gcloud_unless_told(cloud):
  for flags, expected in (([], ["tpu-vm", "delete", "mine", "--zone=us-west4-a"]),
                          (["--yes"], ["tpu-vm", "delete", "mine", "--zone=us-west4-a", "--quiet"]),
                          (["--queued"], ["queued-resources", "delete", "mine",
                                          "--zone=us-west4-a", "--force"])):
    [words] = _commands(_launch(cloud, "delete", *BASE, *flags, "--dry-run").stdout)
    assert words == ["gcloud", "compute", "tpus", *expected]


def test_the_software_goes_with_the_type(cloud):
  for kind, version in (("v4-32", "tpu-ubuntu2204-base"), ("v5litepod-8", "v2-alpha-tpuv5-lite"),
                        ("v5p-8", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e")):
    result = _launch(cloud, "create", *BASE, "--type", kind, "--dry-run")
    assert f"--version={version}" in _commands(result.stdout)[1]
  for command in ("create", "all"):
    unknown = [command, *BASE, "--type", "v9-8", "--dry-run"]
    result = _launch(cloud, *unknown, "--", *FLAGS, check=False)
    assert result.returncode == 2 and "--type v9-8" in result.stderr and not result.stdout
  result = _launch(cloud, *unknown, "--version", "newest", "--", *FLAGS)
  assert "--version=newest" in _commands(result.stdout)[1]


def test_the_command_may_come_after_options_and_ssh_without_one_is_a_shell(cloud):
  [words] = _commands(_launch(cloud, "--dry-run", *BASE, "--worker", "1", "ssh").stdout)
  assert words == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "mine", "--zone=us-west4-a",
                   "--worker=1"]
  assert "create" in _launch(cloud, "--help").stdout


def _with_venv(cloud):
  """Gives the small repository an installed .venv, and a config of its own in its commit."""
  repository = cloud.parent / "repository"
  _script(repository / ".venv/bin/python",
          f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
  (repository / "configs").mkdir()
  shutil.copy(ROOT / "configs/pretrain/fractals.py", repository / "configs/mine.py")
  for command in (["add", "configs"],
                  ["-c", "user.name=n", "-c", "user.email=n@e", "commit", "-qm", "a config"]):
    subprocess.run(["git", *command], cwd=repository, check=True)
  return repository


def test_a_config_that_fails_does_so_before_anything_is_billed(cloud):
  _with_venv(cloud)
  result = _launch(cloud, "all", *BASE, "--", "--config=configs/mine.py:vit",
                   "--config.optm.lr=3", check=False)
  assert result.returncode == 2 and "config key 'optm.lr' is unknown" in result.stderr
  assert not _called(cloud) and not _commands(result.stdout)
  assert "billed" not in result.stdout


@pytest.mark.slow
def test_a_config_is_read_as_the_slice_will(cloud):
  repository = _with_venv(cloud)
  good = _launch(cloud, "all", *BASE, "--dry-run", "--", "--config", "configs/mine.py:vit",
                 "--config.optim.lr=1e-3", "--allow_changes")
  assert _commands(good.stdout) and "note:" not in good.stdout
  (repository / "configs/mine.py").rename(repository / "configs/new.py")
  for spec, said in (("configs/new.py:vit", "is not in the commit"), ("x", "doesn't exist")):
    result = _launch(cloud, "run", *BASE, "--dry-run", "--", "--config", spec, check=False)
    assert result.returncode == 2 and said in result.stderr and not _commands(result.stdout)


def test_a_queued_resource_has_its_own_flags(cloud):
  result = _launch(cloud, "create", *BASE, "--queued", "--dry-run")
  create = _commands(result.stdout)[1]
  assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mine"]
  assert {"--node-id=mine", "--runtime-version=v2-alpha-tpuv5-lite"} <= set(create)


@pytest.mark.parametrize("state, flags, calls", [
    (None, [], ["describe", "create", "describe", "describe"]),
    ("READY", [], ["describe"]),
    ("STARTING\nREADY", [], ["describe", "describe"]),
    ("STOPPED", [], ["describe", "start", "describe"]),
    ("PREEMPTED", ["--recreate"], ["describe", "delete", "create", "describe", "describe"]),
    ("SUSPENDED", ["--queued", "--recreate"],
     ["describe", "delete", "create", "describe", "describe"])])
def test_create_reuses_starts_or_makes(cloud, state, flags, calls):
  if state:
    (cloud / "state").write_text(state + "\n")
  result = _launch(cloud, "create", *BASE, *flags)
  assert _called(cloud) == calls
  assert "goes on being billed" in result.stdout


def test_what_was_taken_away_is_not_deleted_unasked(cloud):
  (cloud / "state").write_text("PREEMPTED\n")
  result = _launch(cloud, "create", *BASE, check=False)
  assert result.returncode == 2 and "--recreate" in result.stderr
  assert _called(cloud) == ["describe"]


def test_a_failure_of_gcloud_ends_it_there_with_its_words(cloud):
  _script(cloud / "bin/gcloud", "#!/bin/sh\necho 'PERMISSION_DENIED: not yours' >&2\nexit 1\n")
  result = _launch(cloud, "all", *BASE, "--", *FLAGS, check=False)
  assert result.returncode == 2 and "PERMISSION_DENIED: not yours" in result.stderr
  assert not any("create" in words for words in _commands(result.stdout))


def test_a_run_on_two_workers_from_install_to_fetch(cloud):
  (cloud / "state").write_text("READY\n")
  workdir = cloud / "share/first"
  shared = [*BASE, "--workdir", str(workdir)]
  _launch(cloud, "install", *shared)
  result = _launch(cloud, "run", *shared, "--env", "TFDS_DATA_DIR=/data sets", "--", *FLAGS)
  assert result.stdout.count(": started") == 2
  assert _launch(cloud, "run", *shared, "--", *FLAGS).stdout.count("going on already") == 2
  assert not list(workdir.glob(".seen*"))
  (workdir / "run.json").write_text("{}")
  (cloud / "end").write_text("0")
  logs = _launch(cloud, "logs", *shared, "--worker", "1").stdout
  said = [line.removeprefix("argument: ") for line in logs.splitlines() if "argument: " in line]
  assert said == ["-m", "big_transfer.train", "--distributed", *FLAGS, "--workdir", str(workdir)]
  assert "data in /data sets" in logs and "exit status 0" in logs
  for n in (0, 1):
    assert (cloud / f"worker{n}/setups").read_text().splitlines()[0] == "set up: tpu"
  _launch(cloud, "fetch", *shared, "--to", "here")
  assert (cloud.parent / "here/first/run.json").read_text() == "{}"


def test_stop_lets_the_run_save_and_says_when_it_has_ended(cloud):
  (cloud / "state").write_text("READY\n")
  shared = [*BASE, "--workdir", str(cloud / "share")]
  _launch(cloud, "install", *shared)
  _launch(cloud, "run", *shared, "--", *FLAGS)
  assert _launch(cloud, "stop", *shared).stdout.count("no run is going on") == 2
  result = _launch(cloud, "logs", *shared, check=False)
  assert result.returncode != 0 and "saved" in result.stdout and "status 143" in result.stdout
  _launch(cloud, "run", *shared, "--", *FLAGS)  # the same command continues
  assert _launch(cloud, "stop", *shared).stdout.count("no run is going on") == 2


def test_a_bucket_is_mounted_on_all_workers_and_fetched_from_itself(cloud):
  (cloud / "state").write_text("READY\n")
  shared = [*BASE, "--workdir", "gs://ours/runs/first"]
  _launch(cloud, "install", *shared)
  _launch(cloud, "run", *shared, "--", *FLAGS)
  _launch(cloud, "stop", *shared)
  (cloud / "bucket/runs/first/run.json").write_text("{}")
  _launch(cloud, "fetch", *shared, "--to", "here")
  assert (cloud.parent / "here/first/run.json").read_text() == "{}"


def test_a_workdir_that_workers_do_not_share_is_refused_before_anything_starts(cloud):
  (cloud / "state").write_text("READY\n")
  _launch(cloud, "install", *BASE)
  result = _launch(cloud, "run", *BASE, "--", *FLAGS, check=False)
  assert result.returncode == 2 and "doesn't see what worker 0 wrote" in result.stderr
  assert "started" not in result.stdout


@pytest.mark.parametrize("arguments, said", [
    (["fly", *BASE], "unknown command 'fly'"),
    (["create"], "--zone: expected one"),
    (["create", "--zone"], "--zone: expected a value"),
    (["create", *BASE, "--chips", "8"], "unknown option '--chips'"),
    (["create", *BASE, "install"], "expected one command; got 'create' and 'install'"),
    (["run", *BASE], "expected flags of big_transfer.train after --"),
    (["run", *BASE, "--", *FLAGS, "--workdir", "x"], "give it before the --"),
    (["run", *BASE, "--workdir", "gs://bucket", "--", *FLAGS], "expected a folder in the bucket"),
    (["logs", *BASE], "nothing was started")])
def test_mistakes_are_told(cloud, arguments, said):
  if arguments[0] == "logs":
    _launch(cloud, "install", *BASE)
  result = _launch(cloud, *arguments, check=False)
  assert result.returncode == 2 and said in result.stderr


def test_without_a_command_it_explains_itself(cloud):
  text = _launch(cloud).stdout
  for word in ("create", "delete", "--spot", "--workdir WHERE"):
    assert word in text
  assert "set -euo" not in text


def _slurm(tmp_path, status, **environment):
  """Runs the job script as Slurm would, with stand-ins; returns (result, calls)."""
  for name in ("srun", "scontrol", "python"):
    code = status if name == "srun" else 0
    _script(tmp_path / f"bin/{name}",
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\nexit {code}\n')
  shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")  # Slurm runs a copy of it
  result = subprocess.run(
      ["bash", tmp_path / "slurm_script", "--config", "a b", "--workdir", "w"],
      capture_output=True, text=True, check=False, env={
          "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
          "SLURM_SUBMIT_DIR": str(tmp_path), "PYTHON": f"{tmp_path}/bin/python", **environment})
  calls = tmp_path / "calls"
  return result, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("status, restarts, requeued", [
    (0, "0", False), (1, "0", False), (143, "0", True), (143, "99", True), (143, "100", False)])
def test_a_slurm_job_queues_again_when_it_was_stopped(tmp_path, status, restarts, requeued):
  result, calls = _slurm(tmp_path, status, SLURM_RESTART_COUNT=restarts)
  assert result.returncode == status
  assert calls[0] == (f"srun --kill-on-bad-exit=0 {tmp_path}/bin/python -m big_transfer.train "
                      "--distributed --config a b --workdir w")
  assert calls[1:] == (["scontrol requeue 7"] if requeued else [])


def test_a_slurm_job_without_an_install_says_so(tmp_path):
  result, calls = _slurm(tmp_path, 0, PYTHON="", SLURM_SUBMIT_DIR=str(tmp_path))
  assert result.returncode == 2 and "run launch/setup.sh" in result.stderr and not calls


def test_a_slurm_job_that_is_started_as_a_command_says_how(tmp_path):
  result, calls = _slurm(tmp_path, 0, SLURM_JOB_ID="")
  assert result.returncode == 2 and "sbatch launch/slurm.sbatch --config" in result.stderr
  assert not calls


def test_slurm_is_told_to_warn_and_to_requeue():
  told = [line.split()[1] for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()
          if line.startswith("#SBATCH")]
  assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= set(told)
  assert "--gpus-per-node=8" in told and "--ntasks-per-node=8" in told


def test_the_ray_cluster_is_one_that_ray_takes():
  yaml = pytest.importorskip("yaml", reason="pyyaml isn't installed")
  config = yaml.safe_load((LAUNCH / "ray_tpu.yaml").read_text())
  kinds = config["available_node_types"]
  assert config["provider"]["type"] == "gcp" and config["head_node_type"] in kinds
  head, tpu = kinds["head"], kinds["tpu"]
  assert head["resources"]["CPU"] == 0  # no trial lands there
  assert tpu["node_config"]["acceleratorType"] and tpu["node_config"]["runtimeVersion"]
  assert tpu["max_workers"] == config["max_workers"] and tpu["min_workers"] == 0
  for name in ("head", "worker"):
    commands = [*config["setup_commands"], *config[f"{name}_setup_commands"],
                *config[f"{name}_start_ray_commands"]]
    for command in commands:
      subprocess.run(["bash", "-n", "-c", command], check=True)
  zone = config["provider"]["availability_zone"]
  assert zone.startswith(config["provider"]["region"] + "-")


def test_ray_itself_knows_the_fields_and_the_chips():
  yaml = pytest.importorskip("yaml", reason="pyyaml isn't installed")
  pytest.importorskip("ray", reason="the extra [ray] isn't installed")
  jsonschema = pytest.importorskip("jsonschema", reason="it comes with ray")
  code = ("import json, os, sys, ray.autoscaler\n"
          "from ray._private.accelerators import TPUAcceleratorManager as manager, tpu\n"
          "schema = os.path.join(os.path.dirname(ray.autoscaler.__file__), 'ray-schema.json')\n"
          "kind = sys.argv[1]\n"
          "print(json.dumps([json.load(open(schema)),"
          " manager.is_valid_tpu_accelerator_type(kind),"
          " tpu.get_num_tpu_visible_chips_per_host(kind)]))")
  config = yaml.safe_load((LAUNCH / "ray_tpu.yaml").read_text())
  worker = config["available_node_types"]["tpu"]
  result = subprocess.run(
      [sys.executable, "-c", code, worker["node_config"]["acceleratorType"]], capture_output=True,
      text=True, check=True, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
  schema, valid, chips = json.loads(result.stdout)
  jsonschema.validate(config, schema)
  assert valid and chips == worker["resources"]["TPU"]


def test_the_sweeps_that_launch_files_name_take_their_flags():
  usage = subprocess.run([sys.executable, "-m", "big_transfer.sweep", "--help"],
                         capture_output=True, text=True, check=True).stdout
  for name in ("slurm.sbatch", "ray_tpu.yaml"):
    text = re.sub(r"\\\n# +", "", (LAUNCH / name).read_text())
    [command] = re.findall(r"-m big_transfer\.sweep (.+)", text)
    flags = re.findall(r"--\w+", command)
    assert "--engine" in flags
    assert [flag for flag in flags if flag not in usage] == []


def _notebook():
  nbformat = pytest.importorskip("nbformat", reason="the extra [test] isn't installed")
  notebook = nbformat.read(LAUNCH / "colab.ipynb", as_version=4)
  nbformat.validate(notebook)
  return notebook


def test_the_notebook_is_stored_clean():
  cells = _notebook().cells
  assert len({cell.id for cell in cells}) == len(cells)
  for cell in cells:
    assert max(map(len, cell.source.splitlines())) <= 100
    if cell.cell_type == "code":
      assert not cell.outputs and cell.execution_count is None
      ast.parse(cell.source)


def test_the_notebook_asks_for_its_repository_before_it_clones_anything(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
  with pytest.raises(ValueError, match="REPOSITORY is still .*put the address of your copy"):
    exec(_notebook().cells[1].source, {})  # what a cell is for


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
  nbclient = pytest.importorskip("nbclient", reason="the extra [test] isn't installed")
  pytest.importorskip("ipykernel", reason="the extra [test] isn't installed")
  monkeypatch.delenv("XLA_FLAGS", raising=False)  # a user has one device, not the tests' eight
  notebook = _notebook()
  nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={
      "metadata": {"path": str(tmp_path)}}).execute()
  outputs = [output for cell in notebook.cells if cell.cell_type == "code"
             for output in cell.outputs]
  text = "".join(output.get("text", "") for output in outputs)
  assert "finished" in text and "12 finished" in text and "saturates at" in text
  assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
  assert (tmp_path / "runs/colab/study/report.html").stat().st_size > 100_000
