#!/usr/bin/env bash
# The main job in the small, through the command line alone: compose, prepare, pretrain, embed, look.
set -euo pipefail
cd "$(dirname "$0")/.."
myna=.venv/bin/myna
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

$myna demo --size smoke -o "$folder/demo"
test -s "$folder/demo/report.html"

# each verb by itself, on the songs that the demo composed
$myna prepare "$folder/demo/songs" -o "$folder/store"
$myna pretrain "$folder/store" -o "$folder/run" --recipe tiny --steps 6 --batch 16 --log-every 2
$myna pretrain "$folder/store" -o "$folder/run" --resume --steps 8
$myna embed "$folder/demo/exam" -m "$folder/run" -o "$folder/library.parquet"
$myna evaluate "$folder/run" mfcc --task "$folder/demo/exam/labels.csv" --columns style --split 50/25/25 --head quick \
    -o "$folder/results"
$myna export "$folder/run" -o "$folder/model.onnx"
$myna tasks
$myna info "$folder/store"
$myna info "$folder/run"
$myna info "$folder/library.parquet"
$myna errors "$folder/store"
echo "smoke: every verb ran"
