#!/bin/sh
# figures.sh BUILD: measures every method on a model trained at 512 tokens, out to 4096, and draws
# the pictures of models/EXTENDING.md. Pictures and the numbers behind them go to models/figures,
# what the instruments wrote to BUILD/figures. It takes about 12 minutes on two cores.
#
# Text: tests/heldout.txt, chapters I to IX of Kenneth Grahame, The Wind in the Willows (1908), in
# the public domain; the model has not seen it.
#
# From the environment: MODEL, TOKENIZER, FIGURES (the folder), WINDOWS (of 4096 tokens), TRIALS (in
# a cell of the passkey grid), JOBS (at once).

set -e
build=$1
model=${MODEL:-models/tales.bin}
text=tests/heldout.txt
figures=${FIGURES:-models/figures}
windows=${WINDOWS:-10}
short=$((8 * windows)) # windows of 512 tokens
trials=${TRIALS:-4}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
raw=$build/figures
tab=$(printf '\t')

# Methods: name | label | options. Factors are 8, for 4096 tokens. The distance methods are set so
# that no distance is above the trained 512: with self-extend 256 + (4095 - 256) / 16 at most,
# likewise with leaky-rerope, 256 with rerope, 511 with window and sinks; dual-chunk with the sizes
# of its paper, C + W = 3 L / 4 and W = L / 16.
methods='
none | none |
linear | linear | --rope-scaling linear --rope-factor 8
ntk | ntk | --rope-scaling ntk --rope-factor 8
dynamic | dynamic | --rope-scaling dynamic
dynamic-logn | dynamic + log-n | --rope-scaling dynamic --logn
by-parts | by-parts | --rope-scaling by-parts --rope-factor 8
yarn | yarn | --rope-scaling yarn --rope-factor 8
llama3 | llama3 | --rope-scaling llama3 --rope-factor 8
window | window 512 | --window 512
sinks | window 508 + 4 sinks | --window 508 --sinks 4
self-extend | self-extend 16:256 | --self-extend 16:256
rerope | rerope 256 | --rerope 256
rerope-logn | rerope 256 + log-n | --rerope 256 --logn
leaky-rerope | leaky-rerope 256:16 | --leaky-rerope 256:16
dual-chunk | dual-chunk 352:32 | --dual-chunk 352:32
dual-chunk-logn | dual-chunk 352:32 + log-n | --dual-chunk 352:32 --logn'

# What is drawn: wavelengths, losses, pass keys.
waves="none linear ntk dynamic by-parts yarn llama3"
frequencies="none linear ntk dynamic dynamic-logn by-parts yarn llama3"
distances="none window sinks self-extend rerope rerope-logn leaky-rerope dual-chunk"
gains="window dynamic yarn sinks self-extend rerope rerope-logn dual-chunk"
keyed="none linear ntk dynamic dynamic-logn by-parts yarn llama3
    sinks self-extend leaky-rerope rerope rerope-logn dual-chunk dual-chunk-logn"

# A method's row.
row() { echo "$methods" | grep "^$1 |"; }

# Writes down a measurement to be made: one instrument with one method.
plan() { # mode table method option...
    table=$raw/$2.$1 mode=$1 options=$(row "$3")
    shift 3
    echo "$table $model $mode -j 1${options##*|} $*" >> "$raw/jobs" # no blank at the end: xargs
}

# Losses by position: positions up to 512 from windows of 512, which are many, the others from
# windows of 4096. Every position is an average over the same stretch of text.
join_losses() { # method
    awk 'NR == FNR || (FNR > 1 && $2 >= 511)' "$raw/$1.short.perplexity.tsv" \
        "$raw/$1.long.perplexity.tsv" > "$raw/$1.loss.tsv"
}

# Draws a picture of the methods named, and shows its numbers.
draw() { # kind picture title names instrument
    kind=$1 picture=$figures/$2 title=$3 names=$4 instrument=$5
    set --
    for name in $names; do
        label=$(row "$name")
        label=${label#*| }
        set -- "$@" "${label% |*}=$raw/$name.$instrument.tsv"
    done
    "$build/plot" "$kind" "$picture.svg" 512:4096 "$title" "$@" > "$raw/table"
    mv "$raw/table" "$picture.tsv"
    echo "$picture.svg"
    cat "$picture.tsv"
}

mkdir -p "$raw" "$figures"
rm -f "$raw"/*

begin=$(date +%s)
for name in $waves; do plan rope "$name" "$name" -c 4096; done
for name in $(printf '%s\n' $frequencies $distances $gains | sort -u); do
    plan perplexity "$name.short" "$name" -c 512 -f "$text" --windows "$short"
    plan perplexity "$name.long" "$name" -c 4096 -f "$text" --windows "$windows"
done
for name in $keyed; do
    plan passkey "$name" "$name" --lengths 256,512,1024,2048,4096 --depths 5 --trials "$trials"
done
# Harder questions, within the trained context.
plan retrieval none none --lengths 128,256,512 --depths 5 --trials $((4 * trials))
xargs -L 1 -P "$jobs" sh tests/measure.sh < "$raw/jobs"
for table in "$raw"/*.short.perplexity.tsv; do
    name=${table##*/}
    join_losses "${name%%.*}"
done

draw waves waves "Wavelengths of the rotary pairs, stretched 8 times
Slow pairs have to be stretched; fast ones tell neighbours apart. dynamic: as at 4,096 tokens." \
    "$waves" rope

note="Lower is better. The Wind in the Willows: $short windows up to 512 tokens, $windows past it."
draw loss loss-frequencies "Loss against position: scaling the frequencies
$note" "$frequencies" loss
draw loss loss-distances "Loss against position: limiting distances
$note" "$distances" loss
draw gain loss-gain "What a method makes of text more than 512 tokens back
Loss above that of the same tokens with only the last 512 in view. Below 0, the far text helps." \
    "$gains" loss

draw grid passkey "Passkey: per cent of right answers
Five digits within filler text, asked for at its end; $trials texts a cell." "$keyed" passkey

# The retrieval tests: % right by task and length.
awk -F '\t' 'NR > 1 { n[$1 "\t" $2]++; right[$1 "\t" $2] += $6 }
    END { for (k in n) printf "%s\t%.0f\t%d\n", k, 100 * right[k] / n[k], n[k] }' \
    "$raw/none.retrieval.tsv" | sort -k 1,1 -t "$tab" -k 2,2n > "$raw/table"
{ printf 'task\tlength\tright\tof\n'; cat "$raw/table"; } > "$figures/retrieval.tsv"
cat "$figures/retrieval.tsv"
echo "figures.sh: $(($(date +%s) - begin)) s"
