# make: build run; make demo: a short tale; make test: all tests.
CC ?= cc
CFLAGS ?= -O3 -march=native
ALL_CFLAGS = -std=gnu11 -Wall -Wextra -ffp-contract=fast $(CFLAGS)
LDLIBS = -lm -lpthread

run: run.c
	$(CC) $(ALL_CFLAGS) -o $@ run.c $(LDLIBS)

demo: run
	./run models/tales.bin -i "Once upon a time" -t 0.8 -n 200 -s 7
