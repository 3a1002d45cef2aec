# What every recipe's run.sh shares: arguments, paths, the stage ladder. Sourced, never run.
# A run file sources it with its own arguments: . recipes/common.sh "$@"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
recipe=$(basename "$(dirname "$0")")

fail() { printf '%s\n' "$@" >&2; exit 2; }

usage() {
  cat <<TEXT
make demo                        all stages on the generated corpus   (size=tiny|default|large)
make stage3 split=testA          one stage
make compare split=val           the systems of all recipes side by side: exp/<data>/compare/<split>/report.html
make reproduce submission=ID     a package again from its manifest, byte by byte (klassify ledger lists the ids)

stages of recipe=$recipe
$(sed -n 's/^if stage \([0-9]\) "\([^"]*\)".*/  stage\1  \2/p' "$0")

variables (on the command line, or in local.mk to keep them)
  recipe=klassify                which recipe: $(for r in recipes/*/run.sh; do basename "$(dirname "$r")"; done | paste -sd' ')
  data=avdeepfake1mpp            the data set, a level of every path: $datasets
  root=DIR                       folder of its media and metadata (data=demo makes its own)
  split=NAME[,NAME]              default: all lists in stages 0 and 1, testA and testB in 3, val and labelled tests in 4
  system=NAME[,NAME]             limits stages 2 to 4
  from=avdeepfake1mpp            whose systems data=fakeavceleb tests: it has nothing to train on (stages 0, 1, 3, 4)
  conf=paper                     the folder of configs (default: demo for data=demo, else paper)
  submit1=SYSTEM submit2=SYSTEM  what is packaged, instead of the conf's choice
  vqvae=FILE lmm=FOLDER          multibranch: given weights instead of a training; the LMM and where it lies
  audio=cache                    stage 1 also decodes all audio once, 32 kB a second: crops are then read many times faster
  seed=1                         of training; another seed has its own folder
  size=default                   of the generated corpus: tiny, default, large
  jobs=N                         processes of stages 0 and 1
  devices=1 workers=0            of a training: GPUs (a number, or auto), processes a GPU that read; workers of scoring too
  force=1                        make outputs again that were made with other settings
  dry=1                          print the commands only

on a Slurm cluster (docs/cluster.md); keep the site's values in local.mk
  launcher=slurm                 stage 1 submits arrays of shards and ends; stages 2 and 3 stay until their jobs are done
  shards=64 parallel=N           shards of a list, tasks that run at once (default: all)
  time=04:00:00 train_time=TIME  limit of a task, and of a training, which then goes on from its last checkpoint
  nodes=1 gpus=0                 of a training; with gpus, tasks that run a model take one GPU each
  partition=P gpu_partition=P    for CPU and for GPU work (default: the site's own)
  account=A modules='M N'        what sbatch --account and module load take
  sbatch='--OPTION=VALUE ...'    further options of sbatch
TEXT
}

datasets="avdeepfake1mpp avdeepfake1m lavdf fakeavceleb demo"
known="split data from size root conf system submit1 submit2 vqvae lmm audio seed jobs devices workers force dry"
known+=" launcher shards parallel time train_time nodes gpus partition gpu_partition account modules sbatch"
launcher='' shards=64 parallel='' time='' train_time='' nodes=1 gpus=0 partition='' gpu_partition='' account='' modules='' sbatch=''
comparing='' waiting='' first=0 last=4 split='' data=avdeepfake1mpp from='' size=default root='' conf='' system='' submit1='' submit2='' vqvae='' lmm='' audio='' seed=1
jobs='' devices='' workers='' force='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage; exit 0 ;;
    --compare) comparing=1 ;;
    --wait) waiting=1 ;;  # for what stage 1 sends to a cluster: the next stage follows at once
    --stage) first=$2; shift ;;
    --stop-stage) last=$2; shift ;;
    *=*)
      name=${1%%=*}
      [[ " $known " == *" $name "* ]] || fail "unknown variable $name. Known: $known"
      printf -v "$name" '%s' "${1#*=}" ;;
    *) fail "$1 is neither an option nor name=value; see make help" ;;
  esac
  shift
done

[[ " $datasets " == *" $data "* ]] || fail "unknown data=$data. Known: $datasets"
[[ " tiny default large " == *" $size "* ]] || fail "unknown size=$size. Known: tiny default large"
[[ $seed =~ ^[0-9]+$ && $jobs =~ ^([1-9][0-9]*)?$ ]] || fail "seed= and jobs= are whole numbers, jobs= 1 or more"
[[ $audio == '' || $audio == cache ]] || fail "audio= takes one value: cache"
[[ $devices =~ ^(auto|[1-9][0-9]*)?$ && $workers =~ ^[0-9]*$ ]] || fail "devices= is a number or auto, workers= a number"
[[ $system =~ ^[A-Za-z0-9_,]*$ ]] || fail "system=$system: names of systems with commas between"

[[ $launcher =~ ^(local|slurm)?$ ]] || fail "unknown launcher=$launcher. Known: local slurm"
[[ $nodes$shards =~ ^[1-9][0-9]*$ && $gpus$parallel =~ ^[0-9]+$ ]] || fail "shards=, parallel=, nodes= and gpus= are whole numbers, shards= and nodes= 1 or more"
# on a cluster, jobs= are the CPUs of a task, not those of the machine that submits
[ "$launcher" != slurm ] || [ -n "$jobs" ] || jobs=1
jobs=${jobs:-$(nproc)}

# the sizes of the demo have folders of their own, so that one never mixes with another
folder_of() { if [ "$1" = demo ] && [ "$size" != default ]; then echo "demo-$size"; else echo "$1"; fi; }
name=$(folder_of "$data")
# FakeAVCeleb is only tested on: its scores lie with the systems of another data set, under its own name as the split
if [ "$data" = fakeavceleb ]; then
  from=${from:-avdeepfake1mpp}
  [[ " $datasets " == *" $from "* && $from != "$data" ]] || fail "unknown from=$from: whose systems are tested on $data?"
elif [ -n "$from" ]; then
  fail "from= goes with data=fakeavceleb: $data has systems of its own"
fi
trained=${from:-$data}
if [ "$data" = demo ]; then media=${root:-media/$name}; else media=$root; fi
if [ "$trained" = demo ]; then conf=${conf:-demo}; else conf=${conf:-paper}; fi
conf_dir=recipes/$recipe/conf/$conf
[ -d "$conf_dir" ] || fail "unknown conf=$conf. There are: $(ls "recipes/$recipe/conf" | paste -sd' ')"
lists=data_lists/$name features=features/$name exp=exp/$(folder_of "$trained")/$recipe submissions=submissions/$name/$recipe
seed_folder=
[ "$seed" = 1 ] || seed_folder=/seed-$seed
exp=$exp$seed_folder submissions=$submissions$seed_folder
sources=(--lists "$lists" --media "$media" --features "$features")
forced=(${force:+--force})
reading=(${workers:+--workers "$workers"}) training=(${devices:+--devices "$devices"} ${workers:+--workers "$workers"})
variables="data=$data${from:+ from=$from}${root:+ root=$root}$([ "$trained" != demo ] || [ "$size" = default ] || echo " size=$size")$([ "$seed" = 1 ] || echo " seed=$seed")"
PATH=$PWD/.venv/bin:$PATH
# the demo's models are too small to gain from a second thread
[ "$trained" = demo ] && threads=1 || threads=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} TOKENIZERS_PARALLELISM=false
# a stage that fails, or is interrupted, takes with it what runs beside it, and what that has started
trap 'for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done' EXIT

# beside COMMAND...: run at the same time as what follows, in a process group of its own; wait $! gives its status
beside() { set -m; "$@" & set +m; }

# stage N "what it does": true when it is asked for
stage() {
  [ "$1" -ge "$first" ] && [ "$1" -le "$last" ] || return 1
  if [ "$1" = 2 ] && [ -n "$from" ]; then
    [ "$first" -lt 2 ] || fail "data=$data is only tested on." "  fix:   make stage2 recipe=$recipe data=$from"
    return 1
  fi
  echo "== stage $1: $2  [$variables conf=$conf]"
}

# on_cluster COMMAND...: what sends it to Slurm, in the array launched; nothing for what runs here in seconds
on_cluster() {
  local site=$partition limit=$time word gpu=
  launched=()
  [ "$launcher" = slurm ] && [ "$1" = klassify ] || return 0
  case "$2 $*" in
    extract*"--kind lmm"* | extract*"--kind reconstruction"* | score*) gpu=$gpus launched=(--shards "$shards" ${parallel:+--max-parallel "$parallel"}) ;;
    extract*) launched=(--shards "$shards" ${parallel:+--max-parallel "$parallel"}) ;;
    train*) gpu=$gpus limit=${train_time:-$time} launched=(--nodes "$nodes" --gpus "$gpus") ;;
    *) return 0 ;;
  esac
  [ "$2" != score ] || has_model "${@:3}" || { launched=(); return 0; }
  if [ "${gpu:-0}" -gt 0 ]; then
    site=${gpu_partition:-$partition}
    [ "$2" = train ] || launched+=(--gpus 1)
  fi
  launched+=(--launcher slurm ${limit:+--time "$limit"} ${site:+--sbatch-arg=--partition="$site"} ${account:+--sbatch-arg=--account="$account"})
  for word in $modules; do launched+=(--module "$word"); done
  for word in $sbatch; do launched+=(--sbatch-arg="$word"); done
  [[ $2 = extract && $last -le 1 && -z $waiting ]] || launched+=(--wait)
}

# has_model WORD...: whether one of them is the folder of a trained model; what is derived from others is made here
has_model() {
  local word
  for word in "$@"; do
    if [[ $word == "$exp"/* ]] && { [ -e "$conf_dir/$(basename "$word").yaml" ] || [ -e "$word/model.safetensors" ]; }; then return 0; fi
  done
  return 1
}

# run COMMAND...: print it, and unless dry=1 do it
run() {
  local launched
  on_cluster "$@"
  set -- "$@" "${launched[@]}"
  printf '+'; printf ' %q' "$@"; printf '\n'
  [ -n "$dry" ] || "$@"
}

# need PATH STAGE [VARIABLES]: stop with the command that makes it
need() {
  local with=$variables
  if [ "$2" = 2 ] && [ -n "$from" ]; then with=data=$from; fi
  [ -n "$dry" ] || [ -e "$1" ] || fail "$1 is missing." "  fix:   make stage$2 recipe=$recipe $with${3:+ $3}"
}

# need_shards FOLDER SPLIT: features; a folder may hold nothing but the record of what makes them on a cluster
need_shards() {
  [ -z "$dry" ] && ! compgen -G "$1/part-*.parquet" > /dev/null || return 0
  [ ! -e "$1/slurm" ] || fail "$1 is still being made on the cluster, or failed there." "  fix:   klassify status $1"
  need "$1" 1 "split=$2"
}

# the media of a real data set lie where the user says
need_root() {
  [ -n "$dry" ] || [ -n "$media" ] || fail "root= is missing: the folder of the media and metadata of $data." \
    "  fix:   give root=DIR, or keep it in local.mk: echo 'root = DIR' >> local.mk"
}

# names of splits: the given ones (each must have a list, or be one that stage 0 can make), or all defaults with a list
splits() {
  local name known="train val testA testB test"
  if [ -n "$from" ]; then known=$data; set -- "$data"; fi
  if [ -n "$split" ]; then
    for name in ${split//,/ }; do
      [[ " $known " == *" $name "* ]] || fail "unknown split=$name. Known: $known"
      echo "$name"
    done
  else
    for name in "$@"; do [ -n "$dry" ] || [ -e "$lists/$name.tsv" ] || continue; echo "$name"; done
  fi
}

# systems NAME...: those of the default names that system= asks for; an unknown name is refused by the caller's conf
systems() {
  local name wanted=${system:-$(IFS=,; echo "$*")}
  for name in ${wanted//,/ }; do
    [[ " ${derived[*]-} " == *" $name "* ]] || [ -e "$conf_dir/$name.yaml" ] || fail "no system $name in $conf_dir. There are: $(cd "$conf_dir" && ls *.yaml | sed 's/\.yaml$//' | paste -sd' ')"
    echo "$name"
  done
}

# have SYSTEM...: whether all of them are there (always, with dry=1)
have() {
  local name
  for name in "$@"; do [ -n "$dry" ] || [ -e "$exp/$name/system.yaml" ] || return 1; done
}

# is_localiser SYSTEM: whether it answers Task 2 (the run file lists them in localisers and reported_2)
is_localiser() { [[ " ${localisers[*]} ${reported_2[*]} " == *" $1 "* ]]; }
# is_detector SYSTEM: whether it answers Task 1
is_detector() { [[ " ${reported[*]} " == *" $1 "* ]] || ! is_localiser "$1"; }

# where several seeds were evaluated on the test splits: each and the mean, over seeds and over testA and testB
mean_over_seeds() {
  local top=exp/$name/$recipe tables
  [ -z "$from" ] || return 0
  tables=$( (compgen -G "$top/evaluation/test[AB].tsv"; compgen -G "$top/seed-*/evaluation/test[AB].tsv") | sort || true)
  [[ $tables == */seed-* && -z $dry ]] || return 0
  # shellcheck disable=SC2086  # the names are this script's own
  run klassify evaluate --mean $tables | tee "$top/evaluation/mean.txt"
}

# make_lists: stage 0
make_lists() {
  if [ "$data" = demo ]; then
    run klassify corpus --out "$media" --size "$size" --seed 0 --jobs "$jobs" "${forced[@]}"
  fi
  need_root
  # --probe missing: opens the files of unknown length alone
  run klassify lists --data "$data" --root "$media" --out "$lists" ${split:+--splits "$split"} --probe missing --jobs "$jobs" "${forced[@]}"
}

# cache_audio SPLIT: with audio=cache
cache_audio() {
  [ -z "$audio" ] || run klassify extract --kind audio --list "$lists/$1.tsv" --root "$media" --out "$features/audio/$1" --jobs "$jobs" "${forced[@]}"
}

# evaluate_split SPLIT LABELS: tables of the reported systems, or of those that system= names
evaluate_split() {
  local s=$1 labels=$2 name task1=() task2=()
  for name in ${system//,/ }; do
    [[ " ${unscored[*]-} " != *" $name "* ]] || continue
    if is_localiser "$name"; then task2+=("$exp/$name"); fi
    if is_detector "$name"; then task1+=("$exp/$name"); fi
  done
  if [ -z "$system" ]; then
    for name in "${reported[@]}"; do task1+=("$exp/$name"); done
    for name in "${reported_2[@]}"; do task2+=("$exp/$name"); done
  fi
  if [ ${#task1[@]} -gt 0 ]; then
    [ "$s" != val ] || run klassify score "${task1[@]}" --split val "${sources[@]}" "${reading[@]}"
    run klassify evaluate "${task1[@]}" --split "$s" --labels "$labels" --out "$exp/evaluation"
  fi
  [ ${#task2[@]} -eq 0 ] || [ -n "$from" ] || run klassify evaluate "${task2[@]}" --task 2 --split "$s" --labels "$labels" --out "$exp/evaluation"
}

# score_chosen SPLIT: scores and proposals of the systems that system= names, and what is derived from them
score_chosen() {
  local s=$1 name
  for name in ${system//,/ }; do
    [[ " ${unscored[*]-} " != *" $name "* ]] || continue
    need "$exp/$name/system.yaml" 2 "system=$name"
    [[ " ${proposals_only[*]-} " == *" $name "* ]] || run klassify score "$exp/$name" --split "$s" "${sources[@]}" "${reading[@]}" "${forced[@]}"
    ! is_localiser "$name" || run klassify localise "$exp/$name" --split "$s" "${forced[@]}"
    [ ! -e "$exp/$name-platt/system.yaml" ] || run klassify score "$exp/$name-platt" --split "$s" "${forced[@]}"
  done
}

# submit SPLIT: package what the conf or submit1=, submit2= choose, and check it
submit() {
  [ -z "$from" ] || return 0  # no server asks for it
  run klassify package "$exp/detector.yaml" --split "$1" --list "$lists/$1.tsv" --out "$submissions/$1" \
    ${submit1:+--task1 "$exp/$submit1"} ${submit2:+--task2 "$exp/$submit2"} "${forced[@]}"
  run klassify check "$submissions/$1/submission.zip" --list "$lists/$1.tsv"
}

# evaluate_all SYSTEM: stage 4; SYSTEM is one that stage 3 scores the test splits with
evaluate_all() {
  local s labels chosen scored=${system%%,*}
  scored=${scored:-$1}
  need "$exp/$scored/system.yaml" 2 "${system:+system=$system}"
  chosen=$(splits val testA testB)
  for s in $chosen; do
    labels=$lists/$s.tsv
    [[ $s == test* ]] && labels=$lists/heldout/${s}_labels.tsv
    if [[ $s == test* && -z "$split" && ! -e $labels && -z "$dry" ]]; then
      echo "$s has no labels here: not evaluated"
      continue
    fi
    need "$labels" 0
    [ "$s" = val ] || compgen -G "$exp/$scored/scores/$s.*" > /dev/null || need "$exp/$scored/scores/$s.clips.tsv" 3 "split=$s${system:+ system=$system}"
    evaluate_split "$s" "$labels"
  done
  mean_over_seeds
}

# compare_recipes: the reported systems of every recipe that has been trained, side by side (make compare)
compare_recipes() {
  local s m labels one file top options found=() planned=() chosen rows='[_a-z0-9]*'
  [ -z "$dry" ] || rows='\(_2\)*'  # what is made by default; else all that is there
  top=exp/$(folder_of "$trained")
  for file in recipes/*/run.sh; do
    one=$top/$(basename "$(dirname "$file")")$seed_folder
    for m in $(sed -n "/^reported$rows=(/{s/^[^(]*(//;s/).*//;p}" "$file"); do
      [[ ",${system:-$m}," == *",$m,"* && " ${planned[*]-} " != *" $one/$m "* ]] || continue
      planned+=("$one/$m")
      [ ! -e "$one/$m/system.yaml" ] || found+=("$one/$m")
    done
  done
  if [ -n "$dry" ] && [ ${#found[@]} = 0 ]; then found=("${planned[@]}"); fi
  [ ${#found[@]} -gt 0 ] || fail "no recipe has been trained on data=$trained." "  fix:   make stage2 recipe=$recipe $variables"
  chosen=$(split=${split:-${from:+$data}}; split=${split:-val}; splits)
  for s in $chosen; do
    labels=$lists/$s.tsv
    [[ $s != test* ]] || labels=$lists/heldout/${s}_labels.tsv
    options=(--out "$top/compare${seed_folder}")
    [ ! -e "$labels" ] || options+=(--labels "$labels")
    [ ! -e "data_lists/$(folder_of "$trained")/val.tsv" ] || options+=(--val "data_lists/$(folder_of "$trained")/val.tsv")
    [ -z "$media" ] || [ ! -d "$media" ] || options+=(--media "$media")
    [ ! -d "$features" ] || options+=(--features "$features")
    run klassify compare "${found[@]}" --split "$s" "${options[@]}"
  done
}

if [ -n "$comparing" ]; then
  compare_recipes
  exit 0
fi
