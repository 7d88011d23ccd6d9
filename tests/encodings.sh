#!/bin/sh
# encodings.sh BUILD: every encoding, on random checkpoints with random tables: per-token losses of
# run --exact against BUILD/oracle (2e-3 at worst, 5e-5 on average) out to several times the trained
# context, with linear interpolation, window, sinks and distance maps; the same bits for any chunk
# and thread count; and what is refused.

. tests/check.sh

[ -x "$build/oracle" ] || echo "encodings.sh: no oracle: losses are not checked"

# A text of some 4,500 tokens.
i=0
while [ $i -lt 150 ]; do
    echo "Line $i: the cat and the dog went out to see $((i * 37 % 101)) birds, but they came back."
    i=$((i + 1))
done > "$tmp/text"

# model NAME ENCODING FIELDS...: a checkpoint NAME.bin.
model() {
    name=$1 encoding=$2
    shift 2
    "$build/make_model" "$tmp/$name.bin" version=102 group=16 encoding="$encoding" ctx=100 \
        dim=48 hidden=48 heads=3 kv_heads=1 layers=2 "$@"
}

# losses NAME OUT FLAGS...: per-token losses in OUT.
losses() {
    name=$1 out=$2
    shift 2
    "$measure" "$tmp/$name.bin" -z tokenizer.bin -m perplexity --windows 1 -f "$tmp/text" --tsv "$out" \
        "$@" > "$tmp/out" 2> "$tmp/err"
}

# oracle NAME FLAGS...: run and oracle agree.
oracle() {
    name=$1
    shift
    [ -x "$build/oracle" ] || return
    if ! losses "$name" "$tmp/run.tsv" --exact "$@"; then
        bad "$name $*: run: $(tail -n 1 "$tmp/err")"
    elif "$build/oracle" "$tmp/$name.bin" "$tmp/run.tsv" "$@" > "$tmp/out" 2>&1; then
        [ -z "$VERBOSE" ] || echo "$name $*: $(tail -n 1 "$tmp/out")"
        ok
    else bad "$name $*: $(tail -n 1 "$tmp/out")"; fi
}

# same NAME FLAGS...: chunks and threads do not change a bit.
same() {
    name=$1
    shift
    losses "$name" "$tmp/one.tsv" -j 1 "$@"
    for how in "-j 1 --chunk 1" "-j 3 --chunk 7" "-j 2 --chunk 100"; do
        # shellcheck disable=SC2086 # words of $how are options
        losses "$name" "$tmp/other.tsv" $how "$@"
        if [ -s "$tmp/one.tsv" ] && cmp -s "$tmp/one.tsv" "$tmp/other.tsv"; then ok
        else bad "$name $how $*: other bits"; fi
    done
}

# refused NAME WORDS FLAGS...: exit status 2, one line with WORDS on stderr, nothing on stdout.
refused() {
    name=$1 words=$2
    shift 2
    choose_program "$@"
    text="-i x"
    [ "$*" != "-m rope" ] || text= # it reads none
    # shellcheck disable=SC2086 # the text is an option and its value, or nothing
    "$build/$program" "$tmp/$name.bin" -z tokenizer.bin $text "$@" > "$tmp/out" 2> "$tmp/err"
    status=$?
    if [ $status -eq 2 ] && [ ! -s "$tmp/out" ] && [ "$(wc -l < "$tmp/err")" -eq 1 ] &&
        grep -q -- "$words" "$tmp/err"; then ok
    else bad "$name $*: status $status, $(cat "$tmp/err")"; fi
}

while read -r fields; do
    # shellcheck disable=SC2086 # words of $fields are arguments
    model $fields
done <<'MODELS'
nope 1
sinusoidal 2
learned 3 rows=400
alibi 4
t5 5 rows=32 max_distance=128
xpos 6
kerple 7
fire 8
shaw 9 rows=32
sandwich 10
MODELS

for name in nope sinusoidal learned alibi t5 xpos kerple fire shaw sandwich; do
    oracle $name -c 400
    oracle $name -c 300 --window 70
    oracle $name -c 250 --window 70 --sinks 4 --logn
done
for name in sinusoidal learned alibi t5 xpos kerple; do
    oracle $name -c 400 --rope-scaling linear --rope-factor 2
    oracle $name -c 300 --rope-scaling linear # factor 3
done
for name in alibi t5 xpos kerple fire shaw sandwich; do
    oracle $name -c 300 --self-extend 4:50
    oracle $name -c 300 --rerope 60
    oracle $name -c 300 --leaky-rerope 60:3
    oracle $name -c 300 --string 70:9
    oracle $name -c 300 --dual-chunk 75:20
done
oracle xpos -c 300 --rope-scaling yarn --self-extend 3:80
oracle xpos -c 300 --rope-scaling dynamic
oracle xpos -c 300 --rope-fraction 0.01 --self-extend 3:80 # no pair turns, but all fade
oracle xpos -c 300 --rope-fraction 0.01 --dual-chunk 50:10

# Heads of a number that is no power of two; an odd count of pairs; buckets of another size; a
# head that ends in half a vector; no distance told at all.
model alibi6 4 dim=60 heads=6 kv_heads=2 group=4
model t5b 5 rows=8 max_distance=64 heads=4 kv_heads=4
model shaw0 9 rows=0 heads=4 kv_heads=2
model xpos3 6 dim=36 heads=6 kv_heads=6 hidden=32 group=4
for name in alibi6 t5b shaw0 xpos3; do oracle $name -c 300; done

# Sixteen times the trained context: zeta^(D/512) far below any float's range when split.
model far 6 ctx=256 dim=16 hidden=16 heads=1 layers=1 vocab=4096
oracle far -c 4096

for name in learned alibi t5 xpos kerple fire shaw sandwich sinusoidal; do
    same $name -c 300
    same $name -c 200 --window 70 --sinks 4 --exact
done

# Past the table: refused, or its last row; up to there the losses are the same.
model short 3 rows=150
refused short "clamp-positions" -c 151
refused short "want at most 300)" -c 301 --rope-scaling linear --rope-factor 2
oracle short -c 300 --rope-scaling linear --rope-factor 2
losses short "$tmp/one.tsv" -c 150
losses short "$tmp/other.tsv" -c 300 --clamp-positions
if head -n 150 "$tmp/other.tsv" | cmp -s - "$tmp/one.tsv"; then ok
else bad "--clamp-positions: other losses up to the table's end"; fi

# Drawn positions: not past a table, nor where distances are shares of the tokens' number, nor so far
# that xPos fades beyond floats.
refused learned "clamp-positions" -m perplexity -c 100 --positions 401
losses learned "$tmp/one.tsv" -c 100 --positions 401 --clamp-positions && ok || bad "clamped, drawn"
losses learned "$tmp/one.tsv" -c 100 --positions 400 && ok || bad "learned, drawn"
refused fire "counts tokens" -m perplexity -c 100 --positions 400
refused xpos "too far" -m perplexity -c 100 --positions 40000
losses xpos "$tmp/one.tsv" -c 100 --positions 32768 && ok || bad "xpos, drawn"

refused fire "not defined" --rope-scaling linear
refused sandwich "not defined" --rope-scaling linear
refused nope "not defined" --rope-scaling linear
refused alibi "not defined" --rope-scaling yarn
refused alibi "does not rotate" --rope-theta 20000
refused alibi "does not rotate" -m rope
refused sinusoidal "no distances" --rerope 60

# Damaged tables: exit status 1 and one line.
for fields in "5 rows=31 max_distance=128" "5 rows=32 max_distance=16" "5 rows=0" "3 rows=0" \
    "9 rows=-1" "5 rows=8192 max_distance=70000" "11" "4 scaling=5" "7 version=1 encoding=7"; do
    # shellcheck disable=SC2086
    if ! model damaged $fields 2> "$tmp/err"; then continue; fi
    "$run" "$tmp/damaged.bin" -z tokenizer.bin -i x -n 1 > "$tmp/out" 2> "$tmp/err"
    status=$?
    if [ $status -eq 1 ] && [ ! -s "$tmp/out" ] && [ "$(wc -l < "$tmp/err")" -eq 1 ]; then ok
    else bad "encoding $fields: status $status, $(cat "$tmp/err")"; fi
done

report
