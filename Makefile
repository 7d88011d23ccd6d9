# make            build ./run and ./measure
# make demo       a short tale
# make test       all tests; REFERENCE=folder adds checks against public checkpoints
# make tools      build/bpe, build/train, build/oracle
# make bench      speed on models of known shapes, against this machine's limits
# make portable   ./run for any x86-64: kernels for three levels, chosen as it starts
# make figures    the pictures of models/EXTENDING.md, from models/tales.bin (12 minutes)
# make survey     those of models/ENCODINGS.md: every position encoding (7 minutes)
# make fuzz       hostile files and options, SECONDS=60 for each kind
# make matrix     make test with every compiler and machine at hand: hours
# make clean      remove everything that was built
#
# CC and CFLAGS may be given, as in: make CC=clang CFLAGS="-O2 -march=native"

CC ?= cc
ifeq ($(origin CFLAGS),undefined)
UNIT_CFLAGS = -O2 # compiles in half the time
endif
CFLAGS ?= -O3 -march=native
BUILD ?= build
ALL_CFLAGS = -std=gnu11 -Wall -Wextra -ffp-contract=off $(CFLAGS)
# Tests and tools include run.c whole and use a part of it; the trainer's vectors may be wider than
# the machine's, but no other file calls its functions.
PART_CFLAGS = $(ALL_CFLAGS) -Wno-unused-function -Wno-psabi
LDLIBS = -lm -lpthread

SOURCE = run.c chat.c
UNITS = $(patsubst tests/%.c,$(BUILD)/%,$(sort $(wildcard tests/test_*.c)))
TOOLS = $(patsubst models/%.c,$(BUILD)/%,$(wildcard models/*.c)) \
        $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/oracle.c))

all: run measure

# run.c is whole by itself (cc run.c); with chat.c it holds conversations, too.
run: $(SOURCE)
	$(CC) $(ALL_CFLAGS) -o $@ chat.c $(LDLIBS)

measure: tests/measure.c $(SOURCE)
	$(CC) $(PART_CFLAGS) -o $@ tests/measure.c $(LDLIBS)

demo: run
	./run models/tales.bin -i "Once upon a time" -t 0.8 -n 200 -s 7

tools: $(TOOLS)

# Every suite leaves a log, whose last line says how many checks passed; their sum is the last line.
# The shell suites wait a lot, and begin first.
SCRIPTS = $(patsubst %,$(BUILD)/%.log,cli chat encodings reference)
SUITES = $(SCRIPTS) $(UNITS:=.log)

test: $(SUITES) $(TOOLS)
	@tail -q -n 1 $(SUITES) | awk '{ passed += $$(NF - 3); failed += $$(NF - 1) } \
	    END { printf "%d passed, %d failed\n", passed, failed; exit failed > 0 }'

$(SCRIPTS): $(BUILD)/%.log: $(addprefix $(BUILD)/,run engine measure make_model \
            make_gguf mutate oracle terminal) always
	@sh tests/suite.sh $@ sh tests/$*.sh $(BUILD)

$(UNITS:=.log): %.log: % always
	@sh tests/suite.sh $@ $<

# The tests use copies of run and measure of their own, so that a warning is an error there.
$(BUILD)/run: $(SOURCE) | $(BUILD)
	$(CC) $(ALL_CFLAGS) -Werror -o $@ chat.c $(LDLIBS)

$(BUILD)/engine: run.c | $(BUILD)
	$(CC) $(ALL_CFLAGS) -Werror -o $@ run.c $(LDLIBS)

$(BUILD)/test_%: tests/test_%.c $(wildcard tests/*.h models/*.c) tests/measure.c $(SOURCE) | $(BUILD)
	$(CC) $(PART_CFLAGS) $(UNIT_CFLAGS) -Werror -o $@ $< $(LDLIBS)

# As run itself: the first computes much, the others test what the compiler makes of inner loops.
$(addprefix $(BUILD)/test_,attention kernels bits): UNIT_CFLAGS =

$(BUILD)/%: tests/%.c $(wildcard tests/*.h) $(SOURCE) | $(BUILD)
	$(CC) $(PART_CFLAGS) -Werror -o $@ $< $(LDLIBS)

$(BUILD)/%: models/%.c $(SOURCE) | $(BUILD)
	$(CC) $(PART_CFLAGS) -Werror -o $@ $< $(LDLIBS)

$(BUILD):
	mkdir -p $@

clean:
	rm -rf build run measure

.PHONY: all always demo tools test clean

# Models of random weights (about 2.9 GB in build/bench.models), then their speed: a few minutes.
bench: $(BUILD)/bench $(BUILD)/make_model $(BUILD)/make_1b
	sh tests/bench.sh $(BUILD)

$(BUILD)/make_1b: tests/make_gguf.c tests/gguf.h tests/check.h $(SOURCE) | $(BUILD)
	$(CC) $(PART_CFLAGS) -DGGUF_1B -Werror -o $@ $< $(LDLIBS)

ifeq ($(shell uname -m),x86_64)
RUN = run
LEVELS = $(BUILD)/run_v2.o $(BUILD)/run_v3.o $(BUILD)/run_v4.o
portable: $(LEVELS) tests/portable.c
	$(CC) $(ALL_CFLAGS) -march=x86-64 -o $(RUN) tests/portable.c $(LEVELS) $(LDLIBS)

$(BUILD)/run_v4.o: LEVEL = -march=x86-64-v4 -mavx512vnni
$(BUILD)/run_%.o: $(SOURCE) | $(BUILD)
	$(CC) $(ALL_CFLAGS) $(or $(LEVEL),-march=x86-64-$*) -Dmain=main_$* -c -o $@ chat.c
else
portable: run
endif

.PHONY: bench portable

# The pictures of models/EXTENDING.md and the numbers behind them, in models/figures: 12 minutes.
figures: run measure $(BUILD)/plot
	sh tests/figures.sh $(BUILD)

# Those of models/ENCODINGS.md, one small model for each position encoding: 13 minutes of processor time.
survey: run measure $(BUILD)/plot
	sh tests/survey.sh $(BUILD)

$(BUILD)/test_plot: tests/plot.c

SECONDS ?= 60
fuzz: | $(BUILD)
	sh tests/fuzz.sh $(BUILD) $(SECONDS)

matrix:
	sh tests/matrix.sh

.PHONY: figures survey fuzz matrix
