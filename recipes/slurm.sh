# launcher=slurm: the options that send a recipe's commands to a cluster. Sourced by common.sh.
slurm_variables="launcher shards parallel time train_time nodes gpus partition gpu_partition account modules sbatch"
launcher='' shards=64 parallel='' time='' train_time='' nodes=1 gpus=0
partition='' gpu_partition='' account='' modules='' sbatch=''

slurm_usage() {
  cat <<TEXT
on a Slurm cluster (docs/cluster.md); keep the site's values in local.mk
  launcher=slurm                 stage 1 submits job arrays and exits; stages 2 and 3 wait for their jobs
  shards=64 parallel=N           shards per list, tasks that run at once (default: all)
  time=04:00:00 train_time=TIME  time limit of a task, and of a training, which resumes from its last checkpoint
  nodes=1 gpus=0                 nodes of a training and GPUs per node; with gpus, other model tasks use one GPU each
  partition=P gpu_partition=P    for CPU and for GPU work (default: the site's own)
  account=A modules='M N'        for sbatch --account and module load
  sbatch='--OPTION=VALUE ...'    further options of sbatch
TEXT
}

check_slurm() {
  known_value launcher "$launcher" local slurm
  [[ $nodes$shards =~ ^[1-9][0-9]*$ && $gpus$parallel =~ ^[0-9]+$ ]] ||
    fail "shards=, parallel=, nodes= and gpus= are whole numbers; shards= and nodes= are at least 1"
}

# on_cluster COMMAND...: sets the array `launched` to the options that send COMMAND to Slurm;
# commands that take seconds get none and run here
on_cluster() {
  local site=$partition limit=$time word gpu=
  launched=()
  [ "$launcher" = slurm ] && [ "$1" = klassify ] || return 0
  local array=(--shards "$shards" ${parallel:+--max-parallel "$parallel"})
  case "$2 $*" in
    extract*"--kind lmm"* | extract*"--kind reconstruction"* | extract*"--kind embedding"*) gpu=$gpus launched=("${array[@]}") ;;
    extract*) launched=("${array[@]}") ;;
    score*)
      has_model "${@:3}" || return 0
      gpu=$gpus launched=("${array[@]}") ;;
    train*) gpu=$gpus limit=${train_time:-$time} launched=(--nodes "$nodes" --gpus "$gpus") ;;
    *) return 0 ;;
  esac
  if [ "${gpu:-0}" -gt 0 ]; then
    site=${gpu_partition:-$partition}
    [ "$2" = train ] || launched+=(--gpus 1)
  fi
  launched+=(--launcher slurm ${limit:+--time "$limit"})
  launched+=(${site:+--sbatch-arg=--partition="$site"} ${account:+--sbatch-arg=--account="$account"})
  for word in $modules; do launched+=(--module "$word"); done
  for word in $sbatch; do launched+=(--sbatch-arg="$word"); done
  # stage 1 ends once its arrays are submitted, unless the next stage follows in the same run
  [[ $2 = extract && $last -le 1 && -z $waiting ]] || launched+=(--wait)
}

# has_model WORD...: whether one of them is the folder of a trained model; other systems are computed here
has_model() {
  local word
  for word in "$@"; do
    [[ $word == "$exp"/* ]] || continue
    if [ -e "$conf_dir/$(basename "$word").yaml" ] || [ -e "$word/model.safetensors" ]; then return 0; fi
  done
  return 1
}
