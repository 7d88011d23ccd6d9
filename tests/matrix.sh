#!/bin/sh
# matrix.sh [CELL...]: builds without warnings and tests on each compiler, optimization and kind of
# machine that is at hand, and prints a table. Without CELLs all of them, hours on a small machine.
#
#   gcc-O0-sse2 ... clang-O3-avx512   make test: gcc, clang x O0, O2, O3 x sse2, avx2, avx512
#   plain             make test of the plain C versions: no instruction of a machine's own, fmaf
#   musl              make test with musl-gcc, static
#   aarch64           cross-compiled (gcc 12's vectorizer breaks on a test: it is off here); unit
#                     tests but the trainer's, and cli.sh, under qemu-aarch64
#   portable          make portable, cli.sh once for each level
#   builds            run.c without warnings for twenty processors, old and new, by gcc and clang
#   m32               must be refused by the compiler, with the reason
#   sanitize          make test under clang's address and undefined-behaviour sanitizers
#   threads           unit tests, and cli.sh with its interrupts, under the thread sanitizer
#   valgrind          unit tests, and the smallest models read and generated from, under valgrind
#
# Logs go to build/matrix/CELL.log. Exit status 1 if a cell failed.

cd "$(dirname "$0")/.." || exit 1
mkdir -p build/matrix
failed=0

has() { command -v "$1" > /dev/null; }

# row CELL RESULT SECONDS; a result that begins with "FAILED" counts, and none at all.
row() {
    printf '%-20s %-44s %6s s\n' "$1" "$2" "$3"
    case $2 in FAILED* | '') failed=$((failed + 1)) ;; esac
}

# result LOG STATUS: the totals at the end of a log, or what went wrong.
result() {
    line=$(grep -E '^([a-z_.]+: )?[0-9]+ passed, [0-9]+ failed$' "$1" | tail -n 1)
    case $2:$line in
    0:*", 0 failed") echo "${line#*: }" ;;
    *) echo "FAILED, status $2: ${line:-$(grep -m 1 -iE 'error|failed' "$1" | cut -c 1-60)}" ;;
    esac
}

# The number of checks that a suite says it passed.
passed_in() { tail -n 1 "$1" | sed -n 's/.* \([0-9]*\) passed.*/\1/p' | grep . || echo 0; }

# tests CELL CC CFLAGS: make test in a folder of its own.
tests() {
    make -j2 test CC="$2" CFLAGS="$3" BUILD="build/matrix/$1" > "build/matrix/$1.log" 2>&1
    result "build/matrix/$1.log" $?
}

# Programs for another machine or under a tool: NAME becomes a script that runs NAME.real.
wrap() { # FOLDER RUNNER...
    at=$1
    shift
    for name in run engine measure make_model make_gguf mutate; do
        mv "$at/$name" "$at/$name.real"
        printf '#!/bin/sh\nexec %s "%s" "$@"\n' "$*" "$at/$name.real" > "$at/$name"
        chmod +x "$at/$name"
    done
}

# some CELL CC CFLAGS RUNNER TEST...: builds, then those unit tests and cli.sh by way of RUNNER.
some() {
    cell=$1 at=build/matrix/$1 cc=$2 flags=$3 runner=$4
    shift 4
    rm -rf "$at"
    programs="$at/run $at/engine $at/measure $at/make_model $at/make_gguf $at/mutate"
    for t; do programs="$programs $at/$t"; done
    # shellcheck disable=SC2086 # a list of words
    make -j2 $programs CC="$cc" CFLAGS="$flags" BUILD="$at" > "$at.log" 2>&1 || {
        result "$at.log" 1
        return
    }
    status=0 total=0
    for t; do
        $runner "$at/$t" > "$at.one" 2>&1 || { status=1; cat "$at.one"; }
        total=$((total + $(passed_in "$at.one")))
    done >> "$at.log"
    [ -z "$runner" ] || wrap "$at" "$runner"
    sh tests/cli.sh "$at" > "$at.one" 2>&1 || status=1
    cat "$at.one" >> "$at.log"
    [ $status -eq 0 ] || { result "$at.log" 1; return; }
    echo "$((total + $(passed_in "$at.one"))) passed, 0 failed" | tee -a "$at.log"
}

portable() {
    at=build/matrix/portable
    mkdir -p $at
    make -j2 portable BUILD=$at RUN=$at/run > $at.log 2>&1 || { result $at.log 1; return; }
    make -j2 $at/engine $at/measure $at/make_model $at/make_gguf $at/mutate BUILD=$at >> $at.log 2>&1
    for level in v2 v3 v4; do
        RUN_KERNELS=$level sh tests/cli.sh $at >> $at.log 2>&1 || { result $at.log 1; return; }
    done
    result $at.log 0
}

builds() {
    n=0
    for cc in gcc clang; do
        has $cc || continue
        for m in core2 nehalem sandybridge ivybridge haswell skylake skylake-avx512 cascadelake \
                 cannonlake icelake-server alderlake sapphirerapids knl bdver2 bdver4 znver1 znver3 \
                 x86-64-v2 x86-64-v3 x86-64-v4; do
            $cc -march=$m -E -x c /dev/null > /dev/null 2>&1 || continue # not known to it
            $cc -std=gnu11 -Wall -Wextra -Werror -O1 -march=$m -S -o /dev/null run.c &&
                $cc -std=gnu11 -Wall -Wextra -Werror -O1 -march=$m -S -o /dev/null chat.c ||
                { echo "FAILED: $cc -march=$m"; return; }
            n=$((n + 1))
        done 2> build/matrix/builds.log
    done
    echo "$n passed, 0 failed"
}

m32() {
    if gcc -m32 -fsyntax-only run.c 2> build/matrix/m32.log; then echo "FAILED: it compiles"
    elif head -n 5 build/matrix/m32.log | grep -q '#error "run.c maps'; then
        echo "refused, as it should be"
    else echo "FAILED: no reason given"; fi
}

valgrind_cell() {
    at=build/matrix/valgrind
    watch="valgrind -q --error-exitcode=99"
    set -- test_position test_kernels test_tokenizer test_bpe test_gguf test_measure test_plot
    programs="run make_model make_gguf $*"
    # shellcheck disable=SC2046,SC2086 # a list
    make -j2 $(printf "$at/%s " $programs) CFLAGS="-O1 -g -march=x86-64-v3" BUILD=$at > $at.log \
        2>&1 || { result $at.log 1; return; }
    n=0
    for t; do
        SLOW=100 $watch $at/"$t" > $at.one 2>&1 || { echo "FAILED: $t"; return; }
        n=$((n + $(passed_in $at.one)))
    done
    for v in 0 1 2 101 102; do $at/make_model $at/v$v version=$v vocab=4096 ctx=40 || return; done
    $at/make_gguf $at/gguf qwen2 "q4_k q5_k q6_k" bpe yarn qwen2 || return
    cp tokenizer.bin $at
    for model in v0 v1 v2 v101 v102 gguf; do
        for how in "-t 0" "-t 1 -s 1 -j 2 --exact" "--window 9 --sinks 2 -n 60" "-m info"; do
            # shellcheck disable=SC2086 # the words of $how are options
            $watch --leak-check=full --errors-for-leak-kinds=definite \
                $at/run $at/$model -i "Once upon" -n 12 $how >> $at.log 2>&1 ||
                { echo "FAILED: $model $how"; return; }
            n=$((n + 1))
        done
    done
    echo "$n passed, 0 failed"
}

# cell NAME NEEDED-PROGRAM COMMAND...
cell() {
    if has "$2"; then
        name=$1 begin=$(date +%s)
        shift 2
        what=$("$@")
        row "$name" "$what" $(($(date +%s) - begin))
    else row "$1" "skipped: no $2 here" 0; fi
}

san="-O1 -g -march=native -fsanitize=address,undefined -fno-sanitize-recover=undefined"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
units="test_bits test_kernels test_attention test_position test_tokenizer test_gguf test_measure test_damage"
if [ $# -eq 0 ]; then
    for machine in sse2 avx2 avx512; do
        for cc in gcc clang; do
            for o in O0 O2 O3; do set -- "$@" $cc-$o-$machine; done
        done
    done
    set -- "$@" plain musl aarch64 portable builds m32 sanitize threads valgrind
fi
for c; do
    # shellcheck disable=SC2086 # $units is a list
    case $c in
    plain) cell plain gcc tests plain gcc "-O2 -march=native -DPLAIN" ;;
    musl) cell musl musl-gcc tests musl "musl-gcc -static" "-O2 -march=native" ;;
    aarch64)
        cell aarch64 qemu-aarch64 some aarch64 "aarch64-linux-gnu-gcc -static" \
            "-O2 -march=armv8.2-a+dotprod -fno-tree-vectorize" qemu-aarch64 $units ;;
    portable) cell portable cc portable ;;
    builds) cell builds gcc builds ;;
    m32) cell m32 gcc m32 ;;
    sanitize) cell sanitize clang tests sanitize clang "$san" ;;
    threads)
        cell threads gcc some threads gcc "-O2 -g -march=native -fsanitize=thread" "" $units test_train ;;
    valgrind) cell valgrind valgrind valgrind_cell ;;
    *-O*-*)
        case $c in
        *-sse2) march=x86-64 need=sse2 ;;
        *-avx2) march=x86-64-v3 need=avx2 ;;
        *) march="x86-64-v4 -mavx512vnni" need=avx512_vnni ;;
        esac
        o=${c#*-}
        if grep -q -w -e $need /proc/cpuinfo; then
            cell "$c" "${c%%-*}" tests "$c" "${c%%-*}" "-${o%-*} -march=$march"
        else row "$c" "skipped: this processor has no $need" 0; fi ;;
    *) row "$c" "FAILED: no such cell" 0 ;;
    esac
done
[ $failed -eq 0 ]
