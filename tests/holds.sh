#!/bin/sh
# holds.sh BUILD MODEL: which method holds past the trained context of this model? Measures loss by
# position on a book out to FACTOR times the trained context, and finding a pass key, with each
# method; draws both and prints a table in Markdown. Hours for a large model; it goes on where it was
# stopped.
#
# From the environment: FACTOR (4), TEXT (tests/heldout.txt, see figures.sh), WINDOWS (of the text,
# 1), LENGTHS (of the passkey texts: half, once and twice the trained context), DEPTHS (5), TRIALS
# (1), METHODS and KEYED (names from below; KEYED are those asked for keys), JOBS (at once, 1),
# FIGURES (where pictures and numbers go: holds-loss and holds-passkey, .svg and .tsv;
# BUILD/holds/NAME, where NAME is the model's).

set -e
build=$1 model=$2
if [ $# -ne 2 ] || [ ! -e "$model" ]; then
    echo "holds.sh: usage: sh tests/holds.sh BUILD MODEL" >&2
    exit 2
fi
if [ ! -x "$build/plot" ]; then # needed last, after hours
    echo "holds.sh: no $build/plot: make $build/plot" >&2
    exit 2
fi
factor=${FACTOR:-4}
file=${model##*/}
raw=$build/holds/${file%.*}
figures=${FIGURES:-$raw}
trained=$(./run "$model" ${TOKENIZER:+-z "$TOKENIZER"} -m info | awk '$1 == "trained" { print $2 }')
half=$((trained / 2))
lengths=${LENGTHS:-$half,$trained,$((2 * trained))}

# Methods: name | label | options. The distance methods are set so that no distance is above the
# trained context.
methods="
none | none | --rope-scaling none
linear | linear | --rope-scaling linear --rope-factor $factor
ntk | ntk | --rope-scaling ntk --rope-factor $factor
dynamic | dynamic | --rope-scaling dynamic
by-parts | by-parts | --rope-scaling by-parts --rope-factor $factor
yarn | yarn | --rope-scaling yarn --rope-factor $factor
sinks | window + 4 sinks | --rope-scaling none --window $((trained - 4)) --sinks 4
self-extend | self-extend | --rope-scaling none --self-extend $((2 * factor)):$half
dual-chunk | dual-chunk | --rope-scaling none --dual-chunk $((trained * 11 / 16)):$((trained / 16))
rerope | rerope | --rope-scaling none --rerope $half
rerope-logn | rerope + log-n | --rope-scaling none --rerope $half --logn"
names=${METHODS:-none linear ntk dynamic by-parts yarn sinks self-extend dual-chunk rerope rerope-logn}
keyed=${KEYED:-$names}

mkdir -p "$raw" "$figures"
options() { echo "$methods" | sed -n "s/^$1 |.*| //p"; }
label() { echo "$methods" | sed -n "s/^$1 | \(.*\) |.*/\1/p"; }
for name in $names; do
    echo "$raw/$name.loss $model perplexity -f ${TEXT:-tests/heldout.txt} -c $((factor * trained)) \
        --windows ${WINDOWS:-1} $(options "$name")"
done > "$raw/jobs"
for name in $keyed; do
    echo "$raw/$name.passkey $model passkey --lengths $lengths --depths ${DEPTHS:-5} \
        --trials ${TRIALS:-1} $(options "$name")"
done >> "$raw/jobs"
xargs -L 1 -P "${JOBS:-1}" sh tests/measure.sh < "$raw/jobs"

# Draws one picture of the tables that are there.
draw() { # kind instrument title names
    kind=$1 instrument=$2 title=$3 drawn=$4
    set --
    for name in $drawn; do set -- "$@" "$(label "$name")=$raw/$name.$instrument.tsv"; done
    "$build/plot" "$kind" "$figures/holds-$instrument.svg" "$trained" "$title" "$@" > "$raw/table"
    mv "$raw/table" "$figures/holds-$instrument.tsv"
}
draw loss loss "${file%.*}: loss against position
Lower is better. Model trained on $trained tokens; $((factor * trained)) tokens of one book at once." "$names"
draw grid passkey "${file%.*}: passkey, per cent of right answers
Five digits within filler text, asked for at its end. Texts in a cell: ${TRIALS:-1}." "$keyed"

# One table of both: losses, then the passkey's columns as "a / b / c".
awk -F '\t' -v OFS=' | ' 'NR == FNR { key[$1] = $2; for (i = 3; i <= NF; i++) key[$1] = key[$1] " / " $i; next }
    FNR == 1 { $1 = "method"; key["method"] = "passkey, %, at " key["method"] }
    !($1 in key) { key[$1] = "not run" }
    { NF--; print "| " $0, key[$1] " |" }
    FNR == 1 { printf "|"; for (i = 0; i <= NF; i++) printf "---|"; print "" }' \
    "$figures/holds-passkey.tsv" "$figures/holds-loss.tsv"
