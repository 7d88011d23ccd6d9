// portable.c: one program for every x86-64. run.c is compiled three times, for the levels v2 (SSE),
// v3 (AVX2) and v4 (AVX-512) with VNNI, its main() renamed; this one calls the best that the
// processor has, or the one that RUN_KERNELS names. Bits may differ between the levels.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main_v2(int argc, char **argv);
int main_v3(int argc, char **argv);
int main_v4(int argc, char **argv);

int main(int argc, char **argv)
{
    int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni");
    const char *name = getenv("RUN_KERNELS");
    if (!name || !*name) name = v4 ? "v4" : v3 ? "v3" : "v2";
    if (!strcmp(name, "v4") && v4) return main_v4(argc, argv);
    if (!strcmp(name, "v3") && v3) return main_v3(argc, argv);
    if (!strcmp(name, "v2")) return main_v2(argc, argv);
    fprintf(stderr, "run: RUN_KERNELS: not on this processor (got %s, want v2, v3 or v4)\n", name);
    return 2;
}
