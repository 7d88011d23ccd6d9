#!/bin/sh
# reference.sh BUILD: checks against public checkpoints in the folder $REFERENCE, and of per-token
# losses against BUILD/oracle, a slow independent program, on random checkpoints of our own.

. tests/check.sh

# oracle NAME MODEL TEXT TOKENIZER FLAGS...: losses of run --exact agree with the oracle's, within
# 2e-3 at worst and 5e-5 on average; with --entropy that column does, within 1e-3.
oracle() {
    name=$1 model=$2 text=$3 tokenizer=$4
    shift 4
    if ! "$measure" "$model" -z "$tokenizer" -m perplexity --windows 1 -f "$text" --exact --tsv "$tmp/run.tsv" "$@" \
        > "$tmp/out" 2> "$tmp/err"; then
        bad "$name: run: $(tail -n 1 "$tmp/err")"
    elif "$build/oracle" "$model" "$tmp/run.tsv" "$@" > "$tmp/out" 2>&1; then ok
    else bad "$name: $(tail -n 1 "$tmp/out")"; fi
}

# A text for the perplexity mode.
i=0
while [ $i -lt 40 ]; do
    echo "Line $i: the cat and the dog went out to see $((i * 37 % 101)) birds, but they came back."
    i=$((i + 1))
done > "$tmp/text"

if [ -x "$build/oracle" ]; then
    for v in 0 1 2 101 102; do
        "$build/make_model" "$tmp/v$v.bin" version=$v dim=48 heads=3 kv_heads=1 hidden=40 group=16 ctx=100
        oracle "oracle, version $v" "$tmp/v$v.bin" "$tmp/text" tokenizer.bin -c 300
    done
    while read -r flags; do
        # shellcheck disable=SC2086 # words of $flags are options
        oracle "oracle, $flags" "$tmp/v1.bin" "$tmp/text" tokenizer.bin -c 400 $flags
    done <<'FLAGS'
--rope-scaling linear
--rope-scaling ntk --rope-factor 5
--rope-scaling dynamic
--rope-scaling dynamic --rope-factor 2
--rope-scaling by-parts
--rope-scaling yarn
--rope-scaling yarn --rope-theta 10
--rope-scaling yarn --rope-orig-ctx 50
--rope-scaling yarn --rope-attn-factor 1.3 --beta-fast 8 --beta-slow 2
--rope-scaling llama3 --rope-factor 8
--rope-theta 500000
--window 70
--window 70 --sinks 4
--self-extend 4:50
--rerope 60
--leaky-rerope 60:3
--string 80:11
--string 80:11 --rope-scaling yarn --logn
--dual-chunk 64:20
--dual-chunk 75:20 --chunk 37
--dual-chunk 30:9
--dual-chunk 75:20 --rope-scaling yarn --logn
--attn-temp 0.2:60
--rope-fraction 0.6
--rope-fraction 0.3 --rope-scaling yarn --dual-chunk 96:20 --attn-temp 0.1:90
--logn
--rope-scaling yarn --self-extend 3:80 --logn
--entropy
--rope-scaling yarn --window 70 --sinks 4 --entropy
FLAGS
else
    echo "reference.sh: no oracle: losses are not checked"
fi

if [ -z "$REFERENCE" ]; then
    echo "reference.sh: REFERENCE is not set: the public checkpoints are skipped"
else
    s=$REFERENCE/stories260K
    cat > "$tmp/want" <<'TEXT'
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom said, "Don't worry, Lily. We can help you.
TEXT
    size=$(($(wc -c < "$tmp/want") - 1))
    for model in stories260K stories260K_v1; do
        for how in "" "--exact" "-j 3 --chunk 2"; do
            # shellcheck disable=SC2086
            "$run" "$s/$model.bin" -z "$s/tok512.bin" -i "Once upon a time" -t 0 -n 280 $how \
                2> "$tmp/err" | head -c $size > "$tmp/out"
            echo >> "$tmp/out"
            if cmp -s "$tmp/want" "$tmp/out"; then ok; else bad "$model $how: $(cat "$tmp/out")"; fi
        done
    done
    # Int8 weights round differently, but begin the same way.
    "$run" "$s/stories260K_q8.bin" -z "$s/tok512.bin" -i "Once upon a time" -t 0 -n 20 --exact \
        2> "$tmp/err" | head -c 53 > "$tmp/out"
    if [ "$(cat "$tmp/out")" = "$(head -c 53 "$tmp/want")" ]; then ok; else bad "q8: $(cat "$tmp/out")"; fi
    if [ -x "$build/oracle" ]; then
        for model in stories260K stories260K_v1 stories260K_q8; do
            oracle "oracle, $model" "$s/$model.bin" "$tmp/want" "$s/tok512.bin" -c 256
        done
    fi
fi

# Small GGUF models of many architectures with the losses that another engine gives them: a text's
# tokens must be the same, its losses within 2e-4, in one chunk and in chunks of 37. A model whose
# type of weights or cut into words is not known is refused, and named here.
if [ -n "$REFERENCE" ] && [ -d "$REFERENCE/gguf" ] && command -v xz > /dev/null; then
    for tokens in "$REFERENCE"/gguf/*.tokens; do
        stem=${tokens%.tokens}
        name=${stem##*/}
        file=$(sed -n 's/.*"file": "\([^"]*\)".*/\1/p' "$stem.json")
        xz -dc "$REFERENCE/gguf/${file:-$name}.gguf.xz" > "$tmp/model.gguf"
        sed 1d "$tokens" | paste - "$stem.nll" > "$tmp/want"
        for chunk in 512 37; do
            if ! "$measure" "$tmp/model.gguf" -m perplexity -f "$stem.txt" -c "$(wc -l < "$tokens")" --exact \
                    --chunk $chunk --tsv "$tmp/run.tsv" > "$tmp/out" 2> "$tmp/err"; then
                if grep -qE "cut of text into words|type that is not known" "$tmp/err"; then
                    [ $chunk = 37 ] || echo "reference.sh: $name is refused: $(cat "$tmp/err")"
                else bad "$name: $(cat "$tmp/err")"; fi
            elif sed 1d "$tmp/run.tsv" | cut -f 3,4 | paste - "$tmp/want" > "$tmp/both" &&
                 awk '{ off = $2 - $4; n++; bad += $1 != $3 || off > 2e-4 || off < -2e-4 }
                      END { exit bad || !n }' "$tmp/both"; then ok
            else bad "$name, chunks of $chunk: other tokens or losses"; fi
        done
    done
fi

report
