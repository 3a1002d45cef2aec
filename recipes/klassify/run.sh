#!/usr/bin/env bash
# KLASSify (paper 1). Task 1: Wav2Vec-AASIST on audio, 8 mouth features into a TCN on video, Platt
# calibration of each, max-out of both. Task 2: BAM on audio, the TCN with a tagging head on video, proposals
# tuned by the official Score, merged. The other rows of the paper's tables are made when system= names them
# (RESULTS.md). `make help recipe=klassify` lists stages and variables.
. "$(dirname "$0")/../common.sh" "$@"

# the sound's part in avg and maxout: the paper's best is trained with codecs
case $conf in demo) audio_detector=w2v_aasist ;; *) audio_detector=w2v_aasist_codecs ;; esac
models=(tcn "$audio_detector" bam tcn_tags)              # trained and scored by default; other configs when named by system=
localisers=(bam bam_wavlm tcn_tags)
derived=(avg maxout merged w2v_aasist_ensemble) # made of the scores of others, without a config
proposals_only=(merged)                         # has no clip scores
reported=(tcn w2v_aasist tcn-platt w2v_aasist-platt avg maxout)
reported_2=(bam tcn_tags merged)
# compared too where they were made
reported_paper=(w2v_aasist_codecs w2v_aasist_codecs-platt tcn_12 tcn_123 w2v_aasist_baseline_1 w2v_aasist_baseline_2)
reported_augmented=(w2v_aasist_rtpg w2v_aasist_bp w2v_aasist_all w2v_aasist_ensemble)
for i in "${!reported[@]}"; do reported[i]=${reported[i]/#w2v_aasist/$audio_detector}; done

# released SYSTEM: the published checkpoint that is this system, where nothing is trained
released() {
  case $1 in
    w2v_aasist_baseline_1) echo pretrained/LA_model.pth ;;
    w2v_aasist_baseline_2) echo pretrained/ASVspoof5_model.pth ;;
  esac
}

# start_of SYSTEM: the weights of a whole detector that its training starts from
start_of() { [ "$1 $conf" = "bam demo" ] || [ "$1" != bam ] || echo pretrained/bam.safetensors; }

# need_weights SYSTEM...: before the first training of days, whether what they start from is there
need_weights() {
  local m file
  [ -z "$dry" ] || return 0
  for m in "$@"; do
    file=$(released "$m")$(start_of "$m")
    [ -z "$file" ] || [ -e "$file" ] || [ -e "$exp/$m/system.yaml" ] || fail "$file is missing: $m starts from it." \
      "  fix:   docs/gpu-box.md tells where it comes from$([ "$m" != bam ] || echo "; system=bam_wavlm does without it")"
  done
}

# train_all SYSTEM...: train (or import), score val, and fit what is fitted on val_fit
train_all() {
  local m config file how
  for m in "$@"; do
    if [[ " ${derived[*]} " == *" $m "* ]]; then join "$m"; continue; fi
    config=$conf_dir/$m.yaml file=$(released "$m")
    if [ -n "$file" ]; then
      run klassify import-checkpoint ssl-anti-spoofing "$file" --config "$config" --system "$exp/$m" "${forced[@]}"
    else
      file=$(start_of "$m") how=("${training[@]}")
      [[ $m != tcn* ]] || how=("${reading[@]}")  # too small for several devices
      run klassify train "$config" --out "$exp/$m" "${sources[@]}" ${file:+--init "$file"} --seed "$seed" "${how[@]}" \
        "${forced[@]}"
    fi
    run klassify score "$exp/$m" --split val "${sources[@]}" "${reading[@]}" "${forced[@]}"
    if is_localiser "$m"; then
      run klassify tune "$exp/$m" --labels "$lists" "${forced[@]}"
      run klassify localise "$exp/$m" --split val "${forced[@]}"
    else
      run klassify calibrate "$exp/$m" --out "$exp/$m-platt" --labels "$lists" "${forced[@]}"
      [ -z "$system" ] || run klassify score "$exp/$m-platt" --split val "${forced[@]}"
    fi
  done
}

# join SYSTEM: what is made of the scores or the proposals of others
join() {
  local m parts rule
  case $1 in
    avg) rule=mean parts=("$audio_detector" tcn) ;;
    maxout) rule=max parts=("$audio_detector-platt" tcn-platt) ;;
    merged) rule='' parts=(bam tcn_tags) ;;
    w2v_aasist_ensemble) rule=mean parts=(w2v_aasist_rtpg w2v_aasist_bp w2v_aasist_codecs w2v_aasist_all) ;;
  esac
  for m in "${parts[@]}"; do need "$exp/$m/system.yaml" 2 "system=${m%-platt}"; done
  if [ -z "$rule" ]; then
    run klassify localise --merge "${parts[@]/#/$exp/}" --out "$exp/$1" "${forced[@]}"
    run klassify tune "$exp/$1" --labels "$lists" "${forced[@]}"
    run klassify localise "$exp/$1" --split val "${forced[@]}"
  else
    run klassify fuse "${parts[@]/#/$exp/}" --rule "$rule" --out "$exp/$1" "${forced[@]}"
    [ -z "$system" ] || run klassify score "$exp/$1" --split val "${forced[@]}"
  fi
}

# need_features SPLIT: mouth features, unless system= names none that reads them
need_features() {
  case ",${system:-tcn}" in *,tcn*) need_shards "$features/mouth/$1" "$1" ;; esac
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
    cache_audio "$s"
  done
fi

if stage 2 "train the models, score val, calibrate and tune on val_fit, fuse"; then
  need_root
  for s in train val; do need "$lists/$s.tsv" 0; need_features "$s"; done
  chosen=$(systems tcn "$audio_detector" tcn_tags bam)
  # shellcheck disable=SC2086  # names without spaces
  need_weights $chosen
  if [ "$data" = demo ] && [ -z "$dry$system" ] && [ "$jobs" -gt 1 ]; then
    beside train_all bam                        # small models: two trainings of a thread each side by side
    train_all tcn "$audio_detector" tcn_tags
    wait $!
  else
    # shellcheck disable=SC2086
    train_all $chosen
  fi
  if have tcn-platt "$audio_detector-platt"; then join avg; join maxout; fi
  if have bam tcn_tags; then join merged; fi
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
    need_features "$s"
    if [ -n "$system" ]; then
      score_chosen "$s"
      continue
    fi
    run klassify score "${models[@]/#/$exp/}" --split "$s" "${sources[@]}" "${reading[@]}" "${forced[@]}"
    run klassify score "$exp/tcn-platt" "$exp/$audio_detector-platt" "$exp/avg" "$exp/maxout" --split "$s" "${forced[@]}"
    run klassify localise "$exp/bam" "$exp/tcn_tags" "$exp/merged" --split "$s" "${forced[@]}"
    submit "$s"
  done
fi

if stage 4 "every system against labels: tables, calibration curves, histograms"; then
  evaluate_all maxout
fi

[ -n "$dry" ] || [ "$last" -lt 3 ] || echo "$([ -n "$from" ] || echo "submissions: $submissions   ")evaluation: $exp/evaluation"
