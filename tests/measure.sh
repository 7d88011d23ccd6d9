#!/bin/sh
# measure.sh TABLE MODEL MODE OPTION...: runs one instrument into TABLE.tsv, if that is not there
# yet from the same model and options, and says how long it took. What it printed is in TABLE.txt
# and TABLE.log, what it was asked in TABLE.job.

table=$1 model=$2 mode=$3
shift 3
job="$(ls -lL "$model") ${TOKENIZER:-} $mode $*"
[ -s "$table.tsv" ] && [ "$job" = "$(cat "$table.job" 2> /dev/null)" ] && exit
rm -f "$table.tsv"
trap 'exit 130' INT # ./measure keeps what it has by Ctrl-C: a part, which must not pass for all
start=$(date +%s)
./measure "$model" ${TOKENIZER:+-z "$TOKENIZER"} -m "$mode" "$@" --tsv "$table.part" \
    > "$table.txt" 2> "$table.log" || { cat "$table.log" >&2; exit 1; }
echo "$job" > "$table.job"
mv "$table.part" "$table.tsv"
echo "$table.tsv: $(($(date +%s) - start)) s"
