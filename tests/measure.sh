#!/bin/sh
# measure.sh TABLE MODEL MODE OPTION...: runs one instrument into TABLE.tsv, if that is not there
# yet from the same words, and says how long it took. What it printed is in TABLE.txt and TABLE.log,
# the words in TABLE.job: a table of another model or other lengths must not pass for this one's.

table=$1 model=$2 mode=$3
shift 3
job="$model $mode $* ${TOKENIZER:-}"
[ -s "$table.tsv" ] && [ "$(cat "$table.job" 2> /dev/null)" = "$job" ] && exit
start=$(date +%s)
./measure "$model" ${TOKENIZER:+-z "$TOKENIZER"} -m "$mode" "$@" --tsv "$table.tsv" \
    > "$table.txt" 2> "$table.log" || { cat "$table.log" >&2; exit 1; }
echo "$job" > "$table.job"
echo "$table.tsv: $(($(date +%s) - start)) s"
