#!/usr/bin/env bash
# The multi-branch system (paper 2). Partial-spoof branch on audio; spatio-temporal and LMM branches on video,
# dynamically fused; a linear layer joins both on the 40 ms grid. `fused` learns from segment labels and answers
# Task 2; `fused_clip` is made of the same parts but learns from clip labels alone, as Task 1 demands.
# `make help recipe=multibranch` lists stages and variables.
. "$(dirname "$0")/../common.sh" "$@"

models=(ps visual ps_clip visual_clip)          # trained and scored by default; other configs when named by system=
localisers=(ps ps_step visual visual_no_lmm visual_constant fused_constant)  # learn from segments: answer Task 2 too
derived=(fused fused_clip fused_constant)       # made of the scores of others, without a config
unscored=(vqvae stems)                          # parts of `visual`
reported=(ps_clip visual_clip fused_clip ps visual fused)
reported_2=(ps visual fused)

# the LMM: a small random one for the demo, said to be untrained wherever it is used; else the published one
case $conf in
  demo) lmm_arguments=(--lmm "${lmm:-tiny}") ;;
  *) lmm_arguments=(--lmm "${lmm:-sparklexfantasy/llava-7b-1.5-rfrd}" $([ -n "$lmm" ] || echo --download)) ;;
esac

# make_all SYSTEM...: train or fit, and score val
make_all() {
  local m given
  for m in "$@"; do
    given=()
    case $m in
      fused) join "$m" ps visual; continue ;;
      fused_constant) join "$m" ps visual_constant --solver constant; continue ;;
      fused_clip) join "$m" ps_clip visual_clip --supervision clip; continue ;;
      vqvae) [ -z "$vqvae" ] || continue ;;     # given: nothing to train
      stems*) given=("model.init_args.vqvae_weights=${vqvae:-$exp/vqvae}") ;;
      visual*)
        # the stems learned from segments: not for what must learn from clips alone
        if [ -e "$conf_dir/stems.yaml" ] && [[ $m != *_clip ]]; then
          given=("model.init_args.stems=$exp/stems")
        else
          given=("model.init_args.vqvae_weights=${vqvae:-$exp/vqvae}")
        fi ;;
    esac
    run klassify train "$conf_dir/$m.yaml" "${given[@]}" --out "$exp/$m" "${sources[@]}" --seed "$seed" "${training[@]}" \
      "${forced[@]}"
    [[ " ${unscored[*]} " == *" $m "* ]] || run klassify score "$exp/$m" --split val "${sources[@]}" "${reading[@]}" "${forced[@]}"
  done
}

# make_clip_branches: the audio branches, and that of pictures which learns from clips once its VQ-VAE is there
make_clip_branches() {
  make_all ps ps_clip
  until [ -n "$vqvae" ] || have vqvae; do sleep 1; done
  make_all visual_clip
}

# join OUT AUDIO VISUAL OPTION...: the linear layer over two branches, fitted on the frames of val_fit
join() {
  local out=$1 sound=$2 picture=$3
  shift 3
  for m in "$sound" "$picture"; do need "$exp/$m/system.yaml" 2 "system=$m"; done
  run klassify fuse "$exp/$sound" "$exp/$picture" --rule linear --labels "$lists" --out "$exp/$out" "$@" "${forced[@]}"
  run klassify score "$exp/$out" --split val "${forced[@]}"
}

# answer_task2 SPLIT SYSTEM...: proposals of those that are there
answer_task2() {
  local s=$1 m
  shift
  for m in "$@"; do
    have "$m" || continue
    [ "$s" != val ] || run klassify tune "$exp/$m" --labels "$lists" "${forced[@]}"
    run klassify localise "$exp/$m" --split "$s" "${forced[@]}"
  done
}

# need_features SPLIT: LMM features, unless system= names none that reads them
need_features() {
  local m chosen=${system:-visual}
  for m in ${chosen//,/ }; do
    case $m in
      visual_no_lmm) ;;
      visual*) need_shards "$features/lmm/$1" "$1"; return ;;
    esac
  done
}

if stage 0 "data lists: from the official metadata, or from a corpus that is generated first (data=demo)"; then
  make_lists
fi

if stage 1 "LMM features: hidden states and CLIP vectors of a frame each 8 s"; then
  need_root
  chosen=$(splits train val testA testB)
  for s in $chosen; do
    need "$lists/$s.tsv" 0
    run klassify extract --kind lmm --list "$lists/$s.tsv" --root "$media" --out "$features/lmm/$s" "${lmm_arguments[@]}" --jobs "$jobs" \
      "${forced[@]}"
    cache_audio "$s"
  done
fi

if stage 2 "train the branches, score val, fit the linear fusion on val_fit, tune"; then
  need_root
  for s in train val; do need "$lists/$s.tsv" 0; need_features "$s"; done
  # only the demo trains stems; others start from ImageNet's weights
  chosen=$(systems vqvae $(cd "$conf_dir" && compgen -G 'stems.yaml' | sed 's/\.yaml$//') ps ps_clip visual visual_clip fused fused_clip)
  if [ "$data" = demo ] && [ -z "$dry$system" ] && [ "$jobs" -gt 1 ]; then
    beside make_clip_branches                   # small models: two trainings of a thread each side by side
    make_all vqvae stems visual
    wait $!
    make_all fused fused_clip
  else
    # shellcheck disable=SC2086  # names without spaces
    make_all $chosen
  fi
  for m in $chosen; do ! is_localiser "$m" || answer_task2 val "$m"; done
  if have fused fused_clip; then
    evaluate_split val "$lists/val.tsv"
    run klassify detector "$exp" --conf "$conf_dir/submit.yaml" "${forced[@]}"
  fi
fi

if stage 3 "score the test split, align, fuse, localise, write the submission and check it"; then
  need_root
  [ -n "$system" ] || need "$exp/detector.yaml" 2
  chosen=$(splits testA testB)
  for s in $chosen; do
    need "$lists/$s.tsv" 0
    need_features "$s"
    if [ -n "$system" ]; then
      score_chosen "$s"
      continue
    fi
    run klassify score "${models[@]/#/$exp/}" --split "$s" "${sources[@]}" "${reading[@]}" "${forced[@]}"
    run klassify score "$exp/fused" "$exp/fused_clip" --split "$s" "${forced[@]}"
    answer_task2 "$s" "${reported_2[@]}"
    submit "$s"
  done
fi

if stage 4 "every system against labels: tables, calibration curves, histograms"; then
  evaluate_all fused
fi

[ -n "$dry" ] || [ "$last" -lt 3 ] || echo "$([ -n "$from" ] || echo "submissions: $submissions   ")evaluation: $exp/evaluation"
