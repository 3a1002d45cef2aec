#!/usr/bin/env bash
# KLASSify (paper 1). Task 1: Wav2Vec-AASIST on audio and a TCN on 8 mouth features, each Platt-calibrated, then
# max-out. Task 2: BAM on audio and the TCN with a tagging head on video; proposals are tuned by the official Score
# and merged. system= makes the other rows of the paper's tables (RESULTS.md). `make help recipe=klassify` lists stages and variables.
. "$(dirname "$0")/../common.sh" "$@"

title_1="mouth features: 8 per frame on the 25 fps grid"
title_2="train the models, score val, calibrate and tune on val_fit, fuse"
title_3="score the test splits, calibrate, fuse, localise, write the submission and check it"

# the audio part of avg and maxout; the paper's best is trained with codecs
case $conf in demo) audio_detector=w2v_aasist ;; *) audio_detector=w2v_aasist_codecs ;; esac
models=(tcn "$audio_detector" bam tcn_tags)
localisers=(bam bam_wavlm bam_20 tcn_tags tcn_tags_20 merged)
derived=(avg maxout merged w2v_aasist_ensemble)
proposals_only=(merged)

features_of() { [[ $1 != tcn* ]] || echo mouth; }

needs_picture() { case $1 in tcn* | avg | maxout | merged) ;; *) return 1 ;; esac; }

extract_features() { extract_mouth "$1"; }

# released SYSTEM: the published checkpoint to import, for systems that are not trained
released() {
  case $1 in
    w2v_aasist_baseline_1) echo pretrained/LA_model.pth ;;
    w2v_aasist_baseline_2) echo pretrained/ASVspoof5_model.pth ;;
  esac
}

# start_of SYSTEM: the released detector that its training starts from
start_of() { [ "$conf" = demo ] || [[ $1 != bam && $1 != bam_20 ]] || echo pretrained/bam.safetensors; }

# need_weights SYSTEM...: stop before any training if weights of a later one are missing
need_weights() {
  local m file other
  [ -z "$dry" ] || return 0
  for m in "$@"; do
    file=$(released "$m")$(start_of "$m")
    [ -z "$file" ] || [ -e "$file" ] || [ -e "$exp/$m/system.yaml" ] || {
      other=${system:-tcn,$audio_detector,tcn_tags,bam}
      fail "$file is missing: $m starts from it." "  fix:   download it: docs/checkpoints.md says where" \
        "$([ "$m" != bam ] || echo "  or:     make stage2 $(variables_for "$data") system=${other/%bam/bam_wavlm}    # does without it")"
    }
  done
}

# train_all SYSTEM...: train or import, score val, then calibrate or tune on val_fit
train_all() {
  local m config file how
  for m in "$@"; do
    if is_in "$m" "${derived[@]}"; then join "$m"; continue; fi
    config=$conf_dir/$m.yaml file=$(released "$m")
    if [ -n "$file" ]; then
      run klassify import-checkpoint ssl-anti-spoofing "$file" --config "$config" --system "$exp/$m" "${forced[@]}"
    else
      file=$(start_of "$m") how=("${training[@]}")
      [[ $m != tcn* ]] || how=("${reading[@]}")  # too small for several devices
      run klassify train "$config" "${learned[@]}" --out "$exp/$m" "${sources[@]}" ${file:+--init "$file"} --seed "$seed" "${how[@]}" \
        "${forced[@]}"
    fi
    run klassify score "$exp/$m" --split val "${sources[@]}" "${reading[@]}" "${forced[@]}"
    if is_localiser "$m"; then
      run klassify tune "$exp/$m" --labels "$lists" "${forced[@]}"
      run klassify localise "$exp/$m" --split val "${forced[@]}"
    else
      run klassify calibrate "$exp/$m" --out "$exp/$m-platt" --labels "$lists" "${calibrated[@]}" "${forced[@]}"
      [ -z "$system" ] || run klassify score "$exp/$m-platt" --split val "${forced[@]}"
    fi
  done
}

# join SYSTEM: a system computed from the scores or proposals of others
join() {
  local parts rule
  case $1 in
    avg) rule=mean parts=("$audio_detector" tcn) ;;
    maxout) rule=max parts=("$audio_detector-platt" tcn-platt) ;;
    merged) rule='' parts=(bam tcn_tags) ;;
    w2v_aasist_ensemble) rule=mean parts=(w2v_aasist_rtpg w2v_aasist_bp w2v_aasist_codecs w2v_aasist_all) ;;
  esac
  need "${parts[@]}"
  if [ -z "$rule" ]; then
    run klassify localise --merge "${parts[@]/#/$exp/}" --out "$exp/$1" "${forced[@]}"
    run klassify tune "$exp/$1" --labels "$lists" "${forced[@]}"
    run klassify localise "$exp/$1" --split val "${forced[@]}"
  else
    run klassify fuse "${parts[@]/#/$exp/}" --rule "$rule" --out "$exp/$1" "${forced[@]}"
    [ -z "$system" ] || run klassify score "$exp/$1" --split val "${forced[@]}"
  fi
}

train_systems() {
  local chosen=(${system//,/ })
  [ -n "$system" ] || mapfile -t chosen < <(learnable tcn "$audio_detector" tcn_tags bam)
  need_weights "${chosen[@]}"
  if [ "$data" = demo ] && [ -z "$dry$system" ] && [ "$jobs" -gt 1 ]; then
    beside train_all bam                        # small models: two trainings at once, with one thread each
    train_all tcn "$audio_detector" tcn_tags
    wait $!
  else
    train_all "${chosen[@]}"
  fi
  [ -z "$sound" ] || return 0
  if have tcn-platt "$audio_detector-platt"; then join avg; join maxout; fi
  if have bam tcn_tags && ! without_segments; then join merged; fi
}

score_systems() {
  run klassify score "${models[@]/#/$exp/}" --split "$1" "${sources[@]}" "${reading[@]}" "${forced[@]}"
  local rest
  mapfile -t rest < <(learnable tcn-platt "$audio_detector-platt" avg maxout)
  run klassify score "${rest[@]/#/$exp/}" --split "$1" "${forced[@]}"
  mapfile -t rest < <(learnable bam tcn_tags merged)
  without_segments || run klassify localise "${rest[@]/#/$exp/}" --split "$1" "${forced[@]}"
}

run_stages
