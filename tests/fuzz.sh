#!/bin/sh
# fuzz.sh BUILD SECONDS [TARGET...]: fuzzes each target for so long, one after the other, with
# clang's libFuzzer if it is there, else by gcc's sanitizers and random changes. Inputs worth
# keeping stay in BUILD/corpus. Writes a line a target, with the time of the last new edge of the
# program; what breaks run.c is left in BUILD/crash-* and belongs into tests/regress, as
# TARGET-NAME, when it has been mended. Exit status 1 if anything did.

build=$1
limit=$2
shift 2
[ $# -gt 0 ] || set -- checkpoint gguf keys tokenizer text options factors
flags="-std=gnu11 -g -O1 -march=native -ffp-contract=off -fsanitize=address,undefined
       -fno-sanitize-recover=undefined -Wno-unused-function"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=abort_on_error=1
mkdir -p "$build/corpus"
# What only computes has nothing to find, and following its comparisons takes half of the time.
printf 'fun:%s\n' 'tile_*' 'gemm_*' 'unpack_*' 'product_*' 'codes_*' 'scales_*' 'quantize_*' \
    'transpose_*' 'hash_bytes' > "$build/numeric"
# shellcheck disable=SC2086 # the flags are words
if clang $flags -DLIBFUZZER -fsanitize=fuzzer -fsanitize-coverage-ignorelist="$build/numeric" \
         -o "$build/fuzzer" tests/fuzz.c -lm -lpthread 2> /dev/null; then how=libfuzzer
else how=gcc; fi
# shellcheck disable=SC2086
${CC:-cc} $flags -o "$build/fuzz_san" tests/fuzz.c -lm -lpthread || exit 1
"$build/fuzz_san" seeds "$build/seeds" || exit 1
grep -ohE '"[^"\\% ]{3,40}"' run.c chat.c tests/fuzz.h | sort -u > "$build/words" # for changes to put in
bad=0
for target; do
    log=$build/fuzz-$target.log
    mkdir -p "$build/corpus/$target"
    case $target in text | options | factors) most=1000 ;; *) most=0 ;; esac # 0: as the seeds
    {
        if [ $how = libfuzzer ]; then
            FUZZ_TARGET=$target "$build/fuzzer" -max_total_time="$limit" -timeout=60 \
                -max_len=$most -rss_limit_mb=3000 -use_value_profile=1 -print_final_stats=1 \
                -dict="$build/words" -artifact_prefix="$build/crash-$target-" \
                "$build/corpus/$target" "$build/seeds/$target" 2>&1
        else "$build/fuzz_san" try "$limit" "$build/seeds/$target"/* 2>&1; fi
        echo "status $?"
        times
    } | awk -v begin="$(date +%s)" ' # says when an edge of the program was last seen first
        / cov: / && $4 > cov {
            cov = $4
            "date +%s" | getline now
            close("date +%s")
            print "edges " cov " after " now - begin " s"
        }
        { print; fflush() }' > "$log"
    grep -q '^status 0$' "$log" || {
        bad=1
        echo "$target: broken, see $log"
        grep -m 3 -E 'ERROR|not so|Test unit' "$log"
    }
    awk -v t="$target" '/^edges/ { edges = $2; last = $4 }
         /number_of_executed_units|inputs tried/ { n = $2 ~ /^[0-9]/ ? $2 : $1 }
         END { # the last line is the processor time of the fuzzer, 1m2.3s twice
             split($1 "m" $2, cpu, "m")
             seconds = int(60 * (cpu[1] + cpu[3]) + cpu[2] + cpu[4])
             print t ": inputs " n ", processor seconds " seconds ", edges " edges \
                 ", the last after " last " s"
         }' "$log"
done
exit $bad
