// bpe.c - train a byte-fallback BPE tokenizer and write it as llama2.c's tokenizer.bin.
//
//     cc -O2 -o bpe models/bpe.c -lm -lpthread
//     ./bpe -v 4096 -o tokenizer.bin FILE_OR_FOLDER...
//
// Byte pair encoding starts from single characters and repeatedly makes one new piece out of the
// two neighbours that occur together most often. What is learned is the order of these merges:
// the encoder, given new text, applies the earliest merge that fits, again and again. Here the
// order is stored as a score, -0, -1, -2, ..., and the encoder takes the highest.
//
// Ids:   0 <unk>   1 BOS   2 EOS   3..258 the 256 bytes   then characters, then merged pieces.
//
// Text is first cut into words, and no piece spans two words. The encoder knows nothing of words:
// it merges whatever neighbours join into a known piece. The two agree because the cut depends
// only on what a piece can look like: an optional leading space, then letters only or punctuation
// only. Two neighbouring words never join into such a string. Digits and newlines stand alone.
//
// Contents:  1 Strings and hashing   2 Words   3 Pairs   4 Merging   5 Writing   6 main
//
// [BPE] Sennrich, Haddow, Birch 2016, arXiv 1508.07909   [SPM] Kudo, Richardson 2018, 1808.06226
#define TESTING
#include "../run.c"
#include <dirent.h>

enum { N_SPECIAL = 3, FIRST_CHAR = 259, MAX_VOCAB = 65535, MAX_PIECE = 32, MAX_WORD = 400 };

// ================================================================================================
// 1  Strings and hashing
//
// One open-addressing table from byte strings to small integers serves for words and for pieces.

typedef struct {
    const char *text;
    uint32_t len;
    int32_t value;
} Entry;
typedef struct {
    Entry *slot;
    size_t n, capacity;
} Table;

// The slot that holds s[0..n), or the empty slot where it belongs.
static Entry *table_slot(Table *t, const char *s, size_t n)
{
    size_t i = hash_bytes(s, n) & (t->capacity - 1);
    while (t->slot[i].text && (t->slot[i].len != n || memcmp(t->slot[i].text, s, n)))
        i = (i + 1) & (t->capacity - 1);
    return &t->slot[i];
}

static void table_grow(Table *t)
{
    Table old = *t;
    t->capacity = old.capacity ? old.capacity * 2 : 1 << 16;
    t->slot = xcalloc(t->capacity, sizeof(Entry));
    for (size_t i = 0; i < old.capacity; i++)
        if (old.slot[i].text) *table_slot(t, old.slot[i].text, old.slot[i].len) = old.slot[i];
    free(old.slot);
}

// Finds s[0..n) or adds a copy of it with value -1. The pointer lasts until the next add.
static Entry *table_add(Table *t, const char *s, size_t n)
{
    if (t->n * 2 >= t->capacity) table_grow(t);
    Entry *e = table_slot(t, s, n);
    if (!e->text) {
        char *copy = xcalloc(n + 1, 1);
        memcpy(copy, s, n);
        *e = (Entry){copy, (uint32_t)n, -1};
        t->n++;
    }
    return e;
}

// The pieces: piece[id] in the order of their ids, and the way back from string to id.
static struct {
    Piece piece[MAX_VOCAB];
    int n;
    Table ids;
} vocab;

static int vocab_add(const char *s, int n)
{
    Entry *e = table_add(&vocab.ids, s, (size_t)n);
    if (vocab.n == MAX_VOCAB) die(1, "text", "too many different characters");
    e->value = vocab.n;
    vocab.piece[vocab.n] = (Piece){.text = e->text, .len = n};
    return vocab.n++;
}

static int vocab_find(const char *s, size_t n)
{
    const Entry *e = table_slot(&vocab.ids, s, n);
    return e->text ? e->value : -1;
}

// ================================================================================================
// 2  Words
//
// Each different word is kept once, with the number of times it was seen and its current pieces.

typedef struct {
    const char *text;
    uint32_t len, n;
    uint64_t count;
    uint16_t *ids;
} Word;
static struct {
    Word *word;
    size_t n, capacity;
    Table index;
} words;

enum { LETTER, PUNCT, ALONE, SPACE };

static int char_class(unsigned char c)
{
    if (c == ' ') return SPACE;
    if (c < 32 || c == 127 || (c >= '0' && c <= '9')) return ALONE;
    return c >= 128 || c == '\'' || ((c | 32) >= 'a' && (c | 32) <= 'z') ? LETTER : PUNCT;
}

// Length in bytes of the word that s[0..n) starts with: one digit or control character, or an
// optional space before a run of letters (apostrophe and non-ASCII included) or of punctuation.
static size_t word_length(const char *s, size_t n)
{
    size_t i = s[0] == ' ' && n > 1 && char_class((unsigned char)s[1]) <= PUNCT;
    int class = char_class((unsigned char)s[i]);
    if (class >= ALONE) return 1;
    while (i < n && i < MAX_WORD && char_class((unsigned char)s[i]) == class) i++;
    return i;
}

static void count_words(const char *s, size_t n)
{
    for (size_t i = 0, len; i < n; i += len) {
        len = word_length(s + i, n - i);
        Entry *e = table_add(&words.index, s + i, len);
        if (e->value < 0) {
            if (words.n == words.capacity) {
                words.capacity = words.capacity ? 2 * words.capacity : 1 << 15;
                words.word = xrealloc(words.word, words.capacity, sizeof(Word));
            }
            e->value = (int32_t)words.n;
            words.word[words.n++] = (Word){e->text, (uint32_t)len, 0, 0, NULL};
        }
        words.word[e->value].count++;
    }
}

// Bytes of the character at s[0..n), as the encoder counts them: 1 if it is cut short or broken.
static size_t char_length(const char *s, size_t n)
{
    size_t len;
    read_char(s, n, &len);
    return len;
}

// Adds the characters that become pieces: printable ASCII and newline always, so that any prompt
// reads well, and every other character seen at least `least` times.
static void add_characters(uint64_t least)
{
    Table seen = {0};
    for (size_t w = 0; w < words.n; w++)
        for (size_t i = 0, len; i < words.word[w].len; i += len) {
            const char *s = words.word[w].text + i;
            len = char_length(s, words.word[w].len - i);
            if ((unsigned char)*s < 128) continue;
            Entry *e = table_add(&seen, s, len);
            int64_t total = (e->value < 0 ? 0 : e->value) + (int64_t)words.word[w].count;
            e->value = total > INT32_MAX ? INT32_MAX : (int32_t)total;
            if ((uint64_t)e->value >= least && vocab_find(s, len) < 0) vocab_add(s, (int)len);
        }
    vocab_add("\n", 1);
    for (char c = 32; c < 127; c++) vocab_add(&c, 1);
    free(seen.slot);
}

// Writes the word's characters as ids; a character without a piece becomes its bytes (id byte+3),
// which never merge.
static void split_word(Word *w)
{
    w->ids = xcalloc(w->len, sizeof *w->ids);
    for (size_t i = 0, len; i < w->len; i += len) {
        len = char_length(w->text + i, w->len - i);
        int id = vocab_find(w->text + i, len);
        if (id >= 0) w->ids[w->n++] = (uint16_t)id;
        else
            for (size_t k = 0; k < len; k++)
                w->ids[w->n++] = (uint16_t)((unsigned char)w->text[i + k] + N_SPECIAL);
    }
}

// ================================================================================================
// 3  Pairs
//
// For every two neighbouring pieces: how often they occur, in which words, and which piece they
// make together (merged, 0 for none yet). The list of words may hold words where the pair is gone.

typedef struct {
    uint16_t left, right;
    int merged;
    int64_t count;
    uint32_t *in;
    size_t n, cap;
} Pair;
static struct {
    Pair *pair;
    size_t n, capacity;
    uint32_t *slot;
    size_t slots;
} pairs;

static size_t pair_slot(int left, int right)
{
    uint64_t h = ((uint64_t)left << 16 | (uint64_t)right) * 0x9E3779B97F4A7C15u;
    size_t i = (h >> 32) & (pairs.slots - 1);
    for (uint32_t p; (p = pairs.slot[i]); i = (i + 1) & (pairs.slots - 1))
        if (pairs.pair[p - 1].left == left && pairs.pair[p - 1].right == right) break;
    return i;
}

// The id of the piece that left and right spell together, or 0.
static int joined_id(int left, int right)
{
    char text[2 * MAX_PIECE];
    Piece a = vocab.piece[left], b = vocab.piece[right];
    memcpy(text, a.text, (size_t)a.len);
    memcpy(text + a.len, b.text, (size_t)b.len);
    int id = vocab_find(text, (size_t)(a.len + b.len));
    return id < 0 ? 0 : id;
}

// Room for twice as many pairs: at most half of the slots are taken, so that every search ends.
static void pairs_grow(void)
{
    pairs.capacity = pairs.capacity ? 2 * pairs.capacity : 1 << 14;
    pairs.pair = xrealloc(pairs.pair, pairs.capacity, sizeof(Pair));
    free(pairs.slot);
    pairs.slots = 2 * pairs.capacity;
    pairs.slot = xcalloc(pairs.slots, sizeof *pairs.slot);
    for (size_t i = 0; i < pairs.n; i++)
        pairs.slot[pair_slot(pairs.pair[i].left, pairs.pair[i].right)] = (uint32_t)i + 1;
}

static Pair *pair_add(int left, int right)
{
    size_t s = pair_slot(left, right);
    if (pairs.slot[s]) return &pairs.pair[pairs.slot[s] - 1];
    if (pairs.n == pairs.capacity) {
        pairs_grow();
        s = pair_slot(left, right);
    }
    pairs.pair[pairs.n] =
        (Pair){(uint16_t)left, (uint16_t)right, joined_id(left, right), 0, NULL, 0, 0};
    pairs.slot[s] = (uint32_t)++pairs.n;
    return &pairs.pair[pairs.n - 1];
}

static void pair_note_word(Pair *p, uint32_t word)
{
    if (p->n && p->in[p->n - 1] == word) return;
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 4;
        p->in = xrealloc(p->in, p->cap, sizeof *p->in);
    }
    p->in[p->n++] = word;
}

// Adds (sign +1) or takes away (-1) the word's neighbours from the counts.
static void count_pairs(uint32_t word, int sign)
{
    const Word *w = &words.word[word];
    for (uint32_t i = 0; i + 1 < w->n; i++) {
        if (w->ids[i] < FIRST_CHAR || w->ids[i + 1] < FIRST_CHAR) continue;
        Pair *p = pair_add(w->ids[i], w->ids[i + 1]);
        p->count += sign * (int64_t)w->count;
        if (sign > 0) pair_note_word(p, word);
    }
}

// The pair seen most often; of equals, the one met first. NULL if none occurs twice.
static const Pair *most_frequent_pair(void)
{
    const Pair *best = NULL;
    for (size_t i = 0; i < pairs.n; i++) {
        const Pair *p = &pairs.pair[i];
        if (p->count > (best ? best->count : 1) &&
            vocab.piece[p->left].len + vocab.piece[p->right].len <= MAX_PIECE)
            best = p;
    }
    return best;
}

// ================================================================================================
// 4  Merging

// Does to the word what the encoder would do with the pieces known so far: join the neighbours
// with the earliest (lowest) piece id, leftmost first, until none join. It continues from the
// word's current pieces, which is the encoder's own state before it reaches the newest piece.
static void merge_word(Word *w)
{
    for (;;) {
        int best = 0;
        uint32_t at = 0;
        for (uint32_t i = 0; i + 1 < w->n; i++) {
            if (w->ids[i] < FIRST_CHAR || w->ids[i + 1] < FIRST_CHAR) continue;
            int id = pair_add(w->ids[i], w->ids[i + 1])->merged;
            if (id && (!best || id < best)) {
                best = id;
                at = i;
            }
        }
        if (!best) return;
        w->ids[at] = (uint16_t)best;
        memmove(w->ids + at + 1, w->ids + at + 2, (w->n - at - 2) * sizeof *w->ids);
        w->n--;
    }
}

static void merge_words_of(Pair pair)
{
    for (size_t i = 0; i < pair.n; i++) {
        count_pairs(pair.in[i], -1);
        merge_word(&words.word[pair.in[i]]);
        count_pairs(pair.in[i], +1);
    }
}

// Makes the new piece `id` known to every pair that spells it, however it is split: the encoder
// looks at the joined string, not at the two halves. Then merges it wherever it occurs.
static void apply_piece(int id)
{
    Piece p = vocab.piece[id];
    size_t split[MAX_PIECE], n = 0;
    for (int k = 1; k < p.len; k++) {
        int left = vocab_find(p.text, (size_t)k);
        int right = vocab_find(p.text + k, (size_t)(p.len - k));
        if (left < FIRST_CHAR || right < FIRST_CHAR) continue;
        size_t s = pair_slot(left, right);
        if (!pairs.slot[s]) continue;
        split[n] = pairs.slot[s] - 1;
        pairs.pair[split[n++]].merged = id;
    }
    for (size_t i = 0; i < n; i++) {
        Pair *list = &pairs.pair[split[i]];
        Pair taken = *list; // the list may grow and move while we walk it
        list->in = NULL;
        list->n = list->cap = 0;
        merge_words_of(taken);
        free(taken.in);
    }
}

static void train_merges(int vocab_size)
{
    for (size_t i = 0; i < words.n; i++) {
        split_word(&words.word[i]);
        count_pairs((uint32_t)i, +1);
    }
    if (vocab.n > vocab_size)
        die(1, "text", "too many different characters for %d pieces (want at least %d)", vocab_size,
            vocab.n);
    while (vocab.n < vocab_size) {
        const Pair *p = most_frequent_pair();
        if (!p) die(1, "text", "too little text for %d pieces (got %d)", vocab_size, vocab.n);
        char text[MAX_PIECE];
        Piece a = vocab.piece[p->left], b = vocab.piece[p->right];
        memcpy(text, a.text, (size_t)a.len);
        memcpy(text + a.len, b.text, (size_t)b.len);
        apply_piece(vocab_add(text, a.len + b.len));
    }
}

// ================================================================================================
// 5  Writing

// llama2.c's format: int32 longest piece, then for each id float32 score, int32 length, bytes.
static void write_tokenizer(const char *path)
{
    char temporary[PATH_MAX]; // a file that is there is replaced by a whole one, or stays
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    FILE *f = fopen(temporary, "wb");
    if (!f) die(1, temporary, "cannot write: %s", strerror(errno));
    int32_t longest = 0;
    for (int i = 0; i < vocab.n; i++)
        if (vocab.piece[i].len > longest) longest = vocab.piece[i].len;
    fwrite(&longest, 4, 1, f);
    for (int i = 0; i < vocab.n; i++) {
        float score = i < FIRST_CHAR ? 0 : (float)(FIRST_CHAR - i);
        int32_t len = vocab.piece[i].len;
        fwrite(&score, 4, 1, f);
        fwrite(&len, 4, 1, f);
        fwrite(vocab.piece[i].text, 1, (size_t)len, f);
    }
    int written = !fflush(f) && !ferror(f) && !fclose(f) && !rename(temporary, path);
    if (written) return;
    int why = errno;
    unlink(temporary);
    die(1, path, "cannot write: %s", strerror(why));
}

// ================================================================================================
// 6  main

static uint64_t bytes_read;

static void read_file(const char *path)
{
    size_t n;
    char *text = read_text(path, &n);
    count_words(text, n);
    free(text);
    bytes_read += n;
}

// A file, or all the files of a folder in the order of their names.
static void read_path(const char *path)
{
    struct stat st;
    if (stat(path, &st)) die(1, path, "cannot read: %s", strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        read_file(path);
        return;
    }
    struct dirent **entry;
    int n = scandir(path, &entry, NULL, alphasort);
    if (n < 0) die(1, path, "cannot read: %s", strerror(errno));
    for (int i = 0; i < n; i++) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, entry[i]->d_name);
        if (!stat(name, &st) && S_ISREG(st.st_mode)) read_file(name);
        free(entry[i]);
    }
    free(entry);
}

static void prepare(void)
{
    table_grow(&vocab.ids);
    pairs_grow();
}

static void add_special(void)
{
    vocab_add("<unk>", 5);
    vocab_add("\n<s>\n", 5);
    vocab_add("\n</s>\n", 6);
    for (int b = 0; b < 256; b++) {
        char text[8];
        vocab_add(text, snprintf(text, sizeof text, "<0x%02X>", b));
    }
}

#ifndef TESTING_BPE
int main(int argc, char **argv)
{
    prog = "bpe";
    const char *out = "tokenizer.bin";
    int vocab_size = 4096, option;
    opterr = 0;
    while ((option = getopt(argc, argv, "v:o:")) != -1) {
        if (option == 'v')
            vocab_size = (int)parse_number(EXIT_USAGE, "-v", optarg, 1, FIRST_CHAR + 97, MAX_VOCAB);
        else if (option == 'o') out = optarg;
        else die(2, "usage", "bpe [-v 4096] [-o tokenizer.bin] FILE_OR_FOLDER...");
    }
    if (optind == argc) die(2, "usage", "bpe [-v 4096] [-o tokenizer.bin] FILE_OR_FOLDER...");
    prepare();
    for (int i = optind; i < argc; i++) read_path(argv[i]);
    add_special();
    add_characters(100);
    train_merges(vocab_size);
    write_tokenizer(out);
    fprintf(stderr, "%zu words in %.1f MB, %d pieces, %s\n", words.n, (double)bytes_read / 1e6,
            vocab.n, out);
    return 0;
}
#endif
