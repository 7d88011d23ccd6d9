// test_plot.c: the pictures. Labels that keep apart, means in the right buckets, pictures that are
// well-formed XML, and refusals: one line, the right status, no file left behind.
#define main plot_main
#include "plot.c"
#undef main
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

static void *xcalloc(size_t n, size_t size)
{
    return memset(xrealloc(NULL, n * size), 0, n * size);
}
#include "check.h"

static const char svg_path[] = "plot.svg", tmp_path[] = "plot.svg.tmp";

static void test_commas(void)
{
    static const struct { double v; const char *want; } cases[] = {
        {0, "0"}, {999, "999"}, {1000, "1,000"}, {123456, "123,456"}, {1234567, "1,234,567"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(!strcmp(with_commas(cases[i].v), cases[i].want));
}

// Labels keep their order and ROW between them and stay inside; one that has room stays in place.
static void test_labels(void)
{
    int bad = 0;
    for (int trial = 0; trial < 500; trial++) {
        static Series store[20];
        Series *s[20];
        size_t n = 1 + random_bits() % 20;
        for (size_t i = 0; i < n; i++) {
            s[i] = &store[i];
            s[i]->wanted = 100 + 400 * (double)(random_uniform() + 1) / 2;
            if (trial & 1) s[i]->wanted = floor(s[i]->wanted / 50) * 50; // many alike
        }
        qsort(s, n, sizeof *s, by_wanted);
        spread_labels(s, n, 100, 500);
        for (size_t i = 0; i < n; i++) {
            bad += s[i]->place < 100 - 1e-9 || s[i]->place > 500 + 1e-9;
            bad += i && s[i]->place - s[i - 1]->place < ROW - 1e-9;
        }
        if (n == 1) bad += s[0]->place != s[0]->wanted;
    }
    CHECK_INT(bad, 0);
}

// Writes a table of two windows whose loss is log2 of the tokens seen, plus `more`.
static void write_losses(const char *path, int n, double more)
{
    FILE *f = fopen(path, "w");
    fprintf(f, "window\tposition\ttoken\tnll\n");
    for (int w = 0; w < 2; w++)
        for (int i = 0; i < n; i++)
            fprintf(f, "%d\t%d\t7\t%.7f\n", w, i, log2(i + 1) + more);
    fclose(f);
}

static void test_losses(void)
{
    static Series a = {.path = "plot.a"}, b = {.path = "plot.b"};
    Series *const both[] = {&a, &b};
    write_losses(a.path, 511, 0);
    write_losses(b.path, 511, 0.25);
    read_losses(both, 2, 0);
    bucket_losses(&a, 64);
    CHECK_INT(a.n, 6 * PER_OCTAVE); // 8 to 511 tokens
    double most = 0;
    for (size_t i = 0; i < a.n; i++) most = fmax(most, fabs(a.y[i] - (a.x[i] + 6)));
    CHECK_NEAR(most, 0, 1e-6);
    CHECK_NEAR(mean_loss(&a, 4, 5, -1), 2, 1e-6); // position 3 alone
    CHECK_NEAR(mean_loss(&b, 4, 5, 1), 2.25, 1e-6);
    CHECK(isnan(mean_loss(&a, 4, 5, 2)));
    free(a.table.cell);
    free(b.table.cell);
    read_losses(both, 2, 1);
    CHECK_NEAR(mean_loss(&a, 1, 512, -1), 0, 1e-9);
    CHECK_NEAR(mean_loss(&b, 1, 512, -1), 0.25, 1e-6);
    free(a.table.cell);
    free(b.table.cell);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
}

static void test_grid(void)
{
    write_text("plot.a", "task\tlength\tdepth\tright\nk\t64\t0\t1\nk\t64\t0\t0\n"
                                    "k\t64\t1\t1\nk\t128\t0\t0\nk\t128\t1\t1\n");
    Grid g = count_answers("plot.a");
    CHECK_INT(g.n_lengths, 2);
    CHECK_INT(g.n_depths, 2);
    CHECK_NEAR(share_right(&g, 64, 65), 200.0 / 3, 1e-9);
    CHECK_NEAR(share_right(&g, 65, HUGE_VAL), 50, 1e-9);
    CHECK(isnan(share_right(&g, 1, 2)));
}

// Whether text is well-formed as far as pictures go: tags nest and close, every & is an entity.
static int well_formed(const char *s)
{
    char open[32][16];
    int depth = 0;
    for (; *s; s++) {
        if (*s == '&' && strncmp(s, "&amp;", 5) && strncmp(s, "&lt;", 4) && strncmp(s, "&gt;", 4))
            return 0;
        if (*s != '<') continue;
        size_t close = strcspn(s, ">"), name = strcspn(s + 1, " />\n");
        if (!s[close] || (name > 15 && s[1] != '/')) return 0;
        if (s[1] == '/') {
            if (!depth-- || strncmp(s + 2, open[depth], strlen(open[depth]))) return 0;
        } else if (s[close - 1] != '/') {
            if (depth == 32) return 0;
            snprintf(open[depth++], 16, "%.*s", (int)name, s + 1);
        }
        s += close;
    }
    return depth == 0;
}

// Runs plot with the arguments, up to NULL, in a process of its own; its status, or -1 for a
// crash. *lines: how many it wrote to stderr.
static int run_plot(const char *const *args, int *lines)
{
    FILE *err = tmpfile();
    char *argv[MAX_SERIES + 6] = {"plot"};
    int argc = 1, status;
    for (; args[argc - 1]; argc++) argv[argc] = (char *)(uintptr_t)args[argc - 1];
    fflush(stdout);
    remove(svg_path);
    if (!fork()) {
        dup2(fileno(err), 2);
        if (!freopen("plot.out", "w", stdout)) _exit(99);
        exit(plot_main(argc, argv));
    }
    wait(&status);
    rewind(err);
    *lines = 0;
    for (int c; (c = getc(err)) != EOF;) *lines += c == '\n';
    fclose(err);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// The table that the last plot printed.
static void check_table(const char *want)
{
    char text[1 << 12];
    FILE *f = fopen("plot.out", "r");
    CHECK(f);
    if (!f) return;
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    CHECK_TEXT(text, strlen(text), want, strlen(want));
}

static void check_drawn(const char *kind, const char *a, const char *b)
{
    static char text[1 << 20];
    int lines, before = n_failed;
    const char *const args[] = {kind, svg_path, "64:512", "A <title> & \"more\"\nline 2",
                                a, b, NULL};
    CHECK_INT(run_plot(args, &lines), 0);
    CHECK_INT(lines, 0);
    FILE *f = fopen(svg_path, "r");
    CHECK(f);
    if (!f) return;
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    CHECK(well_formed(text));
    CHECK(!strstr(text, "nan") && !strstr(text, "inf"));
    CHECK(strstr(text, "A &lt;title&gt; &amp;"));
    CHECK(access(tmp_path, F_OK));
    note_failures(before, "plot %s", kind);
}

static void test_pictures(void)
{
    write_losses("plot.a", 511, 0);
    write_losses("plot.b", 511, 4); // leaves at the top
    check_drawn("loss", "x<y=plot.a", "b=plot.b");
    check_drawn("gain", "x<y=plot.a", "b=plot.b");
    write_text("plot.a", "length\tdepth\tright\n64\t0\t1\n128\t0\t0\n");
    check_drawn("grid", "x<y=plot.a", "b=plot.a");
    write_text("plot.b", "length\tdepth\tright\n128\t0\t1\n256\t0\t0\n");
    check_drawn("grid", "a=plot.a", "b=plot.b");
    check_table("method\t64\t128\t256\na\t100\t0\t-\nb\t-\t100\t0\n");
    write_text("plot.a", "pair\tscaled\n0\t6.28\n1\t62.8\n2\t628\n");
    check_drawn("waves", "x<y=plot.a", "b=plot.a");
}

// The boxes of a picture's texts, but for titles along an axis that stands upright: [left, right]
// and the base line. Returns how many pairs of them overlap and how many leave the picture.
static int overlaps(const char *svg)
{
    static struct { double left, right, y; } box[256];
    int n = 0, bad = 0;
    const char *end;
    for (const char *s = svg; (s = strstr(s, "<text x=")) && n < 256; s = end) {
        double x, y, width;
        const char *anchor = strstr(s, "text-anchor=\"");
        end = strstr(s, "</text>");
        if (!anchor || anchor > end) continue; // the title
        if (sscanf(s, "<text x=\"%lf\" y=\"%lf\"", &x, &y) != 2 || x == 20) continue;
        anchor += strlen("text-anchor=\"");
        width = 7.0 * (double)(end - strchr(s, '>') - 1);
        box[n].left = x - (*anchor == 'e' ? width : *anchor == 'm' ? width / 2 : 0);
        box[n].right = box[n].left + width;
        box[n++].y = y;
    }
    for (int i = 0; i < n; i++) bad += box[i].left < 0 || box[i].right > PICTURE_WIDTH;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < i; k++)
            bad += fabs(box[i].y - box[k].y) < 11 && box[i].left < box[k].right &&
                   box[k].left < box[i].right;
    return n ? bad : -1;
}

static const char *const crowd[] = {
    "rope", "xpos", "nope", "sinusoidal", "shape", "learned", "learned, clamped", "alibi", "t5",
    "kerple", "fire", "shaw", "sandwich", "cape", "drope", "rope-randomized", "learned-randomized",
    "learned-randomized, clamped", "rope-randomized, drawn", "learned-randomized, drawn"};
#define COUNT(array) (sizeof(array) / sizeof *(array))
enum { CROWD = COUNT(crowd) };

// Every encoding has a style of its own, and so has every method in the pictures of figures.sh and
// holds.sh.
static void test_styles(void)
{
    static const char *const frequencies[] = {"none", "linear", "ntk", "dynamic", "dynamic + log-n",
                                              "by-parts", "yarn", "llama3"};
    static const char *const distances[] = {
        "none", "window 512", "window 508 + 4 sinks", "self-extend 16:256", "rerope 256",
        "rerope 256 + log-n", "leaky-rerope 256:16", "dual-chunk 352:32"};
    static const char *const gains[] = {
        "window 512", "dynamic", "yarn", "window 508 + 4 sinks", "self-extend 16:256",
        "rerope 256", "rerope 256 + log-n", "dual-chunk 352:32"};
    static const char *const holds[] = {
        "none", "linear", "ntk", "dynamic", "by-parts", "yarn", "window + 4 sinks", "self-extend",
        "dual-chunk", "rerope", "rerope + log-n"};
    static const struct {
        const char *const *labels;
        size_t n;
    } pictures[] = {{crowd, CROWD}, {frequencies, COUNT(frequencies)},
                    {distances, COUNT(distances)}, {gains, COUNT(gains)}, {holds, COUNT(holds)}};
    static Series s[CROWD];
    for (size_t p = 0; p < COUNT(pictures); p++)
        for (size_t i = 0; i < pictures[p].n; i++) {
            strcpy(s[i].label, pictures[p].labels[i]);
            set_style(&s[i], 1000 + i);
            for (size_t k = 0; k < i; k++)
                CHECK(s[i].colour != s[k].colour || strcmp(dashes[s[i].dash], dashes[s[k].dash]));
        }
}

// A line for each encoding: all alike up to 64 tokens, then each rises by a chance of its own up to
// `most` nats or ends. No two texts overlap, at most MAX_EXITS lines leave, every name is there.
static void check_crowd(double most)
{
    static char args[CROWD][160], svg[1 << 20];
    const char *argv[CROWD + 5] = {"means", svg_path, "64", "Many\nlines"};
    int lines, exits = 0, stopped = 0, before = n_failed;
    for (int i = 0; i < CROWD; i++) {
        char path[32];
        snprintf(path, sizeof path, "plot.%d", i);
        snprintf(args[i], sizeof args[i], "%s=%s", crowd[i], path);
        argv[4 + i] = args[i];
        FILE *f = fopen(path, "w");
        double rise = most * (double)(random_uniform() + 1) / 2;
        int last = !strcmp(crowd[i], "learned") ? 0 : i == CROWD - 2 ? 3 : 4;
        fprintf(f, "tokens\tloss\n");
        for (int k = 0; k <= last; k++) fprintf(f, "%d\t%.4f\n", 64 << k, 4 + rise * k / 4);
        fclose(f);
    }
    CHECK_INT(run_plot(argv, &lines), 0);
    FILE *f = fopen(svg_path, "r");
    CHECK(f);
    if (f) svg[fread(svg, 1, sizeof svg - 1, f)] = 0, fclose(f);
    for (int i = 0; i < CROWD; i++) CHECK(strstr(svg, crowd[i])), remove(strchr(args[i], '=') + 1);
    for (const char *s = svg; (s = strstr(s, "at the end")); s++) exits++;
    for (const char *s = svg; (s = strstr(s, " ends<")); s++) stopped++;
    CHECK_INT(overlaps(svg), 0);
    CHECK(exits <= MAX_EXITS);
    CHECK(stopped + exits >= 2);
    CHECK(well_formed(svg));
    note_failures(before, "up to %.2f nats", most);
}

static void test_means(void)
{
    static Series s = {.path = "plot.a"};
    write_text("plot.a", "encoding\ttokens\tloss\nx\t32\t4.5\nx\t128\t4\n");
    read_means(&s, 64);
    CHECK_INT(s.n, 2);
    CHECK_NEAR(s.x[0], -1, 1e-9);
    CHECK_NEAR(s.x[1], 1, 1e-9);
    CHECK_NEAR(s.y[1], 4, 1e-9);
    free(s.table.cell);
    check_drawn("means", "x<y=plot.a", "b=plot.a");
    write_text("plot.a", "tokens\tloss\n64\t4.5\n"); // one length alone
    check_drawn("means", "x<y=plot.a", "b=plot.a");
    // Each number stands under its own length, whichever lengths a line lacks.
    write_text("plot.a", "tokens\tloss\n128\t4.25\n");
    write_text("plot.b", "tokens\tloss\n64\t5\n256\t4.5\n");
    check_drawn("means", "a=plot.a", "b=plot.b");
    check_table("method\t64\t128\t256\na\t-\t4.250\t-\nb\t5.000\t-\t4.500\n");
    for (int i = 0; i < 40; i++) check_crowd(i / 6.0);
}

static void check_refused(int want, const char *const *args, const char *why)
{
    int lines, before = n_failed;
    CHECK_INT(run_plot(args, &lines), want);
    CHECK_INT(lines, 1);
    CHECK(access(svg_path, F_OK) && access(tmp_path, F_OK));
    note_failures(before, "%s", why);
}

static void test_refusals(void)
{
    static const char *const tables[] = {
        "", "window\tposition\n0\t1\n", "window\tposition\tnll\n", "window\tposition\tnll\n0\t1\n",
        "window\tposition\tnll\n0\t1\tx\n", "window\tposition\tnll\n0\t1\tnan\n",
        "window\tposition\tnll\n0\t1e99\t1\n", "window\tposition\tnll\n0\t60\t1",
        "window\tposition\tnll\n0\t-9\t1\n"};
    static const char *const commands[][8] = {
        {NULL}, {"loss", svg_path, "64", "T"}, {"pie", svg_path, "64", "T", "a=plot.a"},
        {"loss", svg_path, "x", "T", "a=plot.a"},
        {"loss", svg_path, "64:", "T", "a=plot.a", "b"},
        {"loss", "plot.png", "64", "T", "a=plot.a"},
        {"loss", svg_path, "64", "T\x7f", "a=plot.a"}};
    static const char *const loss[] = {"loss", svg_path, "64", "T", "a=plot.a", NULL};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        write_text("plot.a", tables[i]);
        check_refused(FAILED, loss, tables[i]);
    }
    check_refused(FAILED, (const char *[]){"loss", svg_path, "64", "T", "a=no", NULL}, "no file");
    write_losses("plot.a", 511, 0);
    write_losses("plot.b", 510, 0);
    check_refused(FAILED, (const char *[]){"gain", svg_path, "64", "T", "a=plot.a",
                                           "b=plot.b", NULL}, "other positions");
    write_text("plot.a", "length\tdepth\tright\n64\t0\t1\n");
    write_text("plot.b", "length\tdepth\tright\n64\t0.5\t1\n");
    check_refused(FAILED, (const char *[]){"grid", svg_path, "64", "T", "a=plot.a",
                                           "b=plot.b", NULL}, "other depths");
    static const char *const means[] = {"means", svg_path, "64", "T", "a=plot.a", NULL};
    static const char *const lengths[] = {"64\t4\n64\t4\n", "128\t4\n64\t4\n", "0\t4\n", "64\t-\n"};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char text[64];
        snprintf(text, sizeof text, "tokens\tloss\n%s", lengths[i]);
        write_text("plot.a", text);
        check_refused(FAILED, means, text);
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        check_refused(USAGE, commands[i], commands[i][0] ? commands[i][0] : "nothing");
}

int main(void)
{
    char folder[] = "/tmp/test_plot.XXXXXX";
    if (!mkdtemp(folder) || chdir(folder)) return perror(folder), 1;
    test_commas();
    test_labels();
    test_losses();
    test_grid();
    test_pictures();
    test_styles();
    test_means();
    test_refusals();
    remove("plot.a"), remove("plot.b"), remove("plot.out"), remove(svg_path);
    rmdir(folder);
    return report("test_plot");
}
