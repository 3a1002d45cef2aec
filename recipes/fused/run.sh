#!/usr/bin/env bash
# One timeline: what won after both papers (docs/fused.md). Task 1: systems that learned from clip labels alone, joined
# by a regression where it beats max-out. Task 2: the union of several localisers' proposals, tuned on val_fit.
# `make help recipe=fused` lists stages and variables.
. "$(dirname "$0")/../common.sh" "$@"

title_1="mouth features: 8 per frame on the 25 fps grid"
title_2="train the models, score val, stack the clip scores, tune and join the proposals"
title_3="score the test splits, stack, localise, write the submission and check it"

clip_models=(tcn w2v_aasist)                    # the inputs of stack: none learned from segments
frame_models=(bam tcn_tags)                     # the inputs of spans
models=("${clip_models[@]}" "${frame_models[@]}")
localisers=("${frame_models[@]}" spans)
derived=(stack spans)
proposals_only=(spans)

features_of() { case $1 in tcn*) echo mouth ;; esac; }

extract_features() { extract_mouth "$1"; }

# train_all SYSTEM...: train and score val; tune localisers on val_fit; join
train_all() {
  local m how
  for m in "$@"; do
    if is_in "$m" "${derived[@]}"; then join "$m"; continue; fi
    how=("${training[@]}")
    [[ $m != tcn* ]] || how=("${reading[@]}")  # too small for several devices
    run klassify train "$conf_dir/$m.yaml" "${learned[@]}" --out "$exp/$m" "${sources[@]}" --seed "$seed" "${how[@]}" "${forced[@]}"
    run klassify score "$exp/$m" --split val "${sources[@]}" "${reading[@]}" "${forced[@]}"
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
  case $1 in
    stack)
      need "${clip_models[@]}"
      run klassify fuse "${clip_models[@]/#/$exp/}" --rule stack --labels "$lists" --out "$exp/stack" "${forced[@]}"
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
  run klassify score "${models[@]/#/$exp/}" --split "$1" "${sources[@]}" "${reading[@]}" "${forced[@]}"
  run klassify score "$exp/stack" --split "$1" "${forced[@]}"
  without_segments || run klassify localise "${frame_models[@]/#/$exp/}" "$exp/spans" --split "$1" "${forced[@]}"
}

run_stages
