#!/usr/bin/env bash
# KLASSify (paper 1). Task 1: Wav2Vec-AASIST on audio, 8 mouth features into a TCN on video, Platt
# calibration of each, max-out of both. Task 2: BAM on audio, the TCN with a tagging head on video, proposals
# tuned by the official Score, merged. `make help recipe=klassify` lists stages and variables.
. "$(dirname "$0")/../common.sh" "$@"

detectors=(tcn w2v_aasist)                      # trained by default; other configs when named by system=
localisers=(bam tcn_tags)
reported=(tcn w2v_aasist tcn-platt w2v_aasist-platt avg maxout)
reported_2=(bam tcn_tags merged)

# evaluate_split SPLIT LABELS: tables of the reported systems, or of those that system= names
evaluate_split() {
  local s=$1 labels=$2 name task1=() task2=()
  for name in ${system//,/ }; do
    if is_localiser "$name"; then task2+=("$exp/$name"); else task1+=("$exp/$name"); fi
  done
  if [ -z "$system" ]; then
    for name in "${reported[@]}"; do task1+=("$exp/$name"); done
    for name in "${reported_2[@]}"; do task2+=("$exp/$name"); done
  fi
  if [ ${#task1[@]} -gt 0 ]; then
    [ "$s" != val ] || run klassify score "${task1[@]}" --split val "${sources[@]}"
    run klassify evaluate "${task1[@]}" --split "$s" --labels "$labels" --out "$exp/evaluation"
  fi
  [ ${#task2[@]} -eq 0 ] || run klassify evaluate "${task2[@]}" --task 2 --split "$s" --labels "$labels" --out "$exp/evaluation"
}

# train_all SYSTEM...: train, score val, and fit what is fitted on val_fit
train_all() {
  local m
  for m in "$@"; do
    run klassify train "$conf_dir/$m.yaml" --out "$exp/$m" "${sources[@]}" --seed "$seed" "${forced[@]}"
    run klassify score "$exp/$m" --split val "${sources[@]}" "${forced[@]}"
    if is_localiser "$m"; then
      run klassify tune "$exp/$m" --labels "$lists" "${forced[@]}"
      run klassify localise "$exp/$m" --split val "${forced[@]}"
    else
      run klassify calibrate "$exp/$m" --out "$exp/$m-platt" --labels "$lists" "${forced[@]}"
    fi
  done
}

if stage 0 "data lists: from the official metadata, or from a corpus that is generated first (data=demo)"; then
  if [ "$data" = demo ]; then
    run klassify corpus --out "$media" --size "$size" --seed 0 --jobs "$jobs" "${forced[@]}"
  fi
  need_root
  probe=missing                                 # opens the files of unknown length alone
  run klassify lists --data "$data" --root "$media" --out "$lists" ${split:+--splits "$split"} --probe "$probe" --jobs "$jobs" "${forced[@]}"
fi

if stage 1 "mouth features: 8 a frame on the 25 fps grid"; then
  need_root
  chosen=$(splits train val testA testB)
  for s in $chosen; do
    need "$lists/$s.tsv" 0
    run klassify extract --list "$lists/$s.tsv" --root "$media" --out "$features/mouth/$s" --jobs "$jobs" "${forced[@]}"
  done
fi

if stage 2 "train the models, score val, calibrate and tune on val_fit, fuse"; then
  need_root
  for s in train val; do need "$lists/$s.tsv" 0; need "$features/mouth/$s" 1 "split=$s"; done
  chosen=$(systems tcn w2v_aasist tcn_tags bam)
  if [ "$data" = demo ] && [ -z "$dry$system" ] && [ "$jobs" -gt 1 ]; then
    train_all bam &                             # small models: two trainings of a thread each side by side
    train_all tcn w2v_aasist tcn_tags
    wait $!
  else
    # shellcheck disable=SC2086  # names without spaces
    train_all $chosen
  fi
  if have tcn-platt w2v_aasist-platt; then
    run klassify fuse "$exp/w2v_aasist" "$exp/tcn" --rule mean --out "$exp/avg" "${forced[@]}"
    run klassify fuse "$exp/w2v_aasist-platt" "$exp/tcn-platt" --rule max --out "$exp/maxout" "${forced[@]}"
  fi
  if have bam tcn_tags; then
    run klassify localise --merge "$exp/bam" "$exp/tcn_tags" --out "$exp/merged" "${forced[@]}"
    run klassify tune "$exp/merged" --labels "$lists" "${forced[@]}"
    run klassify localise "$exp/merged" --split val "${forced[@]}"
  fi
  if have maxout merged; then
    evaluate_split val "$lists/val.tsv"
    run klassify detector "$exp" --conf "$conf_dir/submit.yaml" "${forced[@]}"
  fi
fi

if stage 3 "score the test split, calibrate, fuse, localise, write the submission and check it"; then
  need_root
  need "$exp/detector.yaml" 2
  chosen=$(splits testA testB)
  for s in $chosen; do
    need "$lists/$s.tsv" 0
    need "$features/mouth/$s" 1 "split=$s"
    models=()
    for m in "${detectors[@]}" "${localisers[@]}"; do models+=("$exp/$m"); done
    run klassify score "${models[@]}" --split "$s" "${sources[@]}" "${forced[@]}"
    run klassify score "$exp/tcn-platt" "$exp/w2v_aasist-platt" "$exp/avg" "$exp/maxout" --split "$s" "${forced[@]}"
    run klassify localise "$exp/bam" "$exp/tcn_tags" "$exp/merged" --split "$s" "${forced[@]}"
    run klassify package "$exp/detector.yaml" --split "$s" --list "$lists/$s.tsv" --out "$submissions/$s" \
      ${submit1:+--task1 "$exp/$submit1"} ${submit2:+--task2 "$exp/$submit2"} "${forced[@]}"
    run klassify check "$submissions/$s/submission.zip" --list "$lists/$s.tsv"
  done
fi

if stage 4 "every system against labels: tables, calibration curves, histograms"; then
  need "$exp/detector.yaml" 2
  chosen=$(splits val testA testB)
  for s in $chosen; do
    labels=$lists/$s.tsv
    [[ $s == test* ]] && labels=$lists/heldout/${s}_labels.tsv
    if [[ $s == test* && -z "$split" && ! -e $labels && -z "$dry" ]]; then
      echo "$s has no labels here: not evaluated"
      continue
    fi
    need "$labels" 0
    [ "$s" = val ] || need "$exp/maxout/scores/$s.clips.tsv" 3 "split=$s"
    evaluate_split "$s" "$labels"
  done
  mean_over_seeds
fi

[ -n "$dry" ] || [ "$last" -lt 3 ] || echo "submissions: $submissions   evaluation: $exp/evaluation"
