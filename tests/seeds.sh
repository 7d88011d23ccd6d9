#!/bin/sh
# seeds.sh BUILD FOLDER...: how far do results of the survey depend on the seed of the training?
# Each folder has the same models pe-NAME.bin, trained from another seed (OUT=folder sh
# models/survey.sh texts --seed N). What the first table of models/ENCODINGS.md says of each is
# measured as survey.sh does it, into BUILD/seeds; printed, in Markdown, are the means over seeds
# with their standard deviations, and below them the pooled ones of all encodings. rope has two rows:
# as trained, and with yarn past 256 tokens.
#
# From the environment: NAMES (encodings), and what survey.sh takes.

set -e
build=$1
if [ $# -lt 3 ]; then
    echo "seeds.sh: usage: sh tests/seeds.sh BUILD FOLDER FOLDER..." >&2
    exit 2
fi
shift
names=${NAMES:-alibi t5 kerple shaw rope}
tables=
for folder; do
    n=$((${n:-0} + 1)) to=$build/seeds/$n
    rm -rf "$to" && mkdir -p "$to"
    cp "$build/plot" "$to/"
    NAMES=$names LENGTHS=${LENGTHS:-256 1024 2048} STRETCHED=${STRETCHED:-1024 2048} \
        KEYED=${KEYED:-256 1024} ASKED=${ASKED:-1024} MODELS=$folder FIGURES=$to \
        TOKENIZER=${TOKENIZER:-tokenizer.bin} sh tests/survey.sh "$to" > "$to/log"
    tables="$tables $to/survey.tsv"
done

# shellcheck disable=SC2086 # words of $tables are files
awk -F '\t' -v names="$names" '
    FNR == 1 { next }
    { k = $1 SUBSEP $2 SUBSEP $3 SUBSEP $4; n[k]++; sum[k] += $5; squares[k] += $5 * $5 }
    function cell(of, how, view, tokens, digits, column,    k, m, v) {
        k = of SUBSEP how SUBSEP view SUBSEP tokens
        if (n[k] < 2) return " | -"
        m = sum[k] / n[k]
        v = (squares[k] - n[k] * m * m) / (n[k] - 1)
        if (v < 0) v = 0
        pooled[column] += v; rows[column]++
        return sprintf(" | %.*f +- %.*f", digits, m, digits, sqrt(v))
    }
    function line(label, of, how) {
        print "| " label cell(of, how == "yarn" ? "none" : how, "windows", 256, 3, 1) \
            cell(of, how, "windows", 2048, 3, 2) cell(of, how, "sliding", 2048, 3, 3) \
            cell(of, how == "yarn" ? "none" : how, "passkey", 256, 0, 4) \
            cell(of, how, "passkey", 1024, 0, 5) " |"
    }
    END {
        print "| encoding | loss, 256 | 2048 | sliding, 2048 | passkey %, 256 | 1024 |"
        print "|---|---|---|---|---|---|"
        count = split(names, name, " ")
        for (i = 1; i <= count; i++) {
            line(name[i], name[i], "none")
            if (name[i] == "rope") line("rope, yarn", "rope", "yarn")
        }
        printf "| one seed, pooled"
        for (c = 1; c <= 5; c++)
            printf " | %.*f", c < 4 ? 3 : 0, rows[c] ? sqrt(pooled[c] / rows[c]) : 0
        print " |"
    }' $tables
