// Conversations: run.c includes this file.
//
// A conversation is a list of messages. For every turn a template (in the model's file; template.h
// executes it) writes all of it anew, and what the cache already holds of the result need not be
// read again: as a rule all but the last turn. So a template may leave out what was thought about
// earlier turns, and old turns may be dropped, without a case of their own.

#include "template.h"

// --- formats ------------------------------------------------------------------------------------

// Formats by name, for models that bring none; mark: a token that only such a model has.
typedef struct {
    const char *name, *mark, *template;
} ChatFormat;

#define EACH(text) "{% for m in messages %}" text "{% endfor %}"
// Here the system's text becomes a part of the first user's.
#define EACH_TURN(system, user, reply) \
    "{% set ns = namespace(system='') %}" \
    EACH("{% if m.role == 'system' %}{% set ns.system = " system " %}" \
         "{% elif m.role == 'user' %}{{ " user " }}{% set ns.system = '' %}" \
         "{% else %}{{ " reply " }}{% endif %}")
static const ChatFormat chat_formats[] = {
    {"chatml", "<|im_start|>", EACH("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n")
     "{{ '<|im_start|>assistant\n' }}"},
    {"llama3", "<|start_header_id|>", "{{ bos_token }}"
     EACH("<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>")
     "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"},
    {"gemma", "<start_of_turn>", "{{ bos_token }}"
     EACH_TURN("m.content + '\n\n'",
               "'<start_of_turn>user\n' + ns.system + m.content | trim + '<end_of_turn>\n'",
               "'<start_of_turn>model\n' + m.content | trim + '<end_of_turn>\n'")
     "{{ '<start_of_turn>model\n' }}"},
    {"llama2", NULL, EACH_TURN("'<<SYS>>\n' + m.content + '\n<</SYS>>\n\n'",
                               "bos_token + '[INST] ' + ns.system + m.content | trim + ' [/INST]'",
                               "' ' + m.content | trim + ' ' + eos_token")},
    {"mistral", NULL, "{{ bos_token }}"
     EACH_TURN("m.content + '\n\n'", "'[INST] ' + ns.system + m.content + ' [/INST]'",
               "m.content + eos_token")},
    {"phi3", NULL, EACH("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n") "{{ '<|assistant|>\n' }}"},
    {"zephyr", NULL, EACH("<|{{ m.role }}|>\n{{ m.content + eos_token }}\n")
     "{{ '<|assistant|>\n' }}"},
};

// The template for 'SYSTEM|USER|REPLY|END': what stands before a system's text, before a user's,
// before a reply and behind it. {} in the first two is the text's place, if it is not their end; a
// bar in <|token|> or [|token|] is no separator. NULL: these are not four parts.
static const char *compose_template(const char *parts)
{
    static const char *const ends[][2] = {
        {"{% for m in messages %}{% if m.role == 'system' %}{{ '", "' + m.content }}"},
        {"{% elif m.role == 'user' %}{{ '", "' + m.content }}"},
        {"{{ '", "' }}"},
        {"{% else %}{{ m.content + '", "' }}{% endif %}{% endfor %}"}};
    char *text;
    size_t len, part = 0, placed = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out) die(EXIT_DATA, "memory", "cannot begin a text (%s)", strerror(errno));
    fputs(ends[0][0], out);
    for (const char *p = parts; *p && part < COUNT(ends); p++) {
        int token = (p > parts && strchr("<[", p[-1])) || (p[1] && strchr(">]", p[1]));
        if (*p == '|' && !token) {
            fputs(placed ? "' }}" : ends[part][1], out);
            if (++part < COUNT(ends)) fputs(ends[part][0], out);
            placed = 0;
        } else if (part < 2 && !strncmp(p, "{}", 2)) {
            fputs("' + m.content + '", out);
            placed = 1;
            p++;
        } else fprintf(out, *p == '\'' ? "\\%c" : "%c", *p);
    }
    fputs(ends[3][1], out);
    if (fclose(out)) die(EXIT_DATA, "memory", "cannot write a text (%s)", strerror(errno));
    return part == 3 ? text : NULL;
}

// --- templates ----------------------------------------------------------------------------------

static Term piece_term(const Tokenizer *t, int id)
{
    return id < 0 ? text_term("") : (Term){T_TEXT, t->pieces[id].len, {t->pieces[id].text}};
}

// Writes messages[n], to out->out; 0 if the template refuses them, for the reason out->error.
static int write_chat(const Tokenizer *t, Template *out, const char *template,
                      const Term *messages, size_t n)
{
    run_template(out, template, messages, (long)n, piece_term(t, t->bos), piece_term(t, t->eos),
                 opt.no_think ? 0 : -1);
    return !*out->error;
}

static Term make_message(Term pair[2], const char *role, const char *content)
{
    pair[0] = text_term(role);
    pair[1] = text_term(content);
    return (Term){T_MESSAGE, 2, {.items = pair}};
}

// The token that a template writes at s[len], or -1. A piece that looks like <this> or [this] is
// meant as a token even if the file calls it text.
static int find_token(const Tokenizer *t, const char *s, size_t len, size_t *n)
{
    int id = match_special(t, s, len, 1, n);
    if (id >= 0 || (*s != '<' && *s != '[')) return id;
    for (size_t k = min_size(len, 64); k > 2 && id < 0; k--)
        if (s[k - 1] == (*s == '<' ? '>' : ']')) id = find_piece(t, s, *n = k, TOKEN_TEXT);
    if (id < 0) *n = 1;
    return id;
}

// A token that no text can write, and that is no text.
static void make_control(Tokenizer *t, int id)
{
    Piece *p = &t->pieces[id];
    uint8_t *most = &t->special_len[(uint8_t)*p->text];
    p->kind = TOKEN_CONTROL;
    if (p->len > *most) *most = (uint8_t)p->len;
}

// Tries the template on a small conversation. Its tokens become control tokens, which no text can
// write, and the first one behind a reply ends replies. Returns what is wrong with it, or NULL.
static const char *try_template(Tokenizer *t, const char *template)
{
    static char reason[sizeof(((Template *)NULL)->error)];
    Template sample;
    Term pairs[3][2], messages[3];
    int texts = 0, ended = 0;
    for (int i = 0; i < 3; i++)
        messages[i] = make_message(pairs[i], i == 1 ? "assistant" : "user", "\2");
    if (!write_chat(t, &sample, template, messages, 3)) memcpy(reason, sample.error, sizeof reason);
    else strcpy(reason, "it does not write what is said");
    for (size_t at = 0, n; at < sample.n_out; at += n) {
        int id = find_token(t, sample.out + at, sample.n_out - at, &n);
        texts += sample.out[at] == 2;
        if (id < 0 || t->pieces[id].kind == TOKEN_USER) continue;
        make_control(t, id);
        if (texts == 2 && !ended++) t->pieces[id].stop = 1;
    }
    int right = !*sample.error && texts == 3;
    free_template(&sample);
    return right ? NULL : reason;
}

// The template to be used, or NULL; *what says what it is, or why there is none.
static const char *find_template(const Session *s, const char **what)
{
    const Vocab *v = &s->model.vocab;
    const char *name = opt.chat_format ? opt.chat_format : v->tokens.n ? NULL : "llama2", *text;
    size_t len = 0;
    int row = name ? FIND_NAME(chat_formats, name) : -1;
    if (name && row < 0) {
        if (!(text = compose_template(name)))
            die(EXIT_USAGE, "--chat-format", "no such format (got '%.99s', want %s, or "
                "'SYSTEM|USER|REPLY|END')", name, LIST_NAMES(chat_formats));
        *what = "as --chat-format says";
        return text;
    }
    if (!name && v->chat.n) {
        text = next_string(&(Values){v->chat.at, 1}, &len);
        *what = memchr(text, 0, len) ? "a zero byte in it" : "the model's own";
        return memchr(text, 0, len) ? NULL : memcpy(xcalloc(len + 1, 1), text, len);
    }
    for (size_t k = 0; row < 0 && k < COUNT(chat_formats); k++) {
        const char *mark = chat_formats[k].mark;
        if (mark && find_piece(&s->tokenizer, mark, strlen(mark), TOKEN_ANY) >= 0) row = (int)k;
    }
    *what = row < 0 ? "there is none" : chat_formats[row].name;
    return row < 0 ? NULL : chat_formats[row].template;
}

// The same, tried.
static const char *open_template(Session *s, const char **what)
{
    const char *template = find_template(s, what);
    const char *wrong = template ? try_template(&s->tokenizer, template) : NULL;
    if (wrong) *what = wrong;
    return wrong ? NULL : template;
}

// The ids of messages[n] and the beginning of a reply; the caller frees them. A user cannot write
// control tokens: behind a byte 1 (see quote_text) there is none. A system's text that is empty may
// be left out.
static int *encode_chat(const Session *s, const char *template, const Term *messages, size_t n,
                        size_t *n_ids)
{
    Template out;
    int empty = n > 1 && is_word(messages[0].items[0], "system") && !messages[0].items[1].n;
    if (!write_chat(&s->tokenizer, &out, template, messages, n) && !(empty &&
        write_chat(&s->tokenizer, &out, template, messages + 1, n - 1)))
        die(EXIT_DATA, s->model.path, "its chat template refuses (%s); see --chat-format",
            out.error);
    char *own = memset(xrealloc(NULL, out.n_out + 1, 1), 1, out.n_out + 1);
    size_t len = 0;
    for (size_t at = 0; at < out.n_out; at++) {
        if (out.out[at] == 1 && at + 1 < out.n_out) own[len] = 0, at++;
        out.out[len++] = out.out[at];
    }
    int *ids = encode_text(&s->tokenizer, out.out, own, len, n_ids);
    free(own);
    free_template(&out);
    return ids;
}

// A copy of the text with a byte 1 in front of each control token in it and of each byte 1.
static char *quote_text(const Tokenizer *t, const char *text)
{
    size_t len = strlen(text), n, to = 0;
    char *quoted = xcalloc(2 * len + 1, 1);
    for (size_t at = 0; at < len; at++) {
        int id = match_special(t, text + at, len - at, 1, &n);
        if (text[at] == 1 || (id >= 0 && t->pieces[id].kind == TOKEN_CONTROL)) quoted[to++] = 1;
        quoted[to++] = text[at];
    }
    return quoted;
}

// --- turns --------------------------------------------------------------------------------------

// Forgets all but the first pos tokens. Where a window made the cache a ring, later tokens may have
// taken the room of some that a query at pos still sees: then everything has to be read again.
static void rewind_session(Session *s, size_t pos)
{
    const Cache *c = &s->state.attn.cache;
    size_t window = (size_t)s->state.attn.config.rope.window;
    size_t seen = pos > window ? pos - window : 0;
    s->pos = seen / TILE + c->ring > (size_t)s->pos / TILE ? (long long)pos : 0;
}

typedef struct {
    const char *template;
    Term *messages; // [n]
    size_t n, kept; // the first ones stay: the system's, if there is one
} Conversation;

// The content is the conversation's from now on.
static void add_message(Conversation *c, const char *role, const char *content)
{
    c->messages = xrealloc(c->messages, c->n + 1, sizeof *c->messages);
    c->messages[c->n++] = make_message(xcalloc(2, sizeof(Term)), role, content);
}

static void drop_messages(Conversation *c, size_t from, size_t n)
{
    for (size_t i = from; i < from + n; i++) {
        free((void *)c->messages[i].items[1].s);
        free((void *)c->messages[i].items);
    }
    c->n -= n;
    memmove(c->messages + from, c->messages + from + n, (c->n - from) * sizeof *c->messages);
}

// The ids of the conversation. If they and a reply do not fit into the context the oldest turns go,
// but never the last; NULL if it does not fit even so, or if nothing may go.
static int *fit_conversation(const Session *s, Conversation *c, size_t *n)
{
    size_t before = c->n, ctx = (size_t)s->ctx;
    size_t room = min_size(opt.steps ? (size_t)opt.steps : 256, ctx / 4); // for the reply
    int *ids, fits;
    for (;; drop_messages(c, c->kept, 2)) {
        int last = c->n == c->kept + 1;
        ids = encode_chat(s, c->template, c->messages, c->n, n);
        fits = *n + (last || opt.keep_all ? 0 : room) < ctx;
        if (fits || last || opt.keep_all) break;
        free(ids);
    }
    if (c->n < before)
        fprintf(stderr, "%s: the context of %zu tokens is full: the oldest turns (%zu) are "
                "forgotten; use -c for more, or --window with --sinks\n", prog, ctx,
                (before - c->n) / 2);
    if (fits) return ids;
    free(ids);
    return NULL;
}

// Answers the user's text, and tells why if the reply was cut. 0: it does not fit.
static int answer(Session *s, Conversation *c, const char *text)
{
    size_t n, common = 0, len;
    add_message(c, "user", quote_text(&s->tokenizer, text));
    int *ids = fit_conversation(s, c, &n);
    if (!ids) {
        drop_messages(c, c->n - 1, 1);
        return 0;
    }
    while (common < min_size(n - 1, (size_t)s->pos) && ids[common] == s->ids[common]) common++;
    rewind_session(s, common);
    char *said;
    FILE *copy = open_memstream(&said, &len);
    if (!copy) die(EXIT_DATA, "memory", "cannot begin a text (%s)", strerror(errno));
    int end = reply(s, ids + s->pos, n - (size_t)s->pos, copy);
    if (fclose(copy)) die(EXIT_DATA, "memory", "cannot write a text (%s)", strerror(errno));
    free(ids);
    if (end != END_STOP) fprintf(stderr, "%s: the reply was cut by %s\n", prog, endings[end]);
    add_message(c, "assistant", said);
    interrupted = 0;
    return 1;
}

// Reads a turn: a line, and the next one, too, where it ends with a backslash. The caller frees it.
// NULL at the end, or when Ctrl-C ends the wait for it.
static char *read_turn(void)
{
    enum { TERMINAL_LINE = 4096 }; // what a terminal hands over at most, with the newline
    char *line = NULL, *turn = NULL;
    size_t room = 0, len = 0;
    for (int more = 1, terminal = isatty(STDIN_FILENO); more;) {
        if (terminal) fputs(turn ? "| " : "> ", stderr);
        catch_interrupt(0);
        ssize_t n = getline(&line, &room, stdin);
        catch_interrupt(SA_RESTART);
        if (n < 0 && !feof(stdin) && !interrupted)
            die(EXIT_DATA, "standard input", "cannot read (%s)", strerror(errno));
        if (n < 0) break;
        check_string("standard input", line, (size_t)n);
        if (terminal && n >= TERMINAL_LINE)
            fprintf(stderr, "%s: the terminal cut a line to %zd bytes; use rlwrap, -f, or lines "
                    "that end with a backslash\n", prog, n - 1);
        n -= line[n - 1] == '\n';
        n -= n && line[n - 1] == '\r';
        more = n && line[n - 1] == '\\';
        line[n - more] = 0;
        turn = xrealloc(turn, len + (size_t)n + 2, 1);
        len += (size_t)sprintf(turn + len, more ? "%s\n" : "%s", line);
    }
    free(line);
    return turn;
}

// Turn by turn on stdin and stdout. The first turn may be given.
static void run_chat(Session *s)
{
    const char *what;
    Conversation c = {.template = open_template(s, &what)};
    if (!c.template)
        die(EXIT_DATA, s->model.path, "no chat template that can be followed (%s); use "
            "--chat-format with %s, or 'SYSTEM|USER|REPLY|END'", what, LIST_NAMES(chat_formats));
    if (opt.no_think && !strstr(c.template, "enable_thinking"))
        die(EXIT_USAGE, "--no-think", "the chat template has no such choice");
    if (!opt.chat_format && s->model.vocab.tokens.n && !s->model.vocab.chat.n)
        fprintf(stderr, "%s: the model has no chat template, but the tokens of %s, which is used; "
                "see --chat-format\n", prog, what);
    if (opt.steps < 0) opt.steps = 0;
    if (opt.system) add_message(&c, "system", quote_text(&s->tokenizer, opt.system));
    c.kept = c.n;
    if (s->text) check_string("prompt", s->text, s->len);
    if (s->text && !answer(s, &c, s->text))
        die(EXIT_DATA, "prompt", "a turn longer than the context (want less than %lld tokens)",
            s->ctx);
    for (char *turn; !interrupted && (turn = read_turn()); free(turn)) {
        int slash = !strncmp(turn, "//", 2), clear = !strcmp(turn, "/clear");
        if (clear) drop_messages(&c, c.kept, c.n - c.kept);
        else if (*turn && !answer(s, &c, turn + slash))
            fprintf(stderr, "%s: this turn does not fit into the context of %lld tokens, and is "
                    "left out; see -c\n", prog, s->ctx);
    }
    say_speed(s, "the user");
    drop_messages(&c, 0, c.n);
    free(c.messages);
}
