// plot.c: draws what ./measure measured, as SVG for light and dark pages.
//
//   plot loss  OUT.svg 512      TITLE label=perplexity.tsv ...   loss against position
//   plot gain  OUT.svg 512      TITLE label=perplexity.tsv ...   loss above that of the first file
//   plot grid  OUT.svg 512      TITLE label=passkey.tsv ...      one heat map a method
//   plot waves OUT.svg 512:4096 TITLE label=rope.tsv ...         wavelength against pair
//   plot means OUT.svg 512      TITLE label=means.tsv ...        loss against length of the text
//
// 512 is the trained context, 4096 the length asked for. A title may have a second line, which is
// set smaller. The files are those that measure --tsv writes; means: columns tokens and loss. The
// numbers behind a picture go to stdout as a table. OUT.svg appears when it is complete, or not
// at all.
//
// Colours are those of Okabe and Ito (2008), which readers with any colour vision can tell apart,
// a little lighter on dark pages; a dash pattern tells the same once more. A method keeps its
// colour from picture to picture; encodings have the colour of their family and a dash pattern of
// their own in it. Lines carry their names at their ends, so there is no legend.

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SERIES = 32, MAX_POINTS = 4096, MAX_SIDE = 16, ROW = 16,
       PICTURE_WIDTH = 900 };
enum { FAILED = 1, USAGE = 2 };

static FILE *out; // the picture
static char *out_tmp;

// One line on stderr; nothing half-written stays behind.
static _Noreturn __attribute__((format(printf, 3, 4))) void die(int code, const char *what,
                                                                const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "plot: %s: ", what);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    if (out) {
        fclose(out);
        remove(out_tmp);
    }
    exit(code);
}

static void *xrealloc(void *p, size_t n)
{
    p = realloc(p, n);
    if (!p) die(FAILED, "memory", "no more (got %zu bytes to get)", n);
    return p;
}

// --- tables -------------------------------------------------------------------------------------

// Some columns of a TSV file, all of them numbers.
typedef struct {
    double *cell; // [rows][cols]
    size_t rows, cols;
} Table;

enum { MAX_COLUMNS = 32 };

// Cuts a line at its tabs, in place; returns how many fields it had.
static size_t split_line(char *line, char *field[MAX_COLUMNS])
{
    size_t n = 0;
    line[strcspn(line, "\r\n")] = 0;
    for (char *next = line; next && n < MAX_COLUMNS; n++) {
        field[n] = next;
        next = strchr(next, '\t');
        if (next) *next++ = 0;
    }
    return n;
}

static double parse_field(const char *path, size_t line, const char *s)
{
    char *end;
    double v = strtod(s, &end);
    if (end == s || *end || !(fabs(v) <= 1e12))
        die(FAILED, path, "line %zu (got '%.20s', want a number)", line, s);
    return v;
}

// Reads the columns called name[cols] of a TSV file whose first line names its columns.
static Table read_table(const char *path, const char *const *name, size_t cols)
{
    Table t = {.cols = cols};
    char line[4096], *field[MAX_COLUMNS];
    size_t at[MAX_COLUMNS], n_fields = 0, room = 0, n;
    FILE *f = fopen(path, "r");
    if (!f) die(FAILED, path, "cannot read (%s)", strerror(errno));
    for (size_t number = 1; fgets(line, sizeof line, f); number++) {
        if (!strchr(line, '\n')) die(FAILED, path, "line %zu is cut short or too long", number);
        n = split_line(line, field);
        if (number == 1) n_fields = n;
        if (n != n_fields)
            die(FAILED, path, "line %zu (got %zu fields, want %zu)", number, n, n_fields);
        if (t.rows == room) t.cell = xrealloc(t.cell, (room = 2 * room + 64) * cols * 8);
        for (size_t c = 0; c < cols; c++) {
            if (number > 1) t.cell[t.rows * cols + c] = parse_field(path, number, field[at[c]]);
            else for (at[c] = 0; strcmp(field[at[c]], name[c]);)
                if (++at[c] == n) die(FAILED, path, "has no column '%s'", name[c]);
        }
        t.rows += number > 1;
    }
    if (ferror(f)) die(FAILED, path, "cannot read (%s)", strerror(errno));
    fclose(f);
    if (!t.rows) die(FAILED, path, "has no rows");
    return t;
}

// --- SVG ----------------------------------------------------------------------------------------

static void emit(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void emit(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(out, fmt, ap);
    va_end(ap);
}

static void emit_escaped(const char *s, size_t n)
{
    for (; n && *s; s++, n--) {
        if (*s == '&') emit("&amp;");
        else if (*s == '<') emit("&lt;");
        else if (*s == '>') emit("&gt;");
        else fputc(*s, out);
    }
}

// anchor: start, middle or end.
static void emit_text(double x, double y, const char *class, const char *anchor, const char *s)
{
    emit("<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\">", x, y, class, anchor);
    emit_escaped(s, strlen(s));
    emit("</text>\n");
}

static void emit_line(double x1, double y1, double x2, double y2, const char *class)
{
    emit("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n", x1, y1, x2, y2,
         class);
}

static const char *const light[] = {"#24292f", "#0072b2", "#d55e00", "#009e73",
                                    "#cc79a7", "#e69f00", "#56b4e9", "#8f8000"};
static const char *const dark[] = {"#e6edf3", "#3d9fe0", "#ff7a2e", "#1fbf8f",
                                   "#e59cc6", "#ffc04d", "#a5dcff", "#f0e442"};
static const char *const dashes[] = {"none", "none",     "8 4",  "none",
                                     "2 4",  "10 3 2 3", "none", "5 3"};
enum { SOLID = 0, LONG = 2, DOTS = 4, DASH_DOT = 5, SHORT = 7 }; // of dashes
enum { COLOURS = sizeof light / sizeof *light, SHADES = 11 };

// Shade k of a ramp in one hue, from the colour of no answer to that of every answer.
static void emit_shades(const int from[3], const int to[3], const char *const ink[2])
{
    for (int k = 0; k < SHADES; k++) {
        int c[3];
        for (int i = 0; i < 3; i++) c[i] = from[i] + (to[i] - from[i]) * k / (SHADES - 1);
        emit(".q%d{fill:#%02x%02x%02x}.n%d{fill:%s}", k, c[0], c[1], c[2], k, ink[k > 5]);
    }
}

static void emit_colours(const char *const *colour)
{
    for (int i = 0; i < COLOURS; i++)
        emit(".s%d{stroke:%s}.f%d{fill:%s}", i, colour[i], i, colour[i]);
}

// Opens the picture and writes its style, title and second line.
static void begin_picture(const char *path, double width, double height, const char *title)
{
    size_t first = strcspn(title, "\n");
    out_tmp = xrealloc(NULL, strlen(path) + 5);
    sprintf(out_tmp, "%s.tmp", path);
    if (!(out = fopen(out_tmp, "w"))) die(FAILED, path, "cannot write (%s)", strerror(errno));
    emit("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" role=\"img\">\n"
         "<title>", width, height);
    emit_escaped(title, first);
    emit("</title>\n<style>\ntext{font:13px -apple-system,'Segoe UI',Helvetica,Arial,sans-serif;"
         "fill:#24292f}\n.title{font-size:18px;font-weight:600}.name{font-weight:600}"
         ".small{font-size:11px}\n.dim{fill:#59636e}.grid,.axis,.mark,.line,.lead{fill:none}\n"
         ".grid{stroke:#d8dee4}.axis{stroke:#8c959f}.mark{stroke:#59636e;stroke-dasharray:4 3}\n"
         ".line{stroke-width:2.2;stroke-linejoin:round}.lead{stroke-width:1.2}\n");
    for (int i = 0; i < COLOURS; i++) emit(".d%d{stroke-dasharray:%s}", i, dashes[i]);
    emit_colours(light);
    emit_shades((int[]){234, 240, 246}, (int[]){5, 64, 125}, (const char *[]){"#24292f", "#fff"});
    emit("\n@media(prefers-color-scheme:dark){\ntext{fill:#e6edf3}.dim{fill:#9198a1}"
         ".grid{stroke:#30363d}.axis{stroke:#6e7681}.mark{stroke:#9198a1}\n");
    emit_colours(dark);
    emit_shades((int[]){28, 40, 56}, (int[]){155, 208, 255},
                (const char *[]){"#e6edf3", "#0d1117"});
    emit("}\n</style>\n<text x=\"16\" y=\"28\" class=\"title\">");
    emit_escaped(title, first);
    emit("</text>\n");
    if (title[first]) emit_text(16, 50, "dim", "start", title + first + 1);
}

static void end_picture(const char *path)
{
    emit("</svg>\n");
    int bad = ferror(out), closed = fclose(out);
    out = NULL;
    int err = bad || closed || rename(out_tmp, path) ? errno ? errno : EIO : 0;
    if (err) remove(out_tmp);
    free(out_tmp);
    if (err) die(FAILED, path, "cannot write (%s)", strerror(err));
}

// --- frames and labels --------------------------------------------------------------------------

// A rectangle of the picture, in its units, and what it shows: [x_lo, x_hi] and [y_lo, y_hi], the
// logarithms of what is drawn where the axis is logarithmic.
typedef struct {
    double left, top, width, height, x_lo, x_hi, y_lo, y_hi;
} Frame;

static double x_of(const Frame *f, double x)
{
    return f->left + f->width * (x - f->x_lo) / (f->x_hi - f->x_lo);
}

static double y_of(const Frame *f, double y)
{
    return f->top + f->height * (f->y_hi - y) / (f->y_hi - f->y_lo);
}

// A number as people write it: 4,096.
static const char *with_commas(double v)
{
    static char text[32];
    char plain[32];
    int n = snprintf(plain, sizeof plain, "%.0f", v), k = 0;
    for (int i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0) text[k++] = ',';
        text[k++] = plain[i];
    }
    text[k] = 0;
    return text;
}

// drop: how far below the frame the horizontal axis has its title.
static void draw_axes(const Frame *f, const char *x_title, double drop, const char *y_title)
{
    double middle = f->top + f->height / 2;
    emit("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"axis\"/>\n", f->left,
         f->top, f->width, f->height);
    emit_text(f->left + f->width / 2, f->top + f->height + drop, "dim", "middle", x_title);
    emit("<g transform=\"rotate(-90 20 %.1f)\">", middle);
    emit_text(20, middle, "dim", "middle", y_title);
    emit("</g>\n");
}

// A line of the picture: points in the frame's units, and its name.
typedef struct {
    char label[128];
    const char *path;
    int colour, dash;
    Table table;
    double x[MAX_POINTS], y[MAX_POINTS];
    size_t n;
    double place, wanted; // of its label
} Series;

static int by_wanted(const void *a, const void *b)
{
    const Series *const *x = a, *const *y = b;
    return ((*x)->wanted > (*y)->wanted) - ((*x)->wanted < (*y)->wanted);
}

// Places labels as near to where they are wanted as they can be, ROW apart, from lo to hi: labels
// that would touch move as one block, centred on what its members want. s [n]: by `wanted`.
static void spread_labels(Series **s, size_t n, double lo, double hi)
{
    struct { double sum; size_t n; } block[MAX_SERIES];
    size_t blocks = 0, at = 0;
    for (size_t i = 0; i < n; i++) {
        block[blocks].sum = s[i]->wanted;
        block[blocks++].n = 1;
        while (blocks > 1) {
            size_t b = blocks - 1, a = b - 1;
            double below = block[b].sum / (double)block[b].n - ROW * (double)(block[b].n - 1) / 2;
            double above = block[a].sum / (double)block[a].n + ROW * (double)(block[a].n - 1) / 2;
            if (above + ROW <= below) break;
            block[a].sum += block[b].sum;
            block[a].n += block[b].n;
            blocks--;
        }
    }
    for (size_t b = 0; b < blocks; b++)
        for (size_t k = 0; k < block[b].n; k++)
            s[at++]->place = block[b].sum / (double)block[b].n +
                             ROW * ((double)k - (double)(block[b].n - 1) / 2);
    for (size_t i = 0; i < n; i++) // within the frame, from both sides
        s[i]->place = fmax(s[i]->place, i ? s[i - 1]->place + ROW : lo);
    for (size_t i = n; i-- > 0;)
        s[i]->place = fmin(s[i]->place, i + 1 < n ? s[i + 1]->place - ROW : hi);
}

// Names at the ends of the lines s [n], with a thin line from each to its name.
static void draw_labels(const Frame *f, Series **s, size_t n)
{
    double right = f->left + f->width;
    for (size_t i = 0; i < n; i++) s[i]->wanted = y_of(f, s[i]->y[s[i]->n - 1]);
    qsort(s, n, sizeof *s, by_wanted);
    spread_labels(s, n, f->top + 4, f->top + f->height - 4);
    for (size_t i = 0; i < n; i++) {
        double x = x_of(f, s[i]->x[s[i]->n - 1]);
        emit("<path d=\"M%.1f %.1fL%.1f %.1fL%.1f %.1fh6\" class=\"lead s%d\"/>\n", x, s[i]->wanted,
             fmax(x, right) + 4, s[i]->wanted, right + 20, s[i]->place, s[i]->colour);
        emit_text(right + 31, s[i]->place + 4.5, "", "start", s[i]->label);
    }
}

static void draw_line(const Frame *f, const Series *s)
{
    emit("<path d=\"");
    for (size_t i = 0; i < s->n; i++)
        emit("%c%.1f %.1f", i ? 'L' : 'M', x_of(f, s->x[i]), y_of(f, s->y[i]));
    emit("\" class=\"line s%d d%d\"/>\n", s->colour, s->dash);
}

// --- loss ---------------------------------------------------------------------------------------

enum { PER_OCTAVE = 3, OCTAVES_BELOW = 3 };

// Reads each line's losses. gain: what is drawn is the loss above that of the first line, token
// by token, so that the text's own ups and downs cancel.
static void read_losses(Series *const *s, size_t n, int gain)
{
    static const char *const names[] = {"window", "position", "nll"};
    for (size_t i = 0; i < n; i++) s[i]->table = read_table(s[i]->path, names, 3);
    const Table *first = &s[0]->table;
    for (size_t i = n; gain && i-- > 0;) {
        Table *t = &s[i]->table;
        int same = t->rows == first->rows;
        for (size_t k = 0; same && k < 3 * t->rows; k += 3) {
            same = t->cell[k] == first->cell[k] && t->cell[k + 1] == first->cell[k + 1];
            t->cell[k + 2] -= first->cell[k + 2];
        }
        if (!same) die(FAILED, s[i]->path, "other positions than in %s", s[0]->path);
    }
}

// Means of the loss over positions: buckets of a third of an octave, from L/8 on. A position is the
// number of tokens that the prediction could see.
static void bucket_losses(Series *s, double trained)
{
    static double sum[MAX_POINTS], log_sum[MAX_POINTS], count[MAX_POINTS];
    memset(sum, 0, sizeof sum), memset(log_sum, 0, sizeof sum), memset(count, 0, sizeof sum);
    for (size_t i = 0; i < s->table.rows; i++) {
        const double *row = s->table.cell + 3 * i;
        double octave = log2((row[1] + 1) / trained) + OCTAVES_BELOW;
        if (!(octave >= 0)) continue;
        size_t b = (size_t)(octave * PER_OCTAVE + 1e-9);
        if (b >= MAX_POINTS) continue;
        sum[b] += row[2];
        log_sum[b] += octave - OCTAVES_BELOW;
        count[b]++;
    }
    for (size_t b = 0; b < MAX_POINTS; b++) {
        if (!(count[b] > 0)) continue;
        s->x[s->n] = log_sum[b] / count[b];
        s->y[s->n++] = sum[b] / count[b];
    }
    if (!s->n) die(FAILED, s->path, "no position of %.0f or more", trained / 8);
}

// Mean loss where lo <= tokens seen < hi; NAN if there is none.
static double mean_loss(const Series *s, double lo, double hi, double window)
{
    double sum = 0, n = 0;
    for (size_t i = 0; i < s->table.rows; i++) {
        const double *row = s->table.cell + 3 * i;
        if (row[1] + 1 < lo || row[1] + 1 >= hi || (window >= 0 && row[0] != window)) continue;
        sum += row[2];
        n++;
    }
    return n > 0 ? sum / n : NAN;
}

// One field of a table; "-" if there is nothing to say.
static void print_field(double v)
{
    isnan(v) ? printf("\t-") : printf("\t%.3f", round(1e3 * v) / 1e3 + 0.0); // no -0
}

// The table behind the picture; the standard error is over windows, of the last column.
static void print_losses(Series *const *s, size_t n, double trained)
{
    double last = 0;
    for (size_t i = 0; i < n; i++) // the last window may have been interrupted
        for (size_t k = 0; k < s[i]->table.rows; k++)
            last = fmax(last, s[i]->table.cell[3 * k + 1] + 1);
    printf("method");
    for (double lo = trained / 2; lo < last; lo *= 2)
        printf("\t%.0f-%.0f", lo, fmin(2 * lo - 1, last));
    printf("\tstandard error\n");
    for (size_t i = 0; i < n; i++) {
        double lo = trained / 2, sum = 0, squares = 0, k = 0, m;
        printf("%s", s[i]->label);
        for (; lo < last; lo *= 2) print_field(mean_loss(s[i], lo, 2 * lo, -1));
        for (; !isnan(m = mean_loss(s[i], lo / 2, lo, k)); k++) sum += m, squares += m * m;
        print_field(k > 1 ? sqrt(fmax(0, squares / k - sum * sum / k / k) / (k - 1)) : NAN);
        printf("\n");
    }
}

static void draw_loss_axes(const Frame *f, double trained, const char *x_title,
                           const char *y_title)
{
    static const double steps[] = {0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1};
    char text[64];
    int i = 0;
    while (i < 6 && (f->y_hi - f->y_lo) / steps[i] > 9) i++;
    for (double k = ceil(f->y_lo / steps[i]); k * steps[i] <= f->y_hi; k++) {
        double y = y_of(f, k * steps[i]);
        emit_line(f->left, y, f->left + f->width, y, "grid");
        snprintf(text, sizeof text, i < 3 ? "%.2f" : "%.1f", k * steps[i] + 0.0); // no -0
        emit_text(f->left - 8, y + 4.5, "", "end", text);
    }
    for (double x = f->x_lo; x <= f->x_hi; x++) {
        double at = x_of(f, x), base = f->top + f->height;
        emit_line(at, base, at, base + 5, "axis");
        emit_text(at, base + 20, "", "middle", with_commas(trained * exp2(x)));
        snprintf(text, sizeof text, "%g\u00d7", exp2(x));
        emit_text(at, base + 35, "dim small", "middle", text);
    }
    emit_line(x_of(f, 0), f->top - 6, x_of(f, 0), f->top + f->height, "mark");
    snprintf(text, sizeof text, "trained: %s", with_commas(trained));
    int edge = x_of(f, 0) - f->left < 100;
    emit_text(x_of(f, 0) + (edge ? -2 : 2), f->top - 12, "dim", edge ? "start" : "end", text);
    draw_axes(f, x_title, 58, y_title);
}

enum { MAX_EXITS = 3 }; // lines that may leave at the top: more names have no room there

// The range shown: of all lines that end below `cap`, and not above it; `least` nats at least. The
// cap is raised until no more than MAX_EXITS lines end above it.
static void set_loss_range(Frame *f, Series *const *s, size_t n, double cap, double least)
{
    double low = HUGE_VAL, high = -HUGE_VAL, next = cap;
    for (size_t above = n; above > MAX_EXITS; cap = next) {
        above = 0, next = HUGE_VAL;
        for (size_t i = 0; i < n; i++) {
            double end = s[i]->y[s[i]->n - 1];
            if (end <= cap) continue;
            next = fmin(next, end);
            above++;
        }
        if (above <= MAX_EXITS) break;
    }
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < s[i]->n; k++) {
            low = fmin(low, s[i]->y[k]);
            if (s[i]->y[s[i]->n - 1] <= cap) high = fmax(high, s[i]->y[k]);
            f->x_hi = fmax(f->x_hi, ceil(s[i]->x[k]));
        }
    high = fmax(fmin(high, cap), low + least);
    f->y_lo = low - 0.05 * (high - low);
    f->y_hi = high + 0.05 * (high - low);
}

// Where in the picture a line leaves at the top for good; NAN if it ends in sight.
static double leaves_at(const Frame *f, const Series *s)
{
    size_t i = s->n;
    while (i > 0 && s->y[i - 1] > f->y_hi) i--;
    if (i == s->n) return NAN;
    if (!i) return x_of(f, s->x[0]);
    double share = (f->y_hi - s->y[i - 1]) / (s->y[i] - s->y[i - 1]);
    return x_of(f, s->x[i - 1] + share * (s->x[i] - s->x[i - 1]));
}

static double text_width(const char *s) { return 7.0 * (double)strlen(s) + 14; } // about

// An arrow where a line leaves, its name and where it ends, in the lowest row with room. Called
// from the right to the left; room [MAX_EXITS]: where what is in a row, or crosses it, begins.
static void draw_exit(const Frame *f, const Series *s, double x, double room[MAX_EXITS])
{
    char text[192];
    snprintf(text, sizeof text, "%s: %.1f at the end", s->label, s->y[s->n - 1]);
    double width = text_width(text), mark = x_of(f, 0) + (x_of(f, 0) - f->left < 100 ? 100 : 0);
    int row = 0, before = x + width > PICTURE_WIDTH; // the name, if it does not fit behind
    while (row < MAX_EXITS - 1 && ((before ? x : x + width) > room[row] || (!row && x < mark)))
        row++;
    for (int k = 0; k <= row; k++) room[k] = x - 8;
    if (before) room[row] = x - width;
    double y = f->top - 16 - ROW * row;
    emit("<path d=\"M%.1f %.1fV%.1f\" class=\"lead s%d\"/>"
         "<path d=\"M%.1f %.1fl-5 8h10z\" class=\"f%d\"/>\n",
         x, f->top, y + 2, s->colour, x, y - 6, s->colour);
    emit_text(before ? x - 9 : x + 9, y + 3, "", before ? "end" : "start", text);
}

// A line that ends before the others do: its name stands below its end, at the bottom of the frame.
static void draw_stop(const Frame *f, const Series *s, int row)
{
    double x = x_of(f, s->x[s->n - 1]), y = y_of(f, s->y[s->n - 1]);
    double bottom = f->top + f->height - 10 - ROW * row;
    char text[192];
    snprintf(text, sizeof text, "%s ends", s->label);
    int before = x + text_width(text) > f->left + f->width;
    emit("<path d=\"M%.1f %.1fV%.1fh%d\" class=\"lead s%d\"/><circle cx=\"%.1f\" cy=\"%.1f\" "
         "r=\"3.5\" class=\"f%d\"/>\n", x, y, bottom, before ? -6 : 6, s->colour, x, y, s->colour);
    emit_text(x + (before ? -10 : 10), bottom + 4.5, "", before ? "end" : "start", text);
}

static int stops(const Frame *f, const Series *s) { return s->x[s->n - 1] < f->x_hi - 0.75; }

// The lines s [n] in a frame of its own, loss against the logarithm of a length. What ends above
// `cap` may leave at the top.
static void draw_curves(const char *path, double trained, const char *title, const char *x_title,
                        const char *y_title, Series **s, size_t n, double cap, double least)
{
    Frame f = {66, 112, 624, 380, 0, 0, 0, 0};
    Series *ends[MAX_SERIES], *exits[MAX_SERIES];
    size_t n_ends = 0, n_exits = 0;
    int n_stops = 0;
    for (size_t i = 0; i < n; i++) {
        f.x_lo = fmin(f.x_lo, floor(s[i]->x[0]));
        f.width = fmin(f.width, PICTURE_WIDTH - f.left - 35 - 7.3 * (double)strlen(s[i]->label));
    }
    set_loss_range(&f, s, n, cap, least);
    if (f.x_hi == f.x_lo) f.x_hi++; // one length alone
    for (size_t i = 0; i < n; i++) {
        s[i]->wanted = leaves_at(&f, s[i]);
        if (!isnan(s[i]->wanted)) exits[n_exits++] = s[i];
        else n_stops += stops(&f, s[i]);
    }
    if (n_exits < 2) f.top -= 20, f.height += 20; // hardly any labels above the frame
    f.y_lo -= ROW * n_stops * (f.y_hi - f.y_lo) / (f.height - ROW * n_stops);
    begin_picture(path, PICTURE_WIDTH, 564, title);
    draw_loss_axes(&f, trained, x_title, y_title);
    emit("<clipPath id=\"frame\"><rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>"
         "</clipPath>\n<g clip-path=\"url(#frame)\">\n", f.left, f.top, f.width, f.height);
    for (size_t i = n; i-- > 0;) draw_line(&f, s[i]);
    emit("</g>\n");
    double room[MAX_EXITS];
    for (int k = 0; k < MAX_EXITS; k++) room[k] = PICTURE_WIDTH;
    qsort(exits, n_exits, sizeof *exits, by_wanted);
    for (size_t i = n_exits; i-- > 0;) draw_exit(&f, exits[i], exits[i]->wanted, room);
    for (size_t i = 0; i < n; i++) {
        if (!isnan(s[i]->wanted)) continue;
        if (stops(&f, s[i])) draw_stop(&f, s[i], --n_stops);
        else ends[n_ends++] = s[i];
    }
    draw_labels(&f, ends, n_ends);
    end_picture(path);
}

static void draw_loss(const char *path, double trained, const char *title, Series **s, size_t n,
                      int gain)
{
    char y_title[192] = "loss (nats a token)";
    if (gain)
        snprintf(y_title, sizeof y_title, "loss above that of %s (nats a token)", s[0]->label);
    read_losses(s, n, gain);
    for (size_t i = 0; i < n; i++) bucket_losses(s[i], trained);
    double level = mean_loss(s[0], trained / 2, trained, -1);
    if (isnan(level)) die(FAILED, s[0]->path, "no positions below %.0f", trained);
    draw_curves(path, trained, title,
                "position: tokens seen (small: as a multiple of the trained context)", y_title, s,
                n, level + (gain ? 0.3 : 1.5), gain ? 0.01 : 0.6);
    print_losses(s, n, trained);
}

// Means that were worked out already, one for each length.
static void read_means(Series *s, double trained)
{
    static const char *const names[] = {"tokens", "loss"};
    Table t = read_table(s->path, names, 2);
    if (t.rows > MAX_POINTS) die(FAILED, s->path, "more than %d lengths", MAX_POINTS);
    for (; s->n < t.rows; s->n++) {
        const double *row = t.cell + 2 * s->n;
        if (!(row[0] >= 1)) die(FAILED, s->path, "a length is below 1");
        if (s->n && !(row[0] > row[-2])) die(FAILED, s->path, "lengths do not rise");
        s->x[s->n] = log2(row[0] / trained);
        s->y[s->n] = row[1];
    }
    s->table = t;
}

// The least length above `at` that any of the lines has; HUGE_VAL: none.
static double next_length(Series *const *s, size_t n, double at)
{
    double next = HUGE_VAL;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < s[i]->n; k++) {
            double length = s[i]->table.cell[2 * k];
            if (length > at) next = fmin(next, length);
        }
    return next;
}

static void draw_means(const char *path, double trained, const char *title, Series **s, size_t n)
{
    double lowest = HUGE_VAL;
    for (size_t i = 0; i < n; i++) {
        read_means(s[i], trained);
        lowest = fmin(lowest, s[i]->y[0]);
    }
    draw_curves(path, trained, title,
                "window (tokens; small: as a multiple of the trained context)",
                "loss (nats a token)", s, n, lowest + 1.5, 0.6);
    printf("method");
    for (double at = 0; (at = next_length(s, n, at)) < HUGE_VAL;) printf("\t%.0f", at);
    for (size_t i = 0; i < n; i++) {
        size_t k = 0; // lines may lack lengths that others have
        printf("\n%s", s[i]->label);
        for (double at = 0; (at = next_length(s, n, at)) < HUGE_VAL;)
            print_field(k < s[i]->n && s[i]->table.cell[2 * k] == at ? s[i]->y[k++] : NAN);
    }
    printf("\n");
}

// --- grid ---------------------------------------------------------------------------------------

typedef struct {
    double lengths[MAX_SIDE], depths[MAX_SIDE];
    size_t n_lengths, n_depths;
    double right[MAX_SIDE][MAX_SIDE], asked[MAX_SIDE][MAX_SIDE]; // [length][depth]
} Grid;

// The index of v in list, which grows if v is new.
static size_t index_of(const char *path, double *list, size_t *n, double v)
{
    for (size_t i = 0; i < *n; i++)
        if (list[i] == v) return i;
    if (*n == MAX_SIDE) die(FAILED, path, "more than %d lengths or depths", MAX_SIDE);
    list[*n] = v;
    return (*n)++;
}

static Grid count_answers(const char *path)
{
    static const char *const names[] = {"length", "depth", "right"};
    Table t = read_table(path, names, 3);
    Grid g = {0};
    for (size_t i = 0; i < t.rows; i++) {
        const double *row = t.cell + 3 * i;
        size_t l = index_of(path, g.lengths, &g.n_lengths, row[0]);
        size_t d = index_of(path, g.depths, &g.n_depths, row[1]);
        if (row[2] != 0 && row[2] != 1) die(FAILED, path, "right is neither 0 nor 1");
        g.right[l][d] += row[2];
        g.asked[l][d]++;
    }
    free(t.cell);
    return g;
}

// Per cent right over all depths, of lengths from lo on and below hi; NAN if there are none.
static double share_right(const Grid *g, double lo, double hi)
{
    double right = 0, asked = 0;
    for (size_t l = 0; l < g->n_lengths; l++)
        for (size_t d = 0; d < g->n_depths && g->lengths[l] >= lo && g->lengths[l] < hi; d++)
            right += g->right[l][d], asked += g->asked[l][d];
    return asked > 0 ? 100 * right / asked : NAN;
}

// A map's shares at the lengths of all maps, some of which it may lack.
static void print_grid(const Grid *g, const char *label, const Grid *all)
{
    printf("%s", label);
    for (size_t l = 0; l < all->n_lengths; l++) {
        double share = share_right(g, all->lengths[l], all->lengths[l] + 1);
        isnan(share) ? printf("\t-") : printf("\t%.0f", share);
    }
    printf("\n");
}

static void draw_cell(const Grid *g, size_t l, size_t d, double x, double y, double w, double h)
{
    char text[16];
    if (!(g->asked[l][d] > 0)) return;
    double share = g->right[l][d] / g->asked[l][d];
    int shade = (int)lround(share * (SHADES - 1));
    emit("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"2\" class=\"q%d\"/>", x,
         y, w - 2, h - 2, shade);
    snprintf(text, sizeof text, "small n%d", shade);
    emit("<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"middle\">%.0f</text>\n",
         x + w / 2 - 1, y + h / 2 + 3, text, 100 * share);
}

enum { GAP = 8 }; // between lengths up to the trained one and past it

// One method's map; x, y: the upper left corner of its cells. first: it is in the left column.
static void draw_map(const Grid *g, const char *label, double trained, double x, double y, double w,
                     double h, int first)
{
    char text[32];
    double past = share_right(g, trained + 1, HUGE_VAL), bottom = y + h * (double)g->n_depths;
    emit_text(x, y - 22, "name", "start", label);
    if (!isnan(past)) {
        snprintf(text, sizeof text, "past %s: %.0f%%", with_commas(trained), past);
        emit_text(x, y - 8, "dim small", "start", text);
    }
    for (size_t l = 0; l < g->n_lengths; l++) {
        int outside = g->lengths[l] > trained;
        double at = x + w * (double)l + (outside ? GAP : 0);
        if (outside && l && g->lengths[l - 1] <= trained)
            emit_line(at - GAP / 2.0 - 1, y - 3, at - GAP / 2.0 - 1, bottom + 1, "mark");
        for (size_t d = 0; d < g->n_depths; d++)
            draw_cell(g, l, d, at, y + h * (double)d, w, h);
        emit_text(at + w / 2 - 1, bottom + 12, "dim small", "middle", with_commas(g->lengths[l]));
    }
    for (size_t d = 0; d < g->n_depths && first; d++) {
        snprintf(text, sizeof text, "%.0f%%", 100 * g->depths[d]);
        emit_text(x - 8, y + h * ((double)d + 0.5) + 3, "dim small", "end", text);
    }
}

static void draw_grid(const char *path, double trained, const char *title, Series **s, size_t n)
{
    enum { ACROSS = 4 };
    static Grid g[MAX_SERIES], all;
    size_t down = (n + ACROSS - 1) / ACROSS, lengths = 1;
    for (size_t i = 0; i < n; i++) {
        g[i] = count_answers(s[i]->path);
        if (g[i].n_lengths > lengths) lengths = g[i].n_lengths;
        for (size_t l = 0; l < g[i].n_lengths; l++)
            index_of(s[i]->path, all.lengths, &all.n_lengths, g[i].lengths[l]);
        // The left map of a row names the depths of all.
        if (g[i].n_depths != g->n_depths || memcmp(g[i].depths, g->depths, g->n_depths * 8))
            die(FAILED, s[i]->path, "other depths than in %s", s[0]->path);
    }
    double w = (186 - GAP) / (double)lengths, h = 24, pitch = h * (double)g->n_depths + 66;
    double height = 100 + pitch * (double)down - 10;
    begin_picture(path, PICTURE_WIDTH, height, title);
    emit("<g transform=\"rotate(-90 20 %.1f)\">", 100 + pitch * (double)down / 2 - 30);
    emit_text(20, 100 + pitch * (double)down / 2 - 30, "dim", "middle",
              height > 460 ? "depth of the key in the text (0%: at its beginning)" : "depth of key");
    emit("</g>\n");
    emit_text(480, height - 12, "dim", "middle", "length of the text (tokens)");
    printf("method");
    for (size_t l = 0; l < all.n_lengths; l++) printf("\t%.0f", all.lengths[l]);
    printf("\n");
    for (size_t i = 0; i < n; i++) {
        draw_map(&g[i], s[i]->label, trained, 74 + 206 * (double)(i % ACROSS),
                 100 + pitch * (double)(i / ACROSS), w, h, i % ACROSS == 0);
        print_grid(&g[i], s[i]->label, &all);
    }
    end_picture(path);
}

// --- waves --------------------------------------------------------------------------------------

static void read_waves(Series *s)
{
    static const char *const names[] = {"pair", "scaled"};
    Table t = read_table(s->path, names, 2);
    if (t.rows > MAX_POINTS) die(FAILED, s->path, "more than %d pairs", MAX_POINTS);
    for (; s->n < t.rows; s->n++) {
        s->x[s->n] = t.cell[2 * s->n];
        if (!(t.cell[2 * s->n + 1] > 0)) die(FAILED, s->path, "a wavelength is not above 0");
        s->y[s->n] = log10(t.cell[2 * s->n + 1]);
    }
    free(t.cell);
}

static int same_line(const Series *a, const Series *b)
{
    if (a->n != b->n) return 0;
    for (size_t i = 0; i < a->n; i++)
        if (fabs(a->y[i] - b->y[i]) > 1e-3 || a->x[i] != b->x[i]) return 0;
    return 1;
}

// Methods with the same wavelengths share a line and its label; returns how many are left.
static size_t merge_lines(Series **s, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        size_t k = 0;
        while (k < kept && !same_line(s[k], s[i])) k++;
        if (k == kept) s[kept++] = s[i];
        else snprintf(s[k]->label + strlen(s[k]->label), sizeof s[k]->label - strlen(s[k]->label),
                      ", %s", s[i]->label);
    }
    return kept;
}

static void draw_length(const Frame *f, double length, const char *what)
{
    char text[64];
    double y = y_of(f, log10(length));
    if (!(length > 0) || y < f->top || y > f->top + f->height) return;
    emit_line(f->left, y, f->left + f->width, y, "mark");
    snprintf(text, sizeof text, "%s: %s", what, with_commas(length));
    emit_text(f->left + 8, y - 6, "dim", "start", text);
}

static void draw_wave_axes(const Frame *f)
{
    double base = f->top + f->height, step = f->x_hi - f->x_lo > 40 ? 8 : f->x_hi > 20 ? 4 : 1;
    char text[32];
    for (double y = ceil(f->y_lo); y <= f->y_hi; y++) {
        emit_line(f->left, y_of(f, y), f->left + f->width, y_of(f, y), "grid");
        emit_text(f->left - 8, y_of(f, y) + 4.5, "", "end", with_commas(pow(10, y)));
    }
    for (double x = 0; x <= f->x_hi; x += step) {
        snprintf(text, sizeof text, "%.0f", x);
        emit_line(x_of(f, x), base, x_of(f, x), base + 5, "axis");
        emit_text(x_of(f, x), base + 20, "", "middle", text);
    }
    draw_axes(f, "pair of dimensions, from the fastest to the slowest", 42,
              "wavelength (tokens a turn)");
}

static void print_waves(Series *const *s, size_t n)
{
    printf("pair");
    for (size_t i = 0; i < n; i++) printf("\t%s", s[i]->label);
    for (size_t k = 0; k < s[0]->n; k++) {
        printf("\n%.0f", s[0]->x[k]);
        for (size_t i = 0; i < n; i++)
            k < s[i]->n ? printf("\t%.1f", pow(10, s[i]->y[k])) : printf("\t");
    }
    printf("\n");
}

static void draw_waves(const char *path, double trained, double target, const char *title,
                       Series **s, size_t n)
{
    Frame f = {82, 74, 618, 420, 0, 0, 1e9, -1e9};
    for (size_t i = 0; i < n; i++) read_waves(s[i]);
    n = merge_lines(s, n);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < s[i]->n; k++) {
            f.x_hi = fmax(f.x_hi, s[i]->x[k] + 0.5);
            f.y_lo = fmin(f.y_lo, floor(s[i]->y[k] * 2) / 2);
            f.y_hi = fmax(f.y_hi, ceil(s[i]->y[k] * 2) / 2);
        }
    f.x_lo = -0.5;
    begin_picture(path, PICTURE_WIDTH, 550, title);
    draw_wave_axes(&f);
    draw_length(&f, trained, "trained context");
    draw_length(&f, target, "length asked for");
    for (size_t i = n; i-- > 0;) {
        draw_line(&f, s[i]);
        for (size_t k = 0; k < s[i]->n; k++)
            emit("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" class=\"f%d\"/>", x_of(&f, s[i]->x[k]),
                 y_of(&f, s[i]->y[k]), s[i]->colour);
        emit("\n");
    }
    print_waves(s, n);
    draw_labels(&f, s, n); // sorts s
    end_picture(path);
}

// --- command line -------------------------------------------------------------------------------

// Methods and encodings, their colours and dashes, no two alike in one picture; `none` goes with
// any. A name goes for all labels that begin with it, the first one that fits.
static const struct {
    const char *name;
    int colour, dash;
} style_of[] = {
    {"none", 0, SOLID},    {"linear", 1, SOLID}, {"ntk", 2, LONG}, {"dynamic + log-n", 7, SHORT},
    {"dynamic", 3, SOLID}, {"yarn", 4, DOTS},    {"by-parts", 6, SOLID}, {"llama3", 5, DASH_DOT},
    // distances; holds.sh draws them together with the frequencies
    {"window 512", 7, DASH_DOT}, {"window", 5, SOLID}, {"rerope 256 + log-n", 6, SHORT},
    {"rerope + log-n", 6, SHORT}, {"rerope", 2, SOLID}, {"self-extend", 1, SHORT},
    {"leaky-rerope", 3, DOTS}, {"dual-chunk + log-n", 4, LONG}, {"dual-chunk", 4, SOLID},
    // without position; rotated; added to the embedding; added to the score
    {"nope", 0, SOLID},
    {"rope-randomized, drawn", 6, DOTS}, {"rope-randomized", 1, DOTS}, {"rope", 1, SOLID},
    {"xpos", 6, SOLID},
    {"sinusoidal", 2, SOLID}, {"shape", 2, SHORT}, {"learned-randomized, clamped", 5, DASH_DOT},
    {"learned-randomized, drawn", 4, DOTS}, {"learned-randomized", 5, DOTS},
    {"learned, clamped", 5, SHORT}, {"learned", 5, SOLID},
    {"alibi", 3, SOLID}, {"kerple", 3, SHORT}, {"fire", 3, DASH_DOT}, {"t5", 4, SOLID},
    {"shaw", 4, SHORT}, {"sandwich", 3, DOTS}, {"cape", 2, DASH_DOT}, {"drope", 0, SHORT},
};

// Text for the picture: printable ASCII, so that the XML is valid.
static void require_ascii(const char *s)
{
    for (; *s; s++)
        if (*s != '\n' && (*s < ' ' || *s > '~')) die(USAGE, s, "want printable ASCII");
}

static void set_style(Series *s, size_t otherwise)
{
    s->colour = s->dash = (int)(otherwise % COLOURS);
    for (size_t i = 0; i < sizeof style_of / sizeof *style_of; i++) {
        if (strncmp(s->label, style_of[i].name, strlen(style_of[i].name))) continue;
        s->colour = style_of[i].colour;
        s->dash = style_of[i].dash;
        return;
    }
}

static Series *parse_series(const char *arg, size_t i)
{
    const char *cut = strchr(arg, '=');
    Series *s = memset(xrealloc(NULL, sizeof *s), 0, sizeof *s);
    if (!cut || cut == arg || cut - arg > 60) die(USAGE, arg, "want label=file.tsv");
    memcpy(s->label, arg, (size_t)(cut - arg));
    require_ascii(s->label);
    s->path = cut + 1;
    set_style(s, i);
    return s;
}

int main(int argc, char **argv)
{
    static const char usage[] =
        "loss|gain|grid|waves|means OUT.svg TRAINED[:TARGET] TITLE label=file.tsv ...";
    Series *s[MAX_SERIES], *given[MAX_SERIES]; // drawing reorders s
    size_t n = argc > 5 ? (size_t)argc - 5 : 0;
    if (!n || n > MAX_SERIES) die(USAGE, "usage: plot", usage);
    size_t name = strlen(argv[2]);
    if (name < 5 || strcmp(argv[2] + name - 4, ".svg")) die(USAGE, argv[2], "want a name.svg");
    require_ascii(argv[4]);
    char *end;
    double trained = strtod(argv[3], &end), target = *end == ':' ? strtod(end + 1, &end) : 0;
    if (*end || !(trained >= 8 && trained <= 1e9) || !(target >= 0 && target <= 1e9))
        die(USAGE, argv[3], "want the trained context in tokens, as 512 or 512:4096");
    for (size_t i = 0; i < n; i++) given[i] = s[i] = parse_series(argv[5 + i], i);
    if (!strcmp(argv[1], "loss")) draw_loss(argv[2], trained, argv[4], s, n, 0);
    else if (!strcmp(argv[1], "gain")) draw_loss(argv[2], trained, argv[4], s, n, 1);
    else if (!strcmp(argv[1], "grid")) draw_grid(argv[2], trained, argv[4], s, n);
    else if (!strcmp(argv[1], "waves")) draw_waves(argv[2], trained, target, argv[4], s, n);
    else if (!strcmp(argv[1], "means")) draw_means(argv[2], trained, argv[4], s, n);
    else die(USAGE, argv[1], "no such picture (want loss, gain, grid, waves or means)");
    for (size_t i = 0; i < n; i++) {
        free(given[i]->table.cell);
        free(given[i]);
    }
    if (fflush(stdout) || ferror(stdout)) die(FAILED, "stdout", "cannot write");
    return 0;
}
