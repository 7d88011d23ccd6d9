#!/bin/sh
# bench.sh BUILD [ROUNDS]: the speed of models of random weights in four shapes, in percent of what
# this machine's memory and multipliers allow, measured in the same run.

set -e
build=$1
rounds=${2:-5}
models=$build/bench.models
mkdir -p "$models"

# Writes the model once: make NAME FIELD=VALUE...
make() {
    file=$models/$1
    shift
    [ -f "$file" ] || "$build/make_model" "$file" "$@" || exit 1
}
m15="dim=288 hidden=768 layers=6 heads=6 kv_heads=6 vocab=32000 ctx=1024"
m110="dim=768 hidden=2048 layers=12 heads=12 kv_heads=12 vocab=32000 ctx=1024"
m135="dim=576 hidden=1536 layers=30 heads=9 kv_heads=3 vocab=49152 ctx=16384"
make 15m-f32.bin version=1 $m15
make 110m-f32.bin version=1 $m110
make 110m-q8.bin version=2 group=32 $m110
make 135m-q8.bin version=2 group=32 $m135

# The last shape has the types that llama-quantize gives a file of Q4_K_M: Q6_K for the embeddings,
# and for wv and w2 of two eighths of the layers and every third of the others.
q4_k_m=q6_k
for l in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    more=q4_k
    if [ $l -lt 2 ] || [ $l -ge 14 ] || [ $(((l - 2) % 3)) -eq 2 ]; then more=q6_k; fi
    q4_k_m="$q4_k_m q4_k q4_k $more q4_k q4_k q4_k $more"
done
make_1b() {
    [ -f "$models/$1" ] || "$build/make_1b" "$models/$1" granite "$2" || exit 1
}
make_1b 1b-q4_k_m.gguf "$q4_k_m"
make_1b 1b-q8_0.gguf q8_0

bench() { "$build/bench" -r "$rounds" "$@"; }
bench limits
bench "$models/15m-f32.bin" d0
bench "$models/110m-f32.bin" d0 p512
bench "$models/110m-q8.bin" d0 p512
bench "$models/135m-q8.bin" d0 p512 p4096 d4096
bench "$models/1b-q4_k_m.gguf" d0 p512
bench "$models/1b-q8_0.gguf" d0 p512
"$build/bench" -r 1 "$models/135m-q8.bin" p16384
"$build/bench" -r 1 -k q8 "$models/135m-q8.bin" d16368
