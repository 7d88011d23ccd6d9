# check.sh: what the shell tests share; each sources it, run in the repository's folder as
# `sh tests/SUITE.sh BUILD`. It makes an empty folder BUILD/SUITE for the suite's files.

build=$1
run=$build/run
measure=$build/measure
suite=$(basename "$0")
tmp=$build/${suite%.sh}
rm -rf "$tmp"
mkdir -p "$tmp"
passed=0
failed=0

ok() { passed=$((passed + 1)); }

bad() {
    failed=$((failed + 1))
    echo "$suite: $*"
}

# Sets $program to the one that has the mode which is among ARGS...: it is run.c's or measure's.
choose_program() {
    case " $* " in
    *" -m perplexity "* | *" -m passkey "* | *" -m retrieval "* | *" -m rope "* | *" -m bench "* | \
        *" -m kv "* | *" -m contrast "*)
        program=measure ;;
    *) program=run ;;
    esac
}

# The last line of a suite, and its exit status.
report() {
    echo "$suite: $passed passed, $failed failed"
    [ $failed -eq 0 ]
}
