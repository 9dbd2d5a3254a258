#!/usr/bin/env bash
# Every table and figure of the paper, in order, and then the study of key. If stopped, it goes on where it was.
#
#   runs/reproduce.sh --small [ITEM ...]          composed songs, half an hour an item on two cores
#   runs/reproduce.sh --store STORE [ITEM ...]    full size on AudioSet; docs/data.md says how to make the store
#       --task gtzan --data GTZAN ...             on benchmarks, each with its folder; else on composed songs
#
# Options go to `myna reproduce`; without items, all are done. $OUT (out/reproduced) gets a .md and a .svg an item.
set -euo pipefail
cd "$(dirname "$0")/.."
myna=${MYNA:-.venv/bin/myna}
out=${OUT:-out/reproduced}

options=() items=()
while (($#)); do
    case $1 in
    --store | --size | --task | --data | --device) options+=("$1" "${2:?$1 needs a value}"); shift 2 ;;
    --*) options+=("$1"); shift ;;
    *) items+=("$1"); shift ;;
    esac
done
if ((${#items[@]} == 0)); then
    items=(table1 table2 figure4 figure5 appendix-b)
    items+=(key-examples key-batch key-mask key-amplitude key-distance)
    [[ " ${options[*]-} " == *" --store "* ]] || items+=(key-songs)  # which composes its own
fi
for item in "${items[@]}"; do
    "$myna" reproduce "$item" -o "$out" ${options[@]+"${options[@]}"}
done
