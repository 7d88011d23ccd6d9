#!/bin/sh
# compare.sh ROUNDS OURS PEER: runs two shell commands in turn, each of which prints one number, its
# speed, and prints the medians and the ratios ours / peer, pair by pair: least, median, greatest.
#
#   sh tests/compare.sh 5 "build/bench -q -r 1 m.bin p512" \
#       "llama-bench -m m.gguf -t 2 -p 512 -n 0 -r 1 -o csv | tail -n 1 | cut -d'\"' -f 78"

rounds=$1
i=0
while [ $i -lt "$rounds" ]; do
    echo "$(sh -c "$2" | tail -n 1) $(sh -c "$3" | tail -n 1)"
    i=$((i + 1))
done | awk '
    function median(v, n,   i, j, x) { # sorts, too
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && v[j - 1] > v[j]; j--) { x = v[j]; v[j] = v[j - 1]; v[j - 1] = x }
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
    }
    NF != 2 || $1 + 0 <= 0 || $2 + 0 <= 0 { print "not two speeds: " $0; n = 0; exit }
    { n++; a[n] = $1; b[n] = $2; ratio[n] = $1 / $2 }
    END {
        if (!n) exit 1
        middle = median(ratio, n)
        printf "ours %.1f, peer %.1f; ratio %.2f (%.2f to %.2f in %d pairs)\n",
               median(a, n), median(b, n), middle, ratio[1], ratio[n], n
    }'
