#!/bin/sh
# measure.sh TABLE MODEL MODE OPTION...: runs one instrument into TABLE.tsv, if that is not there
# yet, and says how long it took. What it printed is in TABLE.txt and TABLE.log.

table=$1 model=$2 mode=$3
shift 3
[ -s "$table.tsv" ] && exit
start=$(date +%s)
./measure "$model" ${TOKENIZER:+-z "$TOKENIZER"} -m "$mode" "$@" --tsv "$table.tsv" \
    > "$table.txt" 2> "$table.log" || { cat "$table.log" >&2; exit 1; }
echo "$table.tsv: $(($(date +%s) - start)) s"
