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

stages of recipe=$recipe
$(sed -n 's/^if stage \([0-9]\) "\([^"]*\)".*/  stage\1  \2/p' "$0")

variables (on the command line, or in local.mk to keep them)
  recipe=klassify                which recipe: $(for r in recipes/*/run.sh; do basename "$(dirname "$r")"; done | paste -sd' ')
  data=avdeepfake1mpp            the data set, a level of every path: $datasets
  root=DIR                       folder of its media and metadata (data=demo makes its own)
  split=NAME[,NAME]              default: all lists in stages 0 and 1, testA and testB in 3, val and labelled tests in 4
  system=NAME[,NAME]             limits stages 2 to 4
  conf=paper                     the folder of configs (default: demo for data=demo, else paper)
  submit1=SYSTEM submit2=SYSTEM  what is packaged, instead of the conf's choice
  seed=1                         of training; another seed has its own folder
  size=default                   of the generated corpus: tiny, default, large
  jobs=N                         processes of stages 0 and 1
  force=1                        make outputs again that were made with other settings
  dry=1                          print the commands only
TEXT
}

datasets="avdeepfake1mpp avdeepfake1m lavdf demo"
known="split data size root conf system submit1 submit2 seed jobs force dry"
first=0 last=4 split='' data=avdeepfake1mpp size=default root='' conf='' system='' submit1='' submit2='' seed=1
jobs=$(nproc) force='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage; exit 0 ;;
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
[[ $seed =~ ^[0-9]+$ && $jobs =~ ^[1-9][0-9]*$ ]] || fail "seed= and jobs= are whole numbers"
[[ $system =~ ^[A-Za-z0-9_,]*$ ]] || fail "system=$system: names of systems with commas between"

# the sizes of the demo have folders of their own, so that one never mixes with another
name=$data
if [ "$data" = demo ]; then
  [ "$size" = default ] || name=demo-$size
  media=${root:-media/$name} conf=${conf:-demo}
else
  media=$root conf=${conf:-paper}
fi
conf_dir=recipes/$recipe/conf/$conf
[ -d "$conf_dir" ] || fail "unknown conf=$conf. There are: $(ls "recipes/$recipe/conf" | paste -sd' ')"
lists=data_lists/$name features=features/$name exp=exp/$name/$recipe submissions=submissions/$name/$recipe
[ "$seed" = 1 ] || exp=$exp/seed-$seed submissions=$submissions/seed-$seed
sources=(--lists "$lists" --media "$media" --features "$features")
forced=(${force:+--force})
variables="data=$data${root:+ root=$root}$([ "$data" != demo ] || [ "$size" = default ] || echo " size=$size")$([ "$seed" = 1 ] || echo " seed=$seed")"
PATH=$PWD/.venv/bin:$PATH
# the demo's models are too small to gain from a second thread
[ "$data" = demo ] && threads=1 || threads=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} TOKENIZERS_PARALLELISM=false
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT  # a stage that fails takes its side by side with it

# stage N "what it does": true when it is asked for
stage() {
  [ "$1" -ge "$first" ] && [ "$1" -le "$last" ] || return 1
  echo "== stage $1: $2  [$variables conf=$conf]"
}

# run COMMAND...: print it, and unless dry=1 do it
run() {
  printf '+'; printf ' %q' "$@"; printf '\n'
  [ -n "$dry" ] || "$@"
}

# need PATH STAGE [VARIABLES]: stop with the command that makes it
need() {
  [ -n "$dry" ] || [ -e "$1" ] || fail "$1 is missing." "  mend:  make stage$2 recipe=$recipe $variables${3:+ $3}"
}

# the media of a real data set lie where the user says
need_root() {
  [ -n "$dry" ] || [ -n "$media" ] || fail "root= is missing: the folder of the media and metadata of $data." \
    "  mend:  give root=DIR, or keep it in local.mk: echo 'root = DIR' >> local.mk"
}

# names of splits: the given ones (each must have a list, or be one that stage 0 can make), or all defaults with a list
splits() {
  local name
  if [ -n "$split" ]; then
    for name in ${split//,/ }; do
      [[ " train val testA testB test " == *" $name "* ]] || fail "unknown split=$name. Known: train val testA testB test"
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
    [ -e "$conf_dir/$name.yaml" ] || fail "no system $name in $conf_dir. There are: $(cd "$conf_dir" && ls *.yaml | sed 's/\.yaml$//' | paste -sd' ')"
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

# where several seeds were evaluated on the test splits: each and the mean, over seeds and over testA and testB
mean_over_seeds() {
  local top=exp/$name/$recipe tables
  tables=$( (compgen -G "$top/evaluation/test[AB].tsv"; compgen -G "$top/seed-*/evaluation/test[AB].tsv") | sort || true)
  [[ $tables == */seed-* && -z $dry ]] || return 0
  # shellcheck disable=SC2086  # the names are this script's own
  run klassify evaluate --mean $tables | tee "$top/evaluation/mean.txt"
}
