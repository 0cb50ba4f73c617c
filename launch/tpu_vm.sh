#!/usr/bin/env bash
# One run on a slice of Cloud TPU VMs, steered from a laptop with gcloud and git.
#   launch/tpu_vm.sh COMMAND --zone ZONE [options] [-- flags of big_transfer.train]
#
#   create    makes the slice, or goes on with the one of that name; from here on it is billed
#   install   copies the commit that is checked out to every worker and installs it there
#   run       starts training on every worker; it survives the connection. Again: continues the run
#   logs      follows what a worker prints until the run ends; Ctrl-C leaves the run alone
#   fetch     copies the run's folder here; only what is new if it is in a bucket
#   stop      asks the run to save and to end
#   ssh       runs what follows -- on every worker; without any, a shell on worker N
#   delete    gives the slice back, which ends the bill; what is on its own disks is lost
#   all       create, install, run, logs, fetch: the slice stays
#
#   launch/tpu_vm.sh all --zone us-west4-a --workdir gs://BUCKET/runs/first --dry-run -- \
#     --config configs/pretrain/fractals.py:vit
#
#   --zone ZONE        where, such as us-west4-a
#   --name NAME        of the slice (big-transfer)
#   --project ID       whom to bill (gcloud's own default)
#   --type TYPE        v5litepod-16, v4-32, v6e-8, ... (v5litepod-16)
#   --version VERSION  the VMs' software (what Google names for TYPE)
#   --spot             cheaper, and may be taken away at any moment
#   --queued           ask for a queued resource, and wait until there is one
#   --recreate         a slice that was taken away is deleted and made anew
#   --workdir WHERE    the run's folder: gs://BUCKET/PATH (mounted with gcsfuse), or a path on the
#                      workers (runs/NAME in the home folder). All workers of a slice must see it.
#                      For a Filestore share, mount it first:
#                        launch/tpu_vm.sh ssh --zone ZONE -- 'sudo mkdir -p /mnt/runs && sudo
#                          mount -t nfs HOST:/SHARE /mnt/runs && sudo chmod 1777 /mnt/runs'
#   --to FOLDER        where fetch puts the folder (runs)
#   --env KEY=VALUE    for the run, may be repeated. Data has to be where all workers see it, as on
#                      a share: --env TFDS_DATA_DIR=/mnt/runs/data
#   --worker N         whose logs or shell (0)
#   --yes              delete without asking
#   --dry-run          print every command and run none
#
# BIG_TRANSFER_EXTRAS=tpu,tensorboard installs more (default: tpu). Every command is echoed with a +
# before it. Where .venv is installed here, all and run read the config before anything is billed.
# With several workers gcloud wants `ssh-add ~/.ssh/google_compute_engine` once before.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
extras=${BIG_TRANSFER_EXTRAS:-tpu}
notes=${HOME:-.}/big_transfer-run  # on a worker: pid, exit status and output of the run
on_vm=big_transfer/launch/tpu_vm.sh

die() {
  echo "error: $*" >&2
  exit 2
}

# --- on a worker: launch/tpu_vm.sh worker ACTION ..., as the laptop's part calls it ---

worker() {
  local action=$1
  shift
  mkdir -p "$notes"
  "worker_$action" "$@"
}

# The VMs' own Python is too old (3.10), so uv brings one.
worker_install() {
  python3 -m pip install --user --quiet --upgrade uv
  export PATH=$HOME/.local/bin:$PATH UV_PYTHON_PREFERENCE=only-managed PYTHON
  uv python install --quiet 3.12
  PYTHON=$(uv python find 3.12)
  "$here/setup.sh"
}

worker_mount() {  # BUCKET
  local folder=$HOME/buckets/$1
  command -v gcsfuse > /dev/null || die "there is no gcsfuse on $(hostname): install it on all" \
    "workers (cloud.google.com/storage/docs/cloud-storage-fuse/install), or give a --workdir on" \
    "a Filestore share"
  mkdir -p "$folder"
  # Checkpoints are renamed when they are whole; and what one worker writes others must see at once.
  mountpoint -q "$folder" || gcsfuse --implicit-dirs --rename-dir-limit=100000 \
    --metadata-cache-ttl-secs=0 "$1" "$folder"
}

worker_mark() {  # WORKDIR NONCE
  mkdir -p "$1"
  rm -f "$1"/.seen-*  # of an attempt that failed
  touch "$1/.seen-$2"
}

worker_see() {  # WORKDIR NONCE
  [[ -e $1/.seen-$2 ]] || die "worker $(hostname) doesn't see what worker 0 wrote to $1: expected" \
    "a --workdir that all workers share, since each saves a part of every checkpoint; use" \
    "gs://BUCKET/PATH, or mount a Filestore share (see the head of launch/tpu_vm.sh)"
}

worker_unmark() {  # WORKDIR NONCE
  rm -f "$1/.seen-$2"
}

worker_running() {
  [[ -f $notes/pid ]] && kill -0 "$(cat "$notes/pid")" 2> /dev/null
}

worker_start() {  # WORKDIR, arguments of Python
  local workdir
  workdir=$(mkdir -p "$1" && cd "$1" && pwd)
  shift
  if worker_running; then
    echo "$(hostname): a run is going on already; see logs, or stop it first"
    return
  fi
  source "$here/setup.sh"  # goes to the repository, sets PYTHON
  rm -f "$notes/status"
  echo "$(date): $* --workdir $workdir" >> "$notes/log.txt"
  # A session of its own, which no hangup reaches. The trap lets it note the status after a TERM,
  # which the run itself gets too.
  nohup setsid bash -c 'trap : TERM; "$@"; echo $? > "$0"' "$notes/status" \
    "$PYTHON" "$@" --workdir "$workdir" >> "$notes/log.txt" 2>&1 < /dev/null &
  echo $! > "$notes/pid"
  echo "$(hostname): started"
}

worker_follow() {
  [[ -f $notes/pid ]] || die "nothing was started on $(hostname): launch/tpu_vm.sh run ..."
  tail --pid="$(cat "$notes/pid")" --lines=200 --follow=name "$notes/log.txt"
  local status
  status=$(cat "$notes/status" 2> /dev/null || echo "unknown: it was killed")
  echo "the run ended with exit status $status"
  [[ $status == 0 ]]
}

worker_stop() {
  if worker_running; then
    local pid
    pid=$(cat "$notes/pid")
    kill -TERM -- "-$pid"
    timeout 900 tail --pid="$pid" --follow /dev/null || die "the run on $(hostname) hasn't ended" \
      "15 minutes after SIGTERM; launch/tpu_vm.sh logs shows what it does"
  fi
  echo "$(hostname): no run is going on"
}

# --- on the laptop ---

say() {
  echo "$*" >&3
}

quoted() {  # words, as a shell reads them again
  local word space=""
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./~-]+$ ]]; then
      word="'$(sed "s/'/'\\\\''/g" <<< "$word")'"
    fi
    printf '%s%s' "$space" "$word"
    space=" "
  done
}

echoed() {
  say "+ $(quoted "$@")"
  if [[ -z $dry_run ]]; then
    "$@" 3>&-
  fi
}

slice() {  # VERB, flags
  local verb=$1
  shift
  echoed gcloud compute tpus "$kind" "$verb" "$name" "${where[@]}" "$@"
}

on_worker() {  # WHICH TEXT OF A COMMAND
  echoed gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

# Prints the state of the slice, or ABSENT.
state_of() {
  local answer format="value(state)"
  [[ $kind == queued-resources ]] && format="value(state.state)"
  if [[ -n $dry_run ]]; then
    slice describe "--format=$format"
    echo ABSENT
  elif answer=$(slice describe "--format=$format" 2>&1); then
    grep -Ex '[A-Z_]+' <<< "$answer" | tail -n 1
  elif grep -q NOT_FOUND <<< "$answer"; then
    echo ABSENT
  else
    die "gcloud can't say how $name is: $answer"
  fi
}

create() {
  local state told=""
  while true; do
    state=$(state_of)
    case $state in
      READY | ACTIVE)
        say "$name is there: using it"
        return ;;
      ABSENT) make ;;
      STOPPED) slice start ;;
      PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        [[ -n $recreate ]] || die "$name is $state and can't be started again: add --recreate," \
          "which deletes what is left of it and makes a new one; a run in a --workdir that isn't" \
          "on its own disks goes on"
        remove --quiet
        make ;;
      *)
        [[ $state == "$told" ]] || say "$name is $state; waiting (Ctrl-C doesn't take it back)"
        told=$state
        sleep "${BIG_TRANSFER_POLL_SECONDS:-20}" ;;
    esac
    [[ -z $dry_run ]] || return 0
  done
}

make() {
  local software=--version flags=("--accelerator-type=$type")
  if [[ $kind == queued-resources ]]; then
    software=--runtime-version
    flags+=("--node-id=$name")
  fi
  [[ -z $spot ]] || flags+=(--spot)
  slice create "${flags[@]}" "$software=$version"
}

# Google's choice for a type of slice, empty for one that is not known.
version_of() {  # TYPE
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

# Reads the config as every worker will, before anything is billed.
check_config() {
  local python=$here/../.venv/bin/python
  if [[ ! -x $python ]]; then
    say "note: there is no .venv here (launch/setup.sh makes it), so the config is read on the" \
      "slice first"
    return
  fi
  (cd "$here/.." && JAX_PLATFORMS=cpu "$python" - "${flags[@]}") << 'EOF' || exit 2
import argparse
import os
import subprocess
import sys

from big_transfer import train
from big_transfer.runs import configuring

texts, others = configuring.split_arguments(sys.argv[1:])
parser = argparse.ArgumentParser(prog="launch/tpu_vm.sh", usage="... -- FLAGS OF TRAIN")
parser.add_argument("--config", required=True)
spec = parser.parse_known_args(others)[0].config
path = spec.split(":")[0]
try:
  config = configuring.load(spec)
  train.program_key(configuring.override(config, configuring.parse_values(config, texts)))
except ValueError as error:
  sys.exit(f"error: {error}\nnothing was started: mend the flags after --")
if not os.path.isabs(path) and subprocess.run(
    ["git", "cat-file", "-e", f"HEAD:{os.path.normpath(path)}"], capture_output=True).returncode:
  sys.exit(f"error: {path} is not in the commit that is checked out, which is what the slice gets: "
           "commit it")
EOF
}

install() {
  local commit archive
  commit=$(git -C "$here/.." rev-parse --short HEAD) || die "expected a git checkout: the commit" \
    "that is checked out is what is installed"
  archive=${TMPDIR:-/tmp}/big_transfer-$commit.tar.gz
  [[ -z $(git -C "$here/.." status --porcelain) ]] || say "warning: uncommitted changes stay here"
  echoed git -C "$here/.." archive --prefix=big_transfer/ --output="$archive" HEAD
  echoed gcloud compute tpus tpu-vm scp "$archive" "$name:big_transfer.tar.gz" "${where[@]}" \
    --worker=all
  echoed rm "$archive"
  local parts=big_transfer/
  on_worker all "rm -rf ${parts}big_transfer ${parts}configs ${parts}launch ${parts}tests && tar \
-xzf big_transfer.tar.gz && BIG_TRANSFER_EXTRAS=$(quoted "$extras") $on_vm worker install"
}

start() {
  local seen
  seen=$(quoted "$remote" "$RANDOM$RANDOM")
  [[ -z $bucket ]] || on_worker all "$on_vm worker mount $(quoted "$bucket")"
  on_worker 0 "$on_vm worker mark $seen"
  on_worker all "$on_vm worker see $seen"
  on_worker 0 "$on_vm worker unmark $seen"
  on_worker all "$(quoted env "BIG_TRANSFER_EXTRAS=$extras" \
    ${environment[@]+"${environment[@]}"} "$on_vm" worker start "$remote" \
    -m big_transfer.train --distributed ${flags[@]+"${flags[@]}"})"
}

logs() {
  on_worker "$which" "$on_vm worker follow"
}

fetch() {
  local folder=$to/${workdir##*/}
  echoed mkdir -p "$folder"
  if [[ -n $bucket ]]; then
    echoed gcloud storage rsync --recursive "$workdir" "$folder" ${project:+"--project=$project"}
  else
    echoed gcloud compute tpus tpu-vm scp --recurse "$name:$remote" "$to" "${where[@]}" --worker=0
  fi
  [[ -n $dry_run ]] || say "the run is in $folder"
}

remove() {
  local flags=("$@")
  [[ $kind != queued-resources ]] || flags+=(--force)
  slice delete ${flags[@]+"${flags[@]}"}
}

remind() {
  local delete="launch/tpu_vm.sh delete --name $name ${where[*]}${queued:+ --queued}"
  if [[ -n $dry_run ]]; then
    say "dry run: nothing was done. Without --dry-run, $name is billed from create until:  $delete"
  else
    say "$name goes on being billed until:  $delete"
  fi
}

if [[ ${1:-} == worker ]]; then
  shift
  worker "$@"
  exit
fi
exec 3>&1  # where commands are echoed
command="" zone="" name=big-transfer project="" type=v5litepod-16 version="" spot="" queued=""
recreate="" workdir="" to=runs which=0 yes="" dry_run="" environment=() flags=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --zone | --name | --project | --type | --version | --workdir | --to | --env | --worker)
      [[ $# -gt 1 ]] || die "$1: expected a value after it"
      case $1 in
        --env) environment+=("$2") ;;
        --worker) which=$2 ;;
        *) printf -v "${1#--}" %s "$2" ;;
      esac
      shift 2 ;;
    --spot | --queued | --recreate | --yes) printf -v "${1#--}" yes && shift ;;
    --dry-run) dry_run=yes && shift ;;
    --) shift && flags=("$@") && break ;;
    -h | --help) command=help && shift ;;
    [!-]*)
      [[ -z $command ]] || die "expected one command; got '$command' and '$1' (train's flags come" \
        "after --)"
      command=$1 && shift ;;
    *) die "unknown option '$1': launch/tpu_vm.sh alone lists them; train's flags come after --" ;;
  esac
done
case $command in
  create | install | run | logs | fetch | stop | ssh | delete | all) ;;
  "" | help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" && exit ;;
  *) die "unknown command '$command': expected create, install, run, logs, fetch, stop, ssh," \
       "delete or all" ;;
esac
[[ -n $zone ]] || die "--zone: expected one, such as us-west4-a (see: gcloud compute tpus" \
  "locations list)"
where=("--zone=$zone" ${project:+"--project=$project"})
kind=tpu-vm
[[ -z $queued ]] || kind="queued-resources"
workdir=${workdir:-runs/$name}
workdir=${workdir%/} bucket="" remote=${workdir%/}
if [[ $workdir == gs://* ]]; then
  bucket=${workdir#gs://} remote=buckets/${workdir#gs://}
  [[ $bucket == */?* ]] || die "--workdir $workdir: expected a folder in the bucket, such as" \
    "gs://BUCKET/runs/first"
  bucket=${bucket%%/*}
fi
case $command in
  run | all)
    [[ " ${flags[*]-} " == *" --config"* ]] || die "expected flags of big_transfer.train after" \
      "--, such as: -- --config configs/pretrain/fractals.py:vit"
    [[ " ${flags[*]-} " != *" --workdir"* ]] || die "--workdir: give it before the --" ;;
esac
version=${version:-$(version_of "$type")}
case $command in
  create | all) [[ -n $version ]] || die "--type $type: its --version isn't known here; see" \
    "cloud.google.com/tpu/docs/runtimes, and give both" ;;
esac
case $command in run | all) check_config ;; esac
# Never f && g: within an f so called, set -e doesn't hold.
case $command in
  create | install | logs | fetch) "$command" ;;
  run) start ;;
  stop) on_worker all "$on_vm worker stop" ;;
  ssh)
    if [[ -n ${flags[*]-} ]]; then
      on_worker all "${flags[*]}"
    else
      echoed gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$which"
    fi ;;
  delete) remove ${yes:+--quiet} ;;
  all)
    trap remind EXIT  # also where a step of it fails
    create
    install
    start
    logs
    fetch ;;
esac
case $command in create | run | stop) remind ;; esac
