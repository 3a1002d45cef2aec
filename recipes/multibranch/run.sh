#!/usr/bin/env bash
# The multi-branch system (paper 2). PartialSpoof on audio; spatio-temporal and LMM branches on video, dynamically
# fused; a linear layer joins audio and video on the 40 ms grid. `fused` learns from segment labels and answers
# Task 2; `fused_clip` has the same parts, trained on clip labels alone, as Task 1 requires.
# `make help recipe=multibranch` lists stages and variables.
. "$(dirname "$0")/../common.sh" "$@"

title_1="mouth features, which say where faces are; LMM features: hidden states and CLIP vectors of one frame every 8 s"
title_2="train the branches, score val, fit the linear fusion on val_fit, tune"
title_3="score the test splits, align, fuse, localise, write the submission and check it"

# Task 1: both branches from clip labels, fused; where that is not reported, as in the demo, in which the picture stays
# at chance, the calibrated sound
clip_fusion=(visual_clip fused_clip)
[[ " ${reported[*]} " == *" fused_clip "* ]] || clip_fusion=()
models=(ps visual ps_clip "${clip_fusion[@]:0:1}")
localisers=(ps ps_step ps_20 visual visual_no_lmm visual_constant fused fused_constant)
derived=(fused fused_clip fused_constant)
unscored=(vqvae stems)                          # parts of `visual`

features_of() {
  case $1 in
    visual_no_lmm | stems) echo mouth ;;
    visual*) printf '%s\n' mouth lmm ;;
  esac
}

needs_picture() { [[ $1 != ps* ]]; }

extract_features() {
  # the demo uses an untrained stand-in, named as such wherever it is used; else the published LMM
  local s=$1 model=(--lmm "${lmm:-sparklexfantasy/llava-7b-1.5-rfrd}" $([ -n "$lmm" ] || echo --download))
  [ "$conf" != demo ] || model=(--lmm "${lmm:-tiny}")
  extract_mouth "$s"
  run klassify extract --kind lmm --list "$lists/$s.tsv" --root "$media" --out "$features/lmm/$s" "${model[@]}" \
    --jobs "$jobs" "${forced[@]}"
}

# train_all SYSTEM...: train or fit, and score val
train_all() {
  local m given labels
  for m in "$@"; do
    given=() labels=("${learned[@]}")
    case $m in
      fused) join "$m" ps visual; continue ;;
      fused_constant) join "$m" ps visual_constant --solver constant; continue ;;
      fused_clip) join "$m" ps_clip visual_clip --supervision clip; continue ;;
      vqvae) labels=(); [ -z "$vqvae" ] || continue ;;     # given: nothing to train
      stems*) given=("model.init_args.vqvae_weights=${vqvae:-$exp/vqvae}") ;;
      visual*)
        # the stems learn from segments: they must not start a model that may use clip labels only
        if [ -e "$conf_dir/stems.yaml" ] && [[ $m != *_clip ]]; then
          given=("model.init_args.stems=$exp/stems")
        else
          given=("model.init_args.vqvae_weights=${vqvae:-$exp/vqvae}")
        fi ;;
    esac
    run klassify train "$conf_dir/$m.yaml" "${given[@]}" "${labels[@]}" --out "$exp/$m" "${sources[@]}" --seed "$seed" "${training[@]}" \
      "${forced[@]}"
    is_in "$m" "${unscored[@]}" ||
      run klassify score "$exp/$m" --split val "${sources[@]}" "${reading[@]}" "${forced[@]}"
    [ "$m" != ps_clip ] || [ ${#clip_fusion[@]} -gt 0 ] ||
      run klassify calibrate "$exp/$m" --out "$exp/$m-platt" --labels "$lists" --label video "${forced[@]}"
  done
}

# join OUT AUDIO VISUAL OPTION...: the linear layer over two branches, fitted on the frames of val_fit
join() {
  local out=$1 branches=("$2" "$3")
  shift 3
  need "${branches[@]}"
  run klassify fuse "${branches[@]/#/$exp/}" --rule linear --labels "$lists" --out "$exp/$out" "$@" "${forced[@]}"
  run klassify score "$exp/$out" --split val "${forced[@]}"
}

# localise_all SPLIT SYSTEM...: proposals of the systems that exist; on val they are tuned first
localise_all() {
  local s=$1 m
  shift
  for m in "$@"; do
    have "$m" || continue
    [ "$s" != val ] || run klassify tune "$exp/$m" --labels "$lists" "${forced[@]}"
    run klassify localise "$exp/$m" --split "$s" "${forced[@]}"
  done
}

# train_clip_branches: both audio branches, then visual_clip, if it is wanted, as soon as its VQ-VAE exists
train_clip_branches() {
  train_all ps ps_clip
  [ ${#clip_fusion[@]} -gt 0 ] || return 0
  until [ -n "$vqvae" ] || have vqvae; do sleep 1; done
  train_all visual_clip
}

train_systems() {
  local m chosen=(${system//,/ })
  # only the demo trains stems; conf/paper starts from ImageNet weights
  [ -n "$system" ] || mapfile -t chosen < <(
    learnable vqvae
    if [ -e "$conf_dir/stems.yaml" ] && ! without_segments; then learnable stems; fi
    learnable ps ps_clip visual "${clip_fusion[@]:0:1}" fused "${clip_fusion[@]:1}"
  )
  if [ "$data" = demo ] && [ -z "$dry$system" ] && [ "$jobs" -gt 1 ]; then
    beside train_clip_branches                  # small models: two trainings at once, with one thread each
    train_all vqvae stems visual
    wait $!
    train_all fused "${clip_fusion[@]:1}"
  else
    train_all "${chosen[@]}"
  fi
  for m in "${chosen[@]}"; do ! is_localiser "$m" || localise_all val "$m"; done
}

score_systems() {
  run klassify score "${models[@]/#/$exp/}" --split "$1" "${sources[@]}" "${reading[@]}" "${forced[@]}"
  local fused calibrated_sound=(ps_clip-platt)
  [ ${#clip_fusion[@]} = 0 ] || calibrated_sound=()
  mapfile -t fused < <(learnable fused "${clip_fusion[@]:1}" "${calibrated_sound[@]}")
  [ ${#fused[@]} = 0 ] || run klassify score "${fused[@]/#/$exp/}" --split "$1" "${forced[@]}"
  without_segments || localise_all "$1" $(learnable ps visual fused)
}

run_stages
