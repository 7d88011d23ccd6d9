#!/bin/sh
# all.sh BUILD PROGRAM...: runs the unit tests given, then the command-line tests, and ends with
# one line, the sum of theirs. Exit status 1 if anything failed.

build=$1
shift
log=$build/test.log
: > "$log"

# Runs one suite. Its last line must be "... N passed, N failed"; one that ends without it, or
# with a failing status but no failed check, counts as one failure.
suite() {
    "$@" > "$build/suite.log" 2>&1
    status=$?
    cat "$build/suite.log"
    line=$(tail -n 1 "$build/suite.log" | grep -o '[0-9]* passed, [0-9]* failed$')
    if [ -z "$line" ] || { [ $status -ne 0 ] && [ "${line#* passed, }" = "0 failed" ]; }; then
        echo "$*: ended with status $status"
        echo "0 passed, 1 failed" >> "$log"
    fi
    [ -z "$line" ] || echo "$line" >> "$log"
}

for program; do suite "$program"; done
suite sh tests/cli.sh "$build"
suite sh tests/reference.sh "$build"
suite sh tests/encodings.sh "$build"

awk '{ passed += $1; failed += $3 }
     END { printf "%d passed, %d failed\n", passed, failed; exit failed > 0 }' "$log"
