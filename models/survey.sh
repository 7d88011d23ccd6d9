#!/bin/sh
# survey.sh FOLDER: trains models/pe-NAME.bin, one small model for each position encoding, on the
# texts in FOLDER: everything but the encoding is the same, down to the order of the data and the
# first value of every other weight. 0.95 million parameters, trained context 256, 10 million tokens.
# It begins with mostly synthetic texts and repetitions, else none would learn to find anything
# again (see README.md). Each takes about 12 minutes of one Zen 4 core with nothing else on it, or
# 6.5 of two (-j 2): 3.2 core-hours in all.
#
#     make build/train && sh models/survey.sh path/to/texts
#
# Models that are there already are left alone, and one that was interrupted goes on where it
# stopped. NAMES="rope alibi" trains only those; TOKENS, OUT (a folder) and TRAIN (the program)
# can be set too; whatever follows FOLDER goes to the program (--valid FOLDER, -j N, ...), such as
# --bf16 0 on a machine without products of bfloat16.

if [ $# -lt 1 ] || [ ! -e "$1" ]; then
    echo "survey.sh: usage: sh models/survey.sh FOLDER [options of train]" >&2
    exit 2
fi
folder=$1
shift
out=${OUT:-models}
train=${TRAIN:-build/train}
tokens=${TOKENS:-1e7}
names=${NAMES:-rope nope sinusoidal shape cape learned alibi t5 kerple fire sandwich xpos shaw
    drope rope-randomized learned-randomized}

for name in $names; do
    model=$out/pe-$name.bin
    state=$out/pe-$name.state
    if [ -e "$model" ]; then
        echo "$model: there already"
        continue
    fi
    # The options as words: an encoding, perhaps with positions drawn from 8 times the context.
    case $name in
    *-randomized) encoding="--encoding ${name%-randomized} --randomized 8" ;;
    *) encoding="--encoding $name" ;;
    esac
    resume=
    [ -e "$state" ] && resume=$state
    begin=$(date +%s)
    # shellcheck disable=SC2086 # words of $encoding are options
    "$train" -o "$model.part" --state "$state" ${resume:+--resume "$resume"} $encoding \
        --dim 96 --hidden 256 --layers 5 --heads 3 --kv-heads 3 --vocab 4096 --ctx 256 \
        --batch 8 --micro 8 --lr 6e-3 --bf16 1 --synthetic 0.6 --synthetic-end 0.1 \
        --repetition 0.8 --repetition-end 0.1 \
        --tokens "$tokens" --save-minutes 2 --log-every 100 --seed 1 \
        "$@" "$folder" 2>> "$out/pe-$name.log" || {
        echo "survey.sh: $name: stopped, see $out/pe-$name.log; run again to go on" >&2
        exit 1
    }
    mv "$model.part" "$model" && rm "$state"
    echo "$model: $(($(date +%s) - begin)) s"
done
