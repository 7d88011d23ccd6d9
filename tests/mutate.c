// mutate.c: copies a file with a change, to make bad files for the command-line tests.
//
//   mutate IN OUT size N          the first N bytes, or all and zeros up to N
//   mutate IN OUT i32 AT VALUE    with a little-endian int32 at byte AT
//   mutate IN OUT f32 AT VALUE    with a float there
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_all(const char *path, size_t room, size_t *size)
{
    FILE *f = fopen(path, "rb");
    char *data = calloc(room, 1);
    if (!f || !data) {
        fprintf(stderr, "mutate: %s: cannot read\n", path);
        exit(1);
    }
    *size = fread(data, 1, room, f);
    fclose(f);
    return data;
}

int main(int argc, char **argv)
{
    enum { ROOM = 64 << 20 };
    size_t size, at = argc > 4 ? strtoul(argv[4], NULL, 10) : 0;
    if (argc < 5 || at + 4 > ROOM) {
        fprintf(stderr, "usage: mutate IN OUT size N | i32 AT VALUE | f32 AT VALUE\n");
        return 2;
    }
    char *data = read_all(argv[1], ROOM, &size);
    if (!strcmp(argv[3], "size")) size = at;
    else if (argc > 5 && !strcmp(argv[3], "i32")) {
        int32_t v = (int32_t)strtol(argv[5], NULL, 10);
        memcpy(data + at, &v, 4);
    } else if (argc > 5 && !strcmp(argv[3], "f32")) {
        float v = strtof(argv[5], NULL);
        memcpy(data + at, &v, 4);
    } else return 2;
    FILE *f = fopen(argv[2], "wb");
    int ok = f && fwrite(data, 1, size, f) == size && !fclose(f);
    free(data);
    return !ok;
}
