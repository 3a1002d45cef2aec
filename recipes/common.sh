# What every recipe's run.sh shares: variables, checks, the stages. Sourced, never run.
#
# A run.sh sources it with its own arguments, sets the following, and ends with `run_stages`:
#   models=(...)         systems with a config that stage 3 scores by default
#   localisers=(...)     all systems that answer Task 2
#   derived=(...)        systems computed from others, without a config
#   proposals_only=(...) systems without clip scores; unscored=(...) systems without any scores
#   title_1 to title_3   what stages 1 to 3 do, for `make help`
#   features_of SYSTEM         the kinds of features of stage 1 that a system reads
#   needs_picture SYSTEM       whether it, or a system that it is computed from, looks at the picture
#   extract_features SPLIT     stage 1
#   train_systems              stage 2: train, score val, calibrate, tune, fuse
#   score_systems SPLIT        stage 3: scores and proposals of everything that is reported
# Systems that are reported and submitted are listed in conf/<conf>/report.yaml and submit.yaml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
recipe=$(basename "$(dirname "$0")")
. recipes/slurm.sh

fail() { printf '%s\n' "$@" >&2; exit 2; }

# closest NAME KNOWN...: the known name most similar to NAME; nothing if none is similar
closest() {
  printf '%s\n' "$@" | awk '
    function least(a, b) { return a < b ? a : b }
    NR == 1 { typed = tolower($0); n = length(typed); best = int(n / 3) + 1; next }
    {
      known = tolower($0); m = length(known)
      for (j = 0; j <= m; j++) d[0, j] = j
      for (i = 1; i <= n; i++) {
        d[i, 0] = i
        for (j = 1; j <= m; j++) {
          changed = d[i - 1, j - 1] + (substr(typed, i, 1) != substr(known, j, 1))
          d[i, j] = least(changed, 1 + least(d[i - 1, j], d[i, j - 1]))
          swapped = i > 1 && j > 1 && substr(typed, i - 1, 2) == substr(known, j, 1) substr(known, j - 1, 1)
          if (swapped) d[i, j] = least(d[i, j], 1 + d[i - 2, j - 2])
        }
      }
      if (d[n, m] < best) { best = d[n, m]; name = $0 }
    }
    END { print name }'
}

# known_value VARIABLE VALUE KNOWN...: refuse an unknown value; an empty one means the default
known_value() {
  local variable=$1 value=$2 guess
  shift 2
  [ -n "$value" ] && [[ " $* " != *" $value "* ]] || return 0
  guess=$(closest "$value" "$@")
  fail "unknown $variable=$value. Known: $*" ${guess:+"  fix:   did you mean $variable=$guess?"}
}

# known_data NAME: refuse a misspelt data set; one of the user's own needs a folder, or lists that were made from it
known_data() {
  local name guess
  [ -z "$(splits_in_table "$1")" ] && [ ! -d "data_lists/$1" ] || return 0
  # shellcheck disable=SC2086  # a list of words
  guess=$(closest "$1" $datasets)
  for name in $datasets; do [[ $1 != "$name"* ]] || guess=; done  # a part or a version of that data set
  # its folders, by the variables that name them
  if [[ $1 =~ ^demo(-([a-z]+))?(-corpus-([0-9]+))?$ ]]; then
    guess="demo${BASH_REMATCH[2]:+ size=${BASH_REMATCH[2]}}${BASH_REMATCH[4]:+ corpus_seed=${BASH_REMATCH[4]}}"
  fi
  [ -z "$root" ] || [ -n "$guess" ] || [[ ! $1 =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] || return 0
  guess=${guess:+did you mean data=$guess?}
  fail "unknown data=$1. Known: $datasets" \
    "  fix:   ${guess:-for a data set of your own: make stage0 data=NAME root=DIR (docs/your-data.md)}"
}

# as_meant VALUE: a value as a shell would read it, which make does not: without spaces behind it (before a comment in
# local.mk) or quotes around it, and with ~ as the home folder
as_meant() {
  local value=$1
  value=${value%"${value##*[![:space:]]}"}
  [[ $value != \"*\" && $value != \'*\' ]] || value=${value:1:-1}
  [[ $value != '~' && $value != '~/'* ]] || value=$HOME${value:1}
  printf '%s' "$value"
}

# splits_in_table DATA: the splits of a data set that the toolkit knows
splits_in_table() {
  awk -F'\t' -v name="$1" 'NR > 1 && $1 == name { n = split($2, s, ","); for (i = 1; i <= n; i++) print s[i] }' $dataset_table
}

# splits_of DATA: those of a known data set; else train, val and all that begin with test, in lists or in the root folder
splits_of() {
  local path name
  splits_in_table "$1" | grep . && return
  printf '%s\n' train val test
  for path in "data_lists/$1"/test*.tsv ${root:+"$root"/test*}; do
    [ -e "$path" ] || continue
    name=${path##*/} name=${name%%[_.]*}
    [ "$name" = test ] || echo "$name"
  done | sort -u
}

# names_in FILE KEY: the list under a key of a YAML file, written as [a, b] or with a dash per line
names_in() {
  [ ! -e "$1" ] || awk -v key="$2:" '
    { sub(/#.*/, "") }
    /^[^ -]/ { listed = $1 == key; sub(/^[^:]*:/, "") }
    listed { sub(/^ *- /, ""); gsub(/[][,]/, " "); for (i = 1; i <= NF; i++) print $i }' "$1"
}

usage() {
  cat <<TEXT
first steps
  make demo size=tiny recipe=klassify    install, then run every stage on a tiny generated corpus
  .venv/bin/klassify predict clip.mp4    probability of fake and fake segments of a video
  make demo recipe=klassify              the first system on 504 generated clips, and a report: about 6 minutes
  make demo                              all recipes: about 16 minutes (size=tiny|small|default|large, verbose=1)
  make stage0 root=DIR                   start on real data; the stages follow (docs/your-data.md)

make stage3 split=testA                  one stage
make compare split=val                   systems of all recipes side by side: exp/<data>/compare/<split>/report.html
make reproduce submission=ID             repackage a submission from its manifest and compare bytes (IDs: klassify ledger)
make setup test test-all lint clean      install; the fast tests; all tests; style; remove caches
make results site                        the tables of RESULTS.md again (hours); the pages as one site

stages of recipe=$recipe
  stage0  $title_0
  stage1  $title_1
  stage2  $title_2
  stage3  $title_3
  stage4  $title_4

variables (on the command line, or in local.mk to keep them)
  recipe=klassify                which recipe: $(for r in recipes/*/run.sh; do basename "$(dirname "$r")"; done | paste -sd' ')
  data=avdeepfake1mpp            the data set, part of every path: $datasets;
                                 any other name is a data set of your own (docs/your-data.md)
  root=DIR                       folder of its media and metadata (data=demo makes its own)
  split=NAME[,NAME]              default: all lists in stages 0 and 1, test splits in 3, val and labelled test splits in 4
  system=NAME[,NAME]             limits stages 2 to 4
  from=avdeepfake1mpp            test systems that were trained on this data set (docs/benchmarks.md)
  conf=paper                     the folder of configs (default: demo for data=demo, else paper)
  submit1=SYSTEM submit2=SYSTEM  what is packaged for Task 1 and 2, instead of conf/<conf>/submit.yaml
  vqvae=FILE lmm=NAME            multibranch: VQ-VAE weights instead of training them; the LMM's name or folder
  audio=cache                    stage 1 also stores decoded audio, 32 kB per second, which later stages read faster
  seed=1                         training seed; each has its own folders
  size=default                   size of the generated corpus: tiny, small, default, large
  corpus_seed=0                  other numbers give other clips, in folders of their own
  jobs=N                         processes of stages 0 and 1
  devices=1 workers=0            GPUs of a training (a number, or auto); reader processes per GPU, also when scoring
  force=1                        replace outputs that were made with other settings
  dry=1                          only print the commands

TEXT
  slurm_usage
}

title_0="data lists: from metadata, tables or folders, or from a corpus that is generated first (data=demo)"
title_4="evaluate every system against labels: tables, calibration curves, histograms"
dataset_table=klassify/lists/datasets.tsv
[ -e $dataset_table ] || dataset_table=recipes/datasets.tsv  # beside recipes that were copied
datasets=$(awk -F'\t' 'NR > 1 { print $1 }' $dataset_table | paste -sd' ')
known="split data from size corpus_seed root conf system submit1 submit2 vqvae lmm audio seed jobs devices workers force dry $slurm_variables"
models=() localisers=() derived=() proposals_only=() unscored=()
comparing='' waiting='' helping='' checking='' first=0 last=4
split='' data=avdeepfake1mpp from='' size=default corpus_seed=0 root='' conf='' system='' submit1='' submit2='' vqvae='' lmm='' audio='' seed=1
jobs='' devices='' workers='' force='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --help) helping=1 ;;
    --variables) echo "$known"; exit 0 ;;
    --recipe) known_value recipe "$2" $(for r in recipes/*/run.sh; do basename "$(dirname "$r")"; done); exit 0 ;;
    --check) checking=all ;;  # only check names and what the stages need
    --check-names) checking=names ;;
    --compare) comparing=1 ;;
    --wait) waiting=1 ;;      # stage 1 waits for its cluster jobs, because the next stage follows
    --stage) first=$2; shift ;;
    --stop-stage) last=$2; shift ;;
    *=*)
      name=${1%%=*}
      if [[ " $known " != *" $name "* ]]; then
        # shellcheck disable=SC2086  # a list of words
        guess=$(closest "$name" $known)
        fail "unknown variable $name. Known: $known" ${guess:+"  fix:   did you mean $guess=?"}
      fi
      printf -v "$name" '%s' "$(as_meant "${1#*=}")" ;;
    *) fail "$1 is neither an option nor name=value; see make help" ;;
  esac
  shift
done

known_data "$data"
known_value size "$size" tiny small default large
known_value audio "$audio" cache
[[ $seed =~ ^[0-9]+$ && $jobs =~ ^([1-9][0-9]*)?$ ]] || fail "seed= and jobs= are whole numbers; jobs= is at least 1"
[[ $corpus_seed =~ ^(0|[1-9][0-9]*)$ ]] || fail "corpus_seed= is a whole number"
[[ $devices =~ ^(auto|[1-9][0-9]*)?$ && $workers =~ ^[0-9]*$ ]] || fail "devices= is a number or auto, workers= a number"
check_slurm
# on a cluster, jobs= is the number of CPUs of a task; the CPUs of this machine do not matter
[ "$launcher" != slurm ] || [ -n "$jobs" ] || jobs=1
jobs=${jobs:-$(nproc)}

# each size and corpus seed of the demo has its own folders, so that corpora never mix
folder_of() {
  local name=$1
  [ "$1" != demo ] || [ "$size" = default ] || name+=-$size
  [ "$1" != demo ] || [ "$corpus_seed" = 0 ] || name+=-corpus-$corpus_seed
  echo "$name"
}
data_name=$(folder_of "$data")
mapfile -t all_splits < <(splits_of "$data")
# a data set without train is for testing only
if [[ " ${all_splits[*]} " != *" train "* ]]; then from=${from:-avdeepfake1mpp}; fi
mapfile -t test_splits < <(printf '%s\n' "${all_splits[@]}" | grep -vxE 'train|val')
mapfile -t evaluated_splits < <(printf '%s\n' "${all_splits[@]}" | grep -vx train)
# with from=, the systems of that data set are tested on this one, and keep the scores
if [ -n "$from" ]; then
  known_data "$from"
  [[ " $(splits_of "$from" | paste -sd' ') " == *" train "* ]] || fail "from=$from has no systems of its own"
  [ "$from" != "$data" ] || fail "from=$from is the data set itself: its own systems need no from="
  evaluated_splits=("${test_splits[@]}")
fi
trained=${from:-$data}
if [ "$data" = demo ]; then media=${root:-media/$data_name}; else media=$root; fi
default_conf=paper
[ "$trained" != demo ] || default_conf=demo
# shellcheck disable=SC2046  # names of folders without spaces
known_value conf "$conf" $(ls "recipes/$recipe/conf")
conf=${conf:-$default_conf}
conf_dir=recipes/$recipe/conf/$conf
trained_list=data_lists/$(folder_of "$trained")/train.tsv
lists=data_lists/$data_name features=features/$data_name exp=exp/$(folder_of "$trained")/$recipe submissions=submissions/$data_name/$recipe
seed_folder=
[ "$seed" = 1 ] || seed_folder=/seed-$seed
exp=$exp$seed_folder submissions=$submissions$seed_folder
sources=(--lists "$lists" --media "$media" --features "$features")
forced=(${force:+--force})
reading=(${workers:+--workers "$workers"}) training=(${devices:+--devices "$devices"} ${workers:+--workers "$workers"})
mapfile -t reported < <(names_in "$conf_dir/report.yaml" task1)
mapfile -t reported_2 < <(names_in "$conf_dir/report.yaml" task2)
PATH=$PWD/.venv/bin:$PATH
# the demo's models are too small to gain from a second thread
[ "$trained" = demo ] && threads=1 || threads=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} TOKENIZERS_PARALLELISM=false
# when a stage fails or is interrupted, background jobs are ended too, with the processes that they started
trap 'for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done' EXIT

# beside COMMAND...: run in the background, in its own process group; wait $! gives its status
beside() { set -m; "$@" & set +m; }

# variables_for DATA: make variables for a stage on DATA with the settings of this run, quoted for a shell
variables_for() {
  local words=("recipe=$recipe" "data=$1")
  if [ "$1" = "$data" ]; then words+=(${from:+"from=$from"} ${root:+"root=$root"}); fi
  [ "$trained" != demo ] || [ "$size" = default ] || words+=("size=$size")
  [ "$trained" != demo ] || [ "$corpus_seed" = 0 ] || words+=("corpus_seed=$corpus_seed")
  [ "$conf" = "$default_conf" ] || words+=("conf=$conf")
  [ "$seed" = 1 ] || words+=("seed=$seed")
  words+=(${vqvae:+"vqvae=$vqvae"} ${lmm:+"lmm=$lmm"})
  quoted "${words[@]}"
}

# variables_of_trained: the same for the data that the systems were trained on
variables_of_trained() {
  variables_for "$trained"
  if [ "$trained" != demo ] && { [ -n "$from" ] || [ -z "$root" ]; }; then echo " root=DIR"; fi
}

quoted() { local text; printf -v text '%q ' "$@"; printf '%s' "${text% }"; }

# stage N: whether it was requested; prints its title
stage() {
  local title=title_$1
  [ "$1" -ge "$first" ] && [ "$1" -le "$last" ] || return 1
  [ "$1" != 2 ] || [ -z "$from" ] || return 1
  echo "== stage $1: ${!title}  [$(variables_for "$data")$([ "$conf" != "$default_conf" ] || echo " conf=$conf")]"
}

# run COMMAND...: print the command and, unless dry=1, run it
run() {
  local launched
  on_cluster "$@"
  set -- "$@" "${launched[@]}"
  printf '+'; printf ' %q' "$@"; printf '\n'
  [ -n "$dry" ] || "$@"
}

# splits NAME...: the splits in split=, else those of the given ones that have a list
splits() {
  local name
  if [ -n "$split" ]; then printf '%s\n' ${split//,/ }; return; fi
  for name in "$@"; do
    if [ -n "$dry" ] || [ -e "$lists/$name.tsv" ]; then echo "$name"; fi
  done
}

# scored_as SPLIT: what systems of another data set call it, so that its scores lie beside those of their own splits
scored_as() { if [ -n "$from" ] && [ "$1" != "$data" ]; then echo "$data_name-$1"; else echo "$1"; fi; }

# labels_of SPLIT: the data list with its labels
labels_of() {
  case $1 in test*) echo "$lists/heldout/$1_labels.tsv" ;; *) echo "$lists/$1.tsv" ;; esac
}

# without_segments: whether the systems learn from clip labels alone, so that none answers Task 2
without_segments() {
  local header
  [ -s "$trained_list" ] || return 1
  IFS= read -r header < "$trained_list"
  [[ $header != *fake_segments* ]]
}

# sound_only DATA: whether its clips have no picture, as the toolkit knows or a list of it says
sound_only() {
  local list header
  awk -F'\t' -v name="$1" '$1 == name && $3 == "sound" { found = 1 } END { exit !found }' $dataset_table && return
  [ -z "$(splits_in_table "$1")" ] || return 1
  for list in "data_lists/$(folder_of "$1")"/*.tsv; do
    [ -s "$list" ] && [[ $list != *.failures.tsv ]] || continue
    awk -F'\t' '
      NR == 1 { for (i = 1; i <= NF; i++) if ($i == "n_frames") column = i; next }
      $column != "0" { seen = 1; exit }
      END { exit seen || NR < 2 }' "$list"
    return
  done
  return 1
}

# plain_fakes: whether there are fakes of which the modality is unknown, so that models learn what the whole clip is
plain_fakes() {
  [ -z "$(splits_in_table "$trained")" ] && [ -s "$trained_list" ] && awk -F'\t' '
    NR == 1 { for (i = 1; i <= NF; i++) if ($i == "modify_type") column = i }
    $column == "fake" { found = 1; exit }
    END { exit !found }' "$trained_list"
}

# follow_sound: leave out what looks at the picture, of clips that have none
sound='' submit_conf=$conf_dir/submit.yaml
follow_sound() {
  local name kept=() left=()
  for name in ${system//,/ }; do
    ! needs_picture "$name" || fail "$name needs a picture, and $data has none." \
      "  fix:   leave out system=, or choose: $(for name in $(configs); do needs_picture "$name" || printf '%s ' "$name"; done)"
  done
  for name in "${models[@]}"; do if needs_picture "$name"; then left+=("$name"); else kept+=("$name"); fi; done
  models=("${kept[@]}") kept=()
  for name in "${reported[@]}"; do needs_picture "$name" || kept+=("$name"); done
  reported=("${kept[@]}") kept=()
  for name in "${reported_2[@]}"; do needs_picture "$name" || kept+=("$name"); done
  reported_2=("${kept[@]}") submit_conf=$conf_dir/submit_sound.yaml
  [ -n "$sound$checking" ] || [ ${#left[@]} = 0 ] || echo "no picture in $data: left out are ${left[*]}, and what is computed from them"
  sound=1
}

# follow_labels: leave out what the labels of the training list do not allow
learned=() calibrated=()
follow_labels() {
  local name kept=()
  if sound_only "$data" || sound_only "$trained"; then follow_sound; fi
  if without_segments; then
    for name in ${system//,/ }; do
      ! is_localiser "$name" || fail "$name learns from segments, and $trained_list has none." \
        "  fix:   make stage0 $(variables_for "$trained") force=1    # once the metadata has fake_segments"
    done
    for name in "${models[@]}"; do is_localiser "$name" || kept+=("$name"); done
    models=("${kept[@]}") kept=()
    for name in "${reported[@]}"; do is_localiser "$name" || kept+=("$name"); done
    reported=("${kept[@]}") reported_2=()
  fi
  if plain_fakes; then learned=(data.init_args.label=video) calibrated=(--label video); fi
}

# learnable SYSTEM...: those that the labels and the media allow
learnable() {
  local name
  for name in "$@"; do
    if is_localiser "$name" && without_segments; then continue; fi
    if [ -n "$sound" ] && needs_picture "$name"; then continue; fi
    echo "$name"
  done
}

# configs: the systems that have a config
configs() {
  local file
  for file in "$conf_dir"/*.yaml; do
    case $file in */submit*.yaml | */report.yaml) ;; *) basename "$file" .yaml ;; esac
  done
}

# made_systems: the systems that exist, made by this recipe or by other commands
made_systems() {
  local file
  for file in "$exp"/*/system.yaml; do
    [ ! -e "$file" ] || basename "$(dirname "$file")"
  done
}

# have SYSTEM...: whether all of them exist (always, with dry=1)
have() {
  local name
  for name in "$@"; do [ -n "$dry" ] || [ -e "$exp/$name/system.yaml" ] || return 1; done
}

# check_names: refuse unknown names of splits and systems
# shellcheck disable=SC2086  # lists of words
check_names() {
  local name systems
  for name in ${split//,/ }; do known_value split "$name" "${all_splits[@]}"; done
  [ -z "$comparing" ] || return 0
  systems=$(echo $(configs) ${derived[*]})
  # systems made by other commands can be scored and evaluated, but not trained here
  [ "$first" -le 2 ] || systems=$(echo $systems $(made_systems))
  for name in ${system//,/ }; do known_value system "$name" $systems; done
  systems=$(printf '%s\n' $systems $(made_systems) ${reported[*]} ${reported_2[*]} | awk '!seen[$0]++')
  known_value submit1 "$submit1" $systems
  known_value submit2 "$submit2" $systems
}

# for each stage that must run first, a file of it that is missing; and the splits concerned
lacking=() lacking_splits=()

# want PATH STAGE [SPLIT]: note a missing file
want() { [ -e "$1" ] || lack "$@"; }

# lack PATH STAGE [SPLIT]: note that STAGE must make a file, unless STAGE is part of this run
lack() {
  [ "$2" -lt "$first" ] || return 0
  lacking[$2]=${lacking[$2]:-$1}
  [ -z "${3:-}" ] || [[ " ${lacking_splits[*]} " == *" $3 "* ]] || lacking_splits+=("$3")
}

# want_features SPLIT: note missing features that a chosen system reads
want_features() {
  local folder kind name chosen=(${system//,/ })
  [ -z "$sound" ] || return 0
  [ -n "$system" ] || chosen=("${models[@]}")
  for kind in $(for name in "${chosen[@]}"; do features_of "$name"; done | sort -u); do
    folder=$features/$kind/$1
    ! compgen -G "$folder/part-*.parquet" > /dev/null || continue
    # the folder may hold only the record of the jobs that make its features
    [ ! -e "$folder/slurm" ] || [ "$first" -le 1 ] ||
      fail "$folder is still being made on the cluster, or failed there." "  fix:   klassify status $(quoted "$folder")"
    lack "$folder" 1 "$1"
  done
}

# want_stage N: note missing files that stage N needs
want_stage() {
  local s name chosen
  case $1 in
    1)
      chosen=$(splits "${all_splits[@]}")
      for s in ${chosen:-"${all_splits[0]}"}; do want "$lists/$s.tsv" 0 "$s"; done ;;
    2) for s in train val; do want "$lists/$s.tsv" 0 "$s"; want_features "$s"; done ;;
    3)
      [ -n "$system" ] || want "$exp/detector.yaml" 2
      for name in ${system//,/ }; do want "$exp/$name/system.yaml" 2; done
      chosen=$(splits "${test_splits[@]}")
      for s in ${chosen:-"${test_splits[0]}"}; do want "$lists/$s.tsv" 0 "$s"; want_features "$s"; done ;;
    4)
      name=$(scored_system)
      want "$exp/$name/system.yaml" 2
      chosen=$(splits "${evaluated_splits[@]}")
      for s in ${chosen:-"${evaluated_splits[0]}"}; do
        want "$lists/$s.tsv" 0 "$s"
        # the test splits of a challenge have no labels
        if [[ $s == test* && -z $split && ! -e $(labels_of "$s") ]]; then continue; fi
        if [ "$first" -gt 0 ] && [ -e "$lists/$s.tsv" ] && [ ! -e "$(labels_of "$s")" ]; then
          fail "$s has no labels: $(labels_of "$s") does not exist." \
            "  fix:   make compare split=$s $(variables_for "$data")    # compares without labels"
        fi
        [ "$(scored_as "$s")" = val ] || compgen -G "$exp/$name/scores/$(scored_as "$s").*" > /dev/null ||
          lack "$exp/$name/scores/$(scored_as "$s").*" 3 "$s"
      done ;;
  esac
}

# check_stages: stop if files that the requested stages need are missing, with one command that makes them all
check_stages() {
  local n name
  if [ -n "$from" ] && [ "$first" -eq 2 ]; then
    fail "from=$from: nothing is trained on $data." "  fix:   make stage2 $(variables_of_trained)"
  fi
  [ -z "$dry" ] || return 0
  [ "$first" -gt 3 ] || need_root
  for ((n = first; n <= last; n++)); do want_stage "$n"; done
  # missing stages need earlier stages in turn
  [ -z "${lacking[3]:-}" ] || want_stage 3
  [ -z "${lacking[2]:-}" ] || [ -n "$from" ] || want_stage 2
  for name in "${lacking_splits[@]}"; do want "$lists/$name.tsv" 0 "$name"; done
  [ ${#lacking[@]} = 0 ] || refuse_lacking
  # shellcheck disable=SC2086  # names without spaces
  [ "$first" -lt 3 ] || need $submit1 $submit2
}

# refuse_lacking: name the stages that must run first
refuse_lacking() {
  local n stages=() names command options
  for n in "${!lacking[@]}"; do stages+=("stage$n"); done
  names=$(printf '%s, ' "${stages[@]}")
  options=$(variables_for "$data")
  # all lists of a data set are made at once, unless split= was given
  if [ -z "$from" ] && [ ${#lacking_splits[@]} -gt 0 ] &&
    { [ -n "$split" ] || [ -z "${lacking[0]:-}" ] || compgen -G "$lists/*.tsv" > /dev/null; }; then
    options+=" split=$(IFS=,; echo "${lacking_splits[*]}")"
  fi
  [ -n "$media" ] || options+=" root=DIR"
  [ -z "$system" ] || [ -z "${lacking[2]:-}${lacking[3]:-}" ] || options+=" system=$system"
  command="make ${stages[*]} $options"
  if [ -n "$from" ] && [ -n "${lacking[2]:-}" ]; then  # the systems of another data set
    command="make stage2 $(variables_of_trained)"
    [ ${#stages[@]} = 1 ] || command+=" && make $(printf '%s ' "${stages[@]/stage2/}" | xargs) $options"
  fi
  fail "missing: ${names%, } ($(printf '%s\n' "${lacking[@]}" | head -1) does not exist)" "  fix:   $command"
}

# need SYSTEM...: stop if one does not exist, with the command that makes it
need() {
  local name file
  for name in "$@"; do
    file=$exp/$name/system.yaml
    [ -n "$dry" ] || [ -e "$file" ] ||
      fail "$file is missing." "  fix:   make stage2 $(variables_for "$data") system=${name%-platt}"
  done
}

# need_root: stop if root= is missing, which says where the media of a real data set are
need_root() {
  [ -n "$dry" ] || [ -n "$media" ] || fail "root= is missing: the folder of the media and metadata of $data." \
    "  fix:   pass root=DIR, or set it in local.mk: echo 'root = DIR' >> local.mk"
}

# is_localiser SYSTEM: whether it answers Task 2
is_localiser() { [[ " ${localisers[*]} ${reported_2[*]} " == *" $1 "* ]]; }
# is_detector SYSTEM: whether it answers Task 1
is_detector() { [[ " ${reported[*]} " == *" $1 "* ]] || ! is_localiser "$1"; }
# is_in NAME WORD...: whether it is one of the words
is_in() { [[ " ${*:2} " == *" $1 "* ]]; }
# scored_system: a system whose scores show that stage 3 has run
scored_system() { if [ -n "$system" ]; then echo "${system%%,*}"; else names_in "$submit_conf" task1; fi; }

# make_lists: stage 0
make_lists() {
  if [ "$data" = demo ]; then
    run klassify corpus --out "$media" --size "$size" --seed "$corpus_seed" --jobs "$jobs" "${forced[@]}"
  fi
  # --probe missing: opens only the files of unknown length
  run klassify lists --data "$data" --root "$media" --out "$lists" ${split:+--splits "$split"} --probe missing --jobs "$jobs" "${forced[@]}"
}

# extract_mouth SPLIT OPTION...: mouth features; the recipes share them
extract_mouth() {
  run klassify extract --list "$lists/$1.tsv" --root "$media" --out "$features/mouth/$1" "${@:2}" --jobs "$jobs" "${forced[@]}"
}

# cache_audio SPLIT: with audio=cache
cache_audio() {
  [ -z "$audio" ] || run klassify extract --kind audio --list "$lists/$1.tsv" --root "$media" --out "$features/audio/$1" --jobs "$jobs" "${forced[@]}"
}

# sources_for SYSTEM SPLIT...: sets the array `inputs`, what the system reads; a recipe may make parts of it first
sources_for() { inputs=("${sources[@]}"); }

# score_one SPLIT SYSTEM: its scores and proposals, and the scores of its calibration
score_one() {
  local s=$1 name=$2 inputs
  ! is_in "$name" "${unscored[@]}" || return 0
  need "$name"
  if ! is_in "$name" "${proposals_only[@]}"; then
    sources_for "$name" "$s"
    run klassify score "$exp/$name" --split "$s" "${inputs[@]}" "${reading[@]}" "${forced[@]}"
  fi
  ! is_localiser "$name" || run klassify localise "$exp/$name" --split "$s" "${forced[@]}"
  [ ! -e "$exp/$name-platt/system.yaml" ] || run klassify score "$exp/$name-platt" --split "$s" "${forced[@]}"
}

# submit SPLIT: package the systems of submit.yaml, or of submit1= and submit2=, and check the result
submit() {
  local name
  [ -z "$from$sound" ] || return 0  # there is no leaderboard
  for name in $submit1 $submit2; do score_one "$1" "$name"; done
  run klassify package "$exp/detector.yaml" --split "$1" --list "$lists/$1.tsv" --out "$submissions/$1" \
    ${submit1:+--task1 "$exp/$submit1"} ${submit2:+--task2 "$exp/$submit2"} "${forced[@]}"
  run klassify check "$submissions/$1/submission.zip" --list "$lists/$1.tsv"
}

# whole_fakes LABELS: whether there are no fake segments in them, or fakes are fake from end to end
whole_fakes() {
  local header
  [ "$data" != fakeavceleb ] || return 0
  [ -z "$dry" ] || return 1
  IFS= read -r header < "$1"
  [[ $header != *fake_segments* ]]
}

# evaluate_split SPLIT LABELS: tables of the systems in system=, else of report.yaml
evaluate_split() {
  local s labels=$2 name val task1=() task2=() computed=() with_frames=() thresholds=()
  s=$(scored_as "$1")
  for name in ${system//,/ }; do
    ! is_in "$name" "${unscored[@]}" || continue
    if is_localiser "$name"; then task2+=("$exp/$name"); fi
    if is_detector "$name"; then task1+=("$exp/$name"); fi
  done
  [ -n "$system" ] || task1=("${reported[@]/#/$exp/}") task2=("${reported_2[@]/#/$exp/}")
  if [ ${#task1[@]} -gt 0 ]; then
    # models were scored on val when they were trained
    for name in "${task1[@]}"; do [ -e "$conf_dir/${name##*/}.yaml" ] || computed+=("$name"); done
    [ "$s" != val ] || [ ${#computed[@]} = 0 ] || run klassify score "${computed[@]}" --split val "${sources[@]}" "${reading[@]}"
    val=data_lists/$(folder_of "$trained")/val.tsv
    [ -z "$from" ] || [ ! -e "$val" ] || thresholds=(--val "$val")
    run klassify evaluate "${task1[@]}" --split "$s" --labels "$labels" "${thresholds[@]}" --out "$exp/evaluation"
  fi
  if [ ${#task2[@]} -eq 0 ] || whole_fakes "$labels"; then return 0; fi
  run klassify evaluate "${task2[@]}" --task 2 --split "$s" --labels "$labels" --out "$exp/evaluation"
  [ -n "$sound" ] || return 0
  for name in "${task2[@]}"; do is_in "${name##*/}" "${proposals_only[@]}" || with_frames+=("$name"); done
  run klassify evaluate "${with_frames[@]}" --task 2 --eer --split "$s" --labels "$labels" --out "$exp/evaluation"
}

# mean_over_seeds: if several seeds were evaluated on the test splits, a table of each and of their means
mean_over_seeds() {
  local top=exp/$data_name/$recipe tables
  [ -z "$from" ] || return 0
  tables=$( (compgen -G "$top/evaluation/test[AB].tsv"; compgen -G "$top/seed-*/evaluation/test[AB].tsv") | sort || true)
  [[ $tables == */seed-* && -z $dry ]] || return 0
  # shellcheck disable=SC2086  # these names hold no spaces
  run klassify evaluate --mean $tables --out "$top/evaluation"
}

# compare_recipes: the reported systems of every trained recipe side by side (make compare)
compare_recipes() {
  local s m labels options one file report top default=() other=() planned=() found=()
  top=exp/$(folder_of "$trained")
  for file in recipes/*/run.sh; do
    one=$(basename "$(dirname "$file")")
    report=recipes/$one/conf/$conf/report.yaml
    [ -e "$report" ] || report=recipes/$one/conf/$default_conf/report.yaml
    for m in $(names_in "$report" task1) $(names_in "$report" task2) $(names_in "$report" also); do
      other+=("$top/$one$seed_folder/$m")
    done
    for m in $(names_in "$report" task1) $(names_in "$report" task2); do default+=("$top/$one$seed_folder/$m"); done
  done
  for m in ${system//,/ }; do known_value system "$m" "${other[@]##*/}"; done
  for one in "${other[@]}"; do
    is_in "${one##*/}" ${system//,/ } "${system:-${one##*/}}" && ! is_in "$one" "${planned[@]}" || continue
    planned+=("$one")
    [ ! -e "$one/system.yaml" ] || found+=("$one")
  done
  if [ -n "$dry" ] && [ ${#found[@]} = 0 ]; then
    for one in "${planned[@]}"; do if [ -n "$system" ] || is_in "$one" "${default[@]}"; then found+=("$one"); fi; done
  fi
  [ ${#found[@]} -gt 0 ] || fail "no recipe has been trained on data=$trained." "  fix:   make stage2 $(variables_of_trained)"
  for s in $(split=${split:-${from:+$(IFS=,; echo "${test_splits[*]}")}}; split=${split:-val}; splits); do
    labels=$(labels_of "$s")
    options=(--out "$top/compare${seed_folder}")
    [ ! -e "$labels" ] || options+=(--labels "$labels")
    [ ! -e "data_lists/$(folder_of "$trained")/val.tsv" ] || options+=(--val "data_lists/$(folder_of "$trained")/val.tsv")
    [ -z "$media" ] || [ ! -d "$media" ] || options+=(--media "$media")
    [ ! -d "$features" ] || options+=(--features "$features")
    run klassify compare "${found[@]}" --split "$(scored_as "$s")" "${options[@]}"
  done
}

# run_stages: run the requested stages. run.sh calls it last
run_stages() {
  local s name
  [ -z "$helping" ] || { usage; exit 0; }
  check_names
  [ "$checking" != names ] || exit 0
  [ -z "$comparing" ] || { compare_recipes; exit 0; }
  follow_labels
  check_stages
  [ -z "$checking" ] || exit 0
  if stage 0; then make_lists; follow_labels; fi
  if stage 1; then
    [ -z "$from" ] || all_splits=("${test_splits[@]}")
    for s in $(splits "${all_splits[@]}"); do
      [ -n "$sound" ] || extract_features "$s"
      cache_audio "$s"
    done
  fi
  if stage 2; then
    train_systems
    if have $(learnable $(names_in "$submit_conf" task1) $(names_in "$submit_conf" task2)) "${reported[@]}" "${reported_2[@]}"; then
      evaluate_split val "$lists/val.tsv"
      run klassify detector "$exp" --conf "$submit_conf" --labels "$lists" $(! without_segments || echo --task 1) "${forced[@]}"
    fi
  fi
  if stage 3; then
    for s in $(splits "${test_splits[@]}"); do
      if [ -n "$system" ]; then
        for name in ${system//,/ }; do score_one "$(scored_as "$s")" "$name"; done
      else
        score_systems "$(scored_as "$s")"
        submit "$s"
      fi
    done
  fi
  if stage 4; then
    for s in $(splits "${evaluated_splits[@]}"); do
      if [[ $s == test* && -z $split && -z $dry && ! -e $(labels_of "$s") ]]; then
        echo "$s has no labels here: not evaluated"
      else
        evaluate_split "$s" "$(labels_of "$s")"
      fi
    done
    mean_over_seeds
    [ -z "$from" ] || run klassify crosstest "$exp/evaluation" --out "$exp/evaluation/crosstest"
  fi
  [ -n "$dry" ] || [ "$last" -lt 3 ] || echo "$([ -n "$from" ] || echo "submissions: $submissions   ")evaluation: $exp/evaluation"
}
