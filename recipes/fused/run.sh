#!/usr/bin/env bash
# The third recipe, no paper's. Task 1: systems that learned from clip labels alone, or from fakes of their own making,
# joined by a regression where it beats max-out. Task 2: the union of several localisers' proposals, tuned on val_fit.
# `make help recipe=fused` lists stages and variables.
. "$(dirname "$0")/../common.sh" "$@"

title_1="mouth features and mouth crops on the 25 fps grid"
title_2="train encoders, make their embeddings, train what reads them; stack the clip scores, join the proposals"
title_3="score the test splits, stack, localise, write the submission and check it"

# encoders_of SYSTEM: the systems whose embeddings it reads
encoders_of() {
  case $1 in sync | av_spans) awk '$1 ~ /^(audio|visual):$/ { print $2 }' "$conf_dir/$1.yaml" ;; esac
}

# in the order of training: what reads embeddings comes after its encoders
frame_models=(tcn_tags audio_frames lips_frames av_spans)  # the inputs of spans
mapfile -t clip_models < <(                                # the inputs of stack; the demo leaves out lips_mil
  for m in tcn w2v_aasist audio_mil lips_mil splice_audio splice_lips sync; do if is_in "$m" "${reported[@]}"; then echo "$m"; fi; done
)
models=("${clip_models[@]}" "${frame_models[@]}")
localisers=("${frame_models[@]}" spans)
derived=(stack spans)
proposals_only=(spans)

features_of() { case $1 in tcn*) echo mouth ;; lips_* | splice_lips) echo lips ;; esac; }

needs_picture() { case $1 in w2v_aasist* | audio_* | splice_audio | stack) return 1 ;; esac; }

extract_features() {
  if [ "$launcher" != slurm ]; then extract_mouth "$1" --lips "$features/lips/$1"; return; fi
  # two arrays of jobs
  extract_mouth "$1"
  run klassify extract --kind lips --list "$lists/$1.tsv" --root "$media" --out "$features/lips/$1" --jobs "$jobs" "${forced[@]}"
}

# sources_for SYSTEM SPLIT...: what it reads; embeddings are made first, in a folder for each training seed
sources_for() {
  local encoder s
  inputs=("${sources[@]}")
  for encoder in $(encoders_of "$1"); do
    need "$encoder"
    inputs=(--lists "$lists" --media "$media" --features "$features$seed_folder")
    for s in "${@:2}"; do
      run klassify extract --kind embedding --system "$exp/$encoder" --list "$lists/${s##*-}.tsv" --root "$media" \
        --features "$features" --out "$features$seed_folder/embedding-$encoder/${s##*-}" "${forced[@]}"
    done
  done
}

# train_all SYSTEM...: train and score val; tune localisers on val_fit; join
train_all() {
  local m how inputs
  for m in "$@"; do
    if is_in "$m" "${derived[@]}"; then join "$m"; continue; fi
    how=("${training[@]}")
    [[ $m != tcn* && $m != sync ]] || how=("${reading[@]}")  # too small for several devices
    sources_for "$m" train val
    run klassify train "$conf_dir/$m.yaml" "${learned[@]}" --out "$exp/$m" "${inputs[@]}" --seed "$seed" "${how[@]}" "${forced[@]}"
    run klassify score "$exp/$m" --split val "${inputs[@]}" "${reading[@]}" "${forced[@]}"
    ! is_localiser "$m" || localise_val "$m"
  done
}

# localise_val SYSTEM: choose the settings of its proposals on val_fit, and localise val
localise_val() {
  run klassify tune "$exp/$1" --labels "$lists" "${forced[@]}"
  run klassify localise "$exp/$1" --split val "${forced[@]}"
}

# join SYSTEM: a system computed from the scores or proposals of others
join() {
  local parts
  case $1 in
    stack)
      mapfile -t parts < <(learnable "${clip_models[@]}")
      need "${parts[@]}"
      run klassify fuse "${parts[@]/#/$exp/}" --rule stack --labels "$lists" --out "$exp/stack" "${forced[@]}"
      [ -z "$system" ] || run klassify score "$exp/stack" --split val "${forced[@]}" ;;
    spans)
      need "${frame_models[@]}"
      run klassify localise --merge "${frame_models[@]/#/$exp/}" --method union --out "$exp/spans" "${forced[@]}"
      localise_val spans ;;
  esac
}

train_systems() {
  local chosen=(${system//,/ })
  [ -n "$system" ] || mapfile -t chosen < <(learnable "${models[@]}" stack spans)
  train_all "${chosen[@]}"
}

score_systems() {
  local m inputs plain=()
  for m in "${models[@]}"; do [ -n "$(encoders_of "$m")" ] || plain+=("$exp/$m"); done
  run klassify score "${plain[@]}" --split "$1" "${sources[@]}" "${reading[@]}" "${forced[@]}"
  for m in "${models[@]}"; do
    [ -n "$(encoders_of "$m")" ] || continue
    sources_for "$m" "$1"
    run klassify score "$exp/$m" --split "$1" "${inputs[@]}" "${reading[@]}" "${forced[@]}"
  done
  run klassify score "$exp/stack" --split "$1" "${forced[@]}"
  mapfile -t plain < <(learnable "${frame_models[@]}" spans)
  without_segments || run klassify localise "${plain[@]/#/$exp/}" --split "$1" "${forced[@]}"
}

run_stages
