#!/bin/sh
# suite.sh LOG PROGRAM ARGS...: runs one suite of tests, and shows what it said when it has ended, so
# that suites may run side by side. Its last line must be "... N passed, N failed"; one that ends
# without it, or with a failing status but no failed check, counts as one failure. Always succeeds:
# the sum of all logs tells whether anything failed.

log=$1
shift
"$@" > "$log.part" 2>&1
status=$?
line=$(tail -n 1 "$log.part" | grep -o '[0-9]* passed, [0-9]* failed$')
if [ -z "$line" ] || { [ $status -ne 0 ] && [ "${line#* passed, }" = "0 failed" ]; }; then
    echo "$*: ended with status $status" >> "$log.part"
    echo "$*: 0 passed, 1 failed" >> "$log.part"
fi
mv "$log.part" "$log"
cat "$log"
