#!/usr/bin/env bash
# KLASSify (paper 1). Task 1: Wav2Vec-AASIST on audio, 8 mouth features into a TCN on video, Platt
# calibration of each, max-out of both. Task 2: BAM on audio, the TCN with a tagging head on video, proposals
# tuned by the official Score, merged. `make help recipe=klassify` lists stages and variables.
. "$(dirname "$0")/../common.sh" "$@"

models=(tcn w2v_aasist bam tcn_tags)            # trained and scored by default; other configs when named by system=
localisers=(bam tcn_tags)
reported=(tcn w2v_aasist tcn-platt w2v_aasist-platt avg maxout)
reported_2=(bam tcn_tags merged)

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
  make_lists
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
  [ -n "$system" ] || need "$exp/detector.yaml" 2
  chosen=$(splits testA testB)
  for s in $chosen; do
    need "$lists/$s.tsv" 0
    need "$features/mouth/$s" 1 "split=$s"
    if [ -n "$system" ]; then
      score_chosen "$s"
      continue
    fi
    run klassify score "${models[@]/#/$exp/}" --split "$s" "${sources[@]}" "${forced[@]}"
    run klassify score "$exp/tcn-platt" "$exp/w2v_aasist-platt" "$exp/avg" "$exp/maxout" --split "$s" "${forced[@]}"
    run klassify localise "$exp/bam" "$exp/tcn_tags" "$exp/merged" --split "$s" "${forced[@]}"
    submit "$s"
  done
fi

if stage 4 "every system against labels: tables, calibration curves, histograms"; then
  evaluate_all maxout
fi

[ -n "$dry" ] || [ "$last" -lt 3 ] || echo "$([ -n "$from" ] || echo "submissions: $submissions   ")evaluation: $exp/evaluation"
