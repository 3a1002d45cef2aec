#!/usr/bin/env bash
# ENTRYPOINT of the Dockerfile; media and official metadata are mounted at /data:
#   train [name=value...]   lists and features of train and val, then every model, fusion and detector.yaml
#   test [name=value...]    lists, features, scores and the checked submission of testB, or of split=
#   klassify COMMAND...     one command
#   anything else is a target of make: help, stage4 split=val, demo
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-help}
[ $# -eq 0 ] || shift
root=(root=/data)
[[ " $* " != *" data=demo "* ]] || root=()      # the demo makes its own media
case $what in
  train) exec make stage0 stage1 stage2 "${root[@]}" split=train,val "$@" ;;
  test) exec make stage0 stage1 stage3 "${root[@]}" split=testB "$@" ;;
  klassify) exec .venv/bin/klassify "$@" ;;
  *) exec make "$what" "$@" ;;
esac
