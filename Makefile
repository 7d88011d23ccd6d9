# make            build ./run
# make demo       a short tale
# make test       all tests; REFERENCE=folder adds checks against public checkpoints
# make tools      build/bpe, build/train, build/oracle
# make clean      remove everything that was built
#
# CC and CFLAGS may be given, as in: make CC=clang CFLAGS="-O2 -march=native"

CC ?= cc
CFLAGS ?= -O3 -march=native
BUILD ?= build
ALL_CFLAGS = -std=gnu11 -Wall -Wextra -ffp-contract=fast $(CFLAGS)
# Tests and tools include run.c whole and use a part of it.
PART_CFLAGS = $(ALL_CFLAGS) -Wno-unused-function
LDLIBS = -lm -lpthread

UNITS = $(patsubst tests/%.c,$(BUILD)/%,$(sort $(wildcard tests/test_*.c)))
TOOLS = $(patsubst models/%.c,$(BUILD)/%,$(wildcard models/*.c)) \
        $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/oracle.c))

run: run.c
	$(CC) $(ALL_CFLAGS) -o $@ run.c $(LDLIBS)

demo: run
	./run models/tales.bin -i "Once upon a time" -t 0.8 -n 200 -s 7

tools: $(TOOLS)

# The tests use a copy of their own, so that a warning is an error there.
test: $(BUILD)/run $(BUILD)/make_model $(BUILD)/mutate $(TOOLS) $(UNITS)
	sh tests/all.sh $(BUILD) $(UNITS)

$(BUILD)/run: run.c | $(BUILD)
	$(CC) $(ALL_CFLAGS) -Werror -o $@ run.c $(LDLIBS)

$(BUILD)/test_%: tests/test_%.c $(wildcard tests/*.h models/*.c) run.c | $(BUILD)
	$(CC) $(PART_CFLAGS) -Werror -o $@ $< $(LDLIBS)

$(BUILD)/%: tests/%.c $(wildcard tests/*.h) run.c | $(BUILD)
	$(CC) $(PART_CFLAGS) -Werror -o $@ $< $(LDLIBS)

$(BUILD)/%: models/%.c run.c | $(BUILD)
	$(CC) $(PART_CFLAGS) -Werror -o $@ $< $(LDLIBS)

$(BUILD):
	mkdir -p $@

clean:
	rm -rf build run

.PHONY: demo tools test clean

# The pictures of the README and the numbers behind them, in models/figures: about 10 minutes.
figures: run $(BUILD)/plot
	sh tests/figures.sh $(BUILD)

$(BUILD)/test_plot: tests/plot.c

.PHONY: figures
