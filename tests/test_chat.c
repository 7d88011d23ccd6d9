// test_chat.c: chat.c: the language of chat templates, construct by construct; what
// the named and the written formats and a few models' templates render; which tokens a format
// makes of a file's; and, with REFERENCE, the public templates in its folder chat. What is wanted
// was worked out by hand, that of the public ones by Jinja2.
#define TESTING
#include "../chat.c"
#include "check.h"
#include "jinja.h"
#include "gguf.h"
#include <dirent.h>

static const char *const conversation[] = {
    "system", "Be\nbrief.", "user", " Hi ", "assistant", "Yo.", "user", "Why?"};

// Messages of pairs of a role and a content.
static size_t make_messages(Term (*pairs)[2], Term *messages, const char *const *texts, size_t n)
{
    for (size_t i = 0; i < n; i++)
        messages[i] = make_message(pairs[i], texts[2 * i], texts[2 * i + 1]);
    return n;
}

static void check_render(const char *template, const char *const *texts, size_t n,
                         const char *want)
{
    Template t;
    Term pairs[16][2], messages[16];
    make_messages(pairs, messages, texts, n);
    run_template(&t, template, messages, (long)n, text_term("<s>"), text_term("</s>"), -1);
    const char *got = *t.error ? t.error : t.out;
    if (*want == '!') CHECK(*t.error && strstr(t.error, want + 1));
    else CHECK_TEXT(got, strlen(got), want, strlen(want));
    if (*want == '!' && !(*t.error && strstr(t.error, want + 1)))
        printf("test_chat: of %s: want %s, got %s\n", template, want, got);
    free_template(&t);
}

// --- the language -------------------------------------------------------------------------------

// What stands behind ! is a part of the reason why the template is refused.
static const char *const language[][2] = {
    {"a{{ 'b' }}c{# no #}d", "abcd"}, {"", ""}, {"x\n", "x"}, {"x\n\n", "x\n"},
    {"{{ 'a\\n\\t\\\\\\'' + \"'\\\"\" }}", "a\n\t\\''\""}, {"{{ '\\q' }}", "\\q"},
    {"{{ '\\x41' }}", "!code"},
    {"a \n {{- 'b' -}} \n c", "abc"}, {"a\n  {% set x = 1 %}\nb", "a\nb"},
    {"a {% set x = 1 %} b", "a  b"}, {"a\n  {%+ set x = 1 %}\nb", "a\n  b"},
    {"a\n  {{ 1 }}\nb", "a\n  1\nb"}, {"  {# c #}\nb", "b"}, {"a{#- c -#} b", "ab"},
    {"{{ 1 + 2 }}{{ 7 - 2 - 1 }}{{ 7 % 4 }}{{ -1 + 3 }}", "3432"}, {"{{ 'a' ~ 1 }}", "!no text"},
    {"{{ 'a' + 1 }}", "!no text"}, {"{{ 'a' + nothing }}", "!no text"}, {"{{ nothing }}|", "|"},
    {"{{ nothing.more }}", "!undefined"}, {"{{ none }}", "!no text"},
    {"{% if nothing.more %}{% endif %}", "!undefined"}, {"{{ 'a' or nothing.more }}", "a"},
    {"{{ 'a' if 1 == 1 else nothing.more }}", "a"}, {"{{ 'a' if 1 > 1 else 'b' }}", "b"},
    {"{{ '' or 'b' }}{{ 'a' and 'b' }}{{ '' and 'b' }}", "bb"},
    {"{% if not 'x' == 'y' and 1 < 2 and 2 <= 2 and 3 >= 3 and 1 != 2 %}y{% endif %}", "y"},
    {"{% if 'b' in 'abc' and 'd' not in 'abc' and 'x' in ['y', 'x'] %}y{% endif %}", "y"},
    {"{% if 'role' in messages[0] and 'tool_calls' not in messages[0] %}y{% endif %}", "y"},
    {"{% if (1 == 1) != (2 == 2) %}y{% elif 0 %}z{% else %}n{% endif %}", "n"},
    {"{% if none is none and x is not defined and 'x' is string and true is true %}y{% endif %}",
     "y"},
    {"{% if messages is iterable and messages[0] is mapping and 1 is number %}y{% endif %}", "y"},
    {"{% if 1 is odd %}{% endif %}", "!unknown test"},
    {"{{ messages | length }}{{ messages[-1].content }}{{ messages[9] }}", "4Why?"},
    {"{{ messages[1:][0]['content'] }}{{ messages[::-1][0].role }}{{ messages[:1]|length }}",
     " Hi user1"},
    {"{{ messages[::2] }}", "!step"}, {"{{ 'abc'[0] }}", "!no list"},
    {"{{ messages[1].content.strip() }}{{ messages[1]['content'] | trim }}.", "HiHi."},
    {"{{ ' a ' + ' b ' | trim }}", " a b"},
    {"{{ '--a-'.strip('-') }}{{ '--a-'.lstrip('-') }}", "aa-"},
    {"{{ 'a.b.c'.split('.')[-1] }}{{ 'a.b.c'.split('.') | length }}{{ 'a'.rstrip() }}", "c3a"},
    {"{{ 'a'.split('') }}", "!separator"}, {"{{ 'a1a'.replace('a', 'bb') }}", "bb1bb"},
    {"{% if 'abc'.startswith('ab') and 'abc'.endswith('bc') %}y{% endif %}", "y"},
    {"{% if 'a'.startswith('ab') or 'a'.endswith('ba') %}y{% endif %}", ""},
    {"{{ 'user x'.title() }}{{ 'a'|upper }}{{ 'B'|lower }}", "User XAb"},
    {"{{ x | default('d') }}{{ 'e' | default('d') }}", "de"},
    {"{{ 'a' | tojson }}", "!unknown function"}, {"{{ f(1, 2) }}", "!unknown function"},
    {"{{ 'a' | tojson(indent=4) }}", "!argument by name"},
    {"{{ messages[[1]].content }}", "!no number"}, {"{{ messages[x:]|length }}", "!undefined place"},
    {"{% set x = 'a' %}{% if 1 %}{% set x = x + 'b' %}{% endif %}{{ x }}", "ab"},
    {"{% for m in messages %}{{ loop.index0 }}{{ loop.index }}{{ 'f' if loop.first }}"
     "{{ 'l' if loop.last }}{{ m.role }} {% endfor %}",
     "01fsystem 12user 23assistant 34luser "},
    {"{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}", "1"},
    {"{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{%"
     " endfor %}{{ ns.x }}",
     "5"},
    {"{% set ns = namespace() %}{% set ns.x = 'a' %}{{ ns.x }}{{ ns.y }}", "a"},
    {"{% set ns = namespace() %}{% for m in messages %}{% set ns.x = 'a' %}{% endfor %}",
     "!namespace"},
    {"{% for m in nothing %}x{% endfor %}{% for m in [] %}y{% endfor %}.", "."},
    {"{% for m in 'abc' %}x{% endfor %}", "!list"},
    {"{% for m in messages if m %}x{% endfor %}", "!tag"},
    {"{% if 0 %}{% for t in tools.items() %}{% break %}{{ '%}' ~ \"}}\" }}{% endfor %}{%"
     " endif %}.",
     "."},
    {"{% macro f(x) %}{{ x }}{% endmacro %}.", "."},
    {"{% macro f(x) %}{% endmacro %}{{ f(1) }}", "!function"},
    {"{% generation %}a{% endgeneration %}", "a"}, {"{% include 'x' %}", "!unknown word"},
    {"{{ raise_exception('No ' + 'way') }}", "!No way"}, {"{{ raise_exception('a') if 0 }}", ""},
    {"{{ bos_token }}{{ eos_token }}{{ strftime_now('%Y-%m-%d') }}", "<s></s>2025-06-15"},
    {"{% if tools or documents is not none or not add_generation_prompt %}x{% endif %}", ""},
    {"{{ 'a' }", "!tag"}, {"{{ 'a", "!tag"}, {"{% if 1 %}a", "!end"},
    {"{% for m in messages %}", "!end"}, {"a{% endif %}", "!beginning"}, {"{# a", "!comment"},
    {"{{ }}", "!name"}, {"{{ 'a' 'b' }}", "!tag"}, {"{{ [1, 2 }}", "!list"},
    {"{{ messages[0 }}", "!"}, {"{{ 1 not 2 }}", "!in"}, {"{% set x %}", "!="},
    {"{{ 5 % 0 }}", "!remainder"}, {"{{ 'a' - 1 }}", "!arithmetic"},
};

static void test_language(void)
{
    for (size_t i = 0; i < COUNT(language); i++)
        check_render(language[i][0], conversation, 4, language[i][1]);
}

// Each as Jinja renders it, or refused; most are rendered.
static void test_jinja(void)
{
    size_t rendered = 0;
    for (size_t i = 0; i < COUNT(jinja); i++) {
        Template t;
        Term pairs[4][2], messages[4];
        int before = n_failed;
        make_messages(pairs, messages, conversation, 4);
        run_template(&t, jinja[i][0], messages, 4, text_term("<s>"), text_term("</s>"), -1);
        if (!*t.error) CHECK_TEXT(t.out, strlen(t.out), jinja[i][1], strlen(jinja[i][1]));
        note_failures(before, "%s", jinja[i][0]);
        rendered += !*t.error;
        free_template(&t);
    }
    CHECK(rendered > COUNT(jinja) * 7 / 10);
}

// What could go on for ever, or too deep, comes to an end.
static void test_limits(void)
{
    char deep[4000] = "{{ ", *end = deep + 3;
    for (int i = 0; i < 1500; i++) *end++ = "(["[i % 2];
    strcpy(end, "1 }}");
    check_render(deep, conversation, 4, "!deep");
    static const char *const signs[] = {"(", "[", "-", "not ", "1 if 1 else "};
    enum { MANY = 20000 };
    char *many = xcalloc(MANY * 16, 1);
    for (size_t k = 0; k < COUNT(signs); k++) {
        end = many + sprintf(many, "{{ ");
        for (int i = 0; i < MANY; i++) end += sprintf(end, "%s", signs[k]);
        strcpy(end, "1 }}");
        check_render(many, conversation, 4, "!");
    }
    end = many; // six loops within each other
    for (int i = 0; i < 6; i++)
        end += sprintf(end, "{%% for a%d in [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16] %%}", i);
    end += sprintf(end, "{%% set x = 1");
    for (int i = 0; i < 1000; i++) end += sprintf(end, "+1");
    end += sprintf(end, " %%}");
    for (int i = 0; i < 6; i++) end += sprintf(end, "{%% endfor %%}");
    check_render(many, conversation, 4, "!come to an end");
    free(many);
    char *lines = xcalloc(2000001, 1); // a text of many lines
    for (int i = 0; i < 2000000; i++) lines[i] = i % 50 ? 'x' : '\n';
    const char *const one[] = {"user", lines};
    check_render("{{ messages[0].content | replace('\\n', ' ') | length }}", one, 1, "2000000");
    free(lines);
    for (end = deep; end < deep + 3000;) end += sprintf(end, "{%% if 1 %%}");
    check_render(deep, conversation, 4, "!deep");
    for (end = deep; end < deep + 3000;) end += sprintf(end, "{%% for a in messages %%}");
    check_render(deep, conversation, 4, "!");
    check_render("{% set ns = namespace(x='ab') %}{% for a in messages %}{% for b in messages %}"
                 "{% for c in messages %}{% set ns.x = ns.x + ns.x %}{% endfor %}{% endfor %}"
                 "{% endfor %}", conversation, 4, "!does not come to an end");
    // What looks through texts and lists, however often, and what is only stepped over.
    static const char *const slow[] = {
        "{% set ns.x = ns.x ~ ns.x %}", "{% if 'no' in ns.x %}{% endif %}",
        "{% set y = ns.x.split('no') %}", "{% set y = ns.x.strip(ns.x) %}",
        "{% if ns.x == ns.x %}{% endif %}", "{% if 0 %}{{ ns.x }}{% endif %}"};
    for (size_t k = 1; k < COUNT(slow); k++) {
        char text[4000], *at = text + sprintf(text, "{%% set ns = namespace(x='abababab') %%}");
        for (int i = 0; i < 14; i++) at += sprintf(at, "%s", slow[0]);
        for (int i = 0; i < 8; i++)
            at += sprintf(at, "{%% for a%d in [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16] %%}", i);
        at += sprintf(at, "%s", slow[k]);
        for (int i = 0; i < 8; i++) at += sprintf(at, "{%% endfor %%}");
        check_render(text, conversation, 4, "!does not come to an end");
    }
    // A list that holds one twice, which holds one twice, and so on; and one that is very deep.
    for (end = deep, end += sprintf(end, "{%% set a = [1] %%}"); end < deep + 2000;)
        end += sprintf(end, "{%% set a = [a, a] %%}");
    sprintf(end, "{{ a == a }}");
    check_render(deep, conversation, 4, "!does not come to an end");
    check_render("{% set n = namespace(x=1) %}{% for a in [1,2,3,4,5,6,7,8,9,10] %}"
                 "{% for b in [1,2,3,4,5,6,7,8,9,10] %}{% for c in [1,2,3,4,5,6,7,8,9,10] %}"
                 "{% set n.x = [n.x] %}{% endfor %}{% endfor %}{% endfor %}"
                 "{{ n.x == [n.x] }}{{ n.x == n.x }}", conversation, 4, "!deep");
}

// Templates that were damaged at random: each is rendered or refused, and comes to an end.
static void test_damaged(void)
{
    static const char *const parts[] = {"{% ", " %}", "{{ ", " }}", "{#", "#}", "'", "(", "[", ")",
        "]", "|", ".", "if ", "for ", "set ", "endif", "endfor", "else", "in ", "-", "::", "\\"};
    uint64_t rng = 1;
    int n_rendered = 0, n_refused = 0;
    for (int i = 0; i < 20000; i++) {
        char text[2000];
        const char *from = i % 2 ? language[next_random(&rng) % COUNT(language)][0]
                                 : chat_formats[next_random(&rng) % COUNT(chat_formats)].template;
        strcpy(text, from);
        for (int edits = 1 + (int)(next_random(&rng) % 4); edits; edits--) {
            size_t len = strlen(text), at = next_random(&rng) % (len + 1);
            const char *part = parts[next_random(&rng) % COUNT(parts)];
            if (next_random(&rng) % 2 && at < len) memmove(text + at, text + at + 1, len - at);
            else memmove(text + at + strlen(part), text + at, len - at + 1),
                 memcpy(text + at, part, strlen(part));
        }
        Template t;
        Term pairs[4][2], messages[4];
        make_messages(pairs, messages, conversation, 4);
        run_template(&t, text, messages, 4, text_term("<s>"), text_term("</s>"), i % 3 - 1);
        n_rendered += !*t.error, n_refused += *t.error != 0;
        free_template(&t);
    }
    CHECK(n_rendered > 1000);
    CHECK(n_refused > 1000);
}

// --- formats ------------------------------------------------------------------------------------

static const struct {
    const char *name, *want;
} rendered[] = {
    {"chatml", "<|im_start|>system\nBe\nbrief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
     "<|im_start|>assistant\nYo.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
     "<|im_start|>assistant\n"},
    {"llama3", "<s><|start_header_id|>system<|end_header_id|>\n\nBe\nbrief.<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant"
     "<|end_header_id|>\n\nYo.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n"},
    {"gemma", "<s><start_of_turn>user\nBe\nbrief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYo."
     "<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"},
    {"llama2", "<s>[INST] <<SYS>>\nBe\nbrief.\n<</SYS>>\n\nHi [/INST] Yo. </s><s>[INST] Why? "
     "[/INST]"},
    {"mistral", "<s>[INST] Be\nbrief.\n\n Hi  [/INST]Yo.</s>[INST] Why? [/INST]"},
    {"phi3", "<|system|>\nBe\nbrief.<|end|>\n<|user|>\n Hi <|end|>\n<|assistant|>\nYo.<|end|>\n"
     "<|user|>\nWhy?<|end|>\n<|assistant|>\n"},
    {"zephyr", "<|system|>\nBe\nbrief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\nYo.</s>\n"
     "<|user|>\nWhy?</s>\n<|assistant|>\n"},
    {"<|s|>|<|u|>|<|a|>|<e>", "<|s|>Be\nbrief.<|u|> Hi <|a|>Yo.<e><|u|>Why?<|a|>"},
    {"S\\n{}</s>||[|a|]|\\n", "S\nBe\nbrief.</s> Hi [|a|]Yo.\nWhy?[|a|]"},
    {"{}:|'{}'<|e|>|A's:|", "Be\nbrief.:' Hi '<|e|>A's:Yo.'Why?'<|e|>A's:"},
};

static void test_formats(void)
{
    for (size_t k = 0; k < COUNT(rendered); k++) {
        int row = FIND_NAME(chat_formats, rendered[k].name);
        CHECK((row >= 0) == (k < COUNT(chat_formats)));
        check_render(row >= 0 ? chat_formats[row].template : compose_template(rendered[k].name),
                     conversation, 4, rendered[k].want);
    }
    CHECK(!compose_template("nosuch"));
    CHECK(!compose_template("a|b|c"));
    CHECK(!compose_template("a|b|c|d|e"));
}

// Thoughts of an earlier reply leave the conversation, and none are asked for if that is said.
static void test_thoughts(void)
{
    static const char template[] =
        "{% for m in messages %}{% set text = m.content %}{% if '</think>' in text %}"
        "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "<{{ m.role }}>{{ text }}{% endfor %}<assistant>"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}";
    static const char *const texts[] = {"user", "Hi", "assistant", "<think>\nHm.\n</think>\n\nYo.",
                                        "user", "Why?"};
    check_render(template, texts, 3, "<user>Hi<assistant>Yo.<user>Why?<assistant>");
    for (int think = 0; think < 2; think++) {
        Template t;
        Term pair[2], turn = make_message(pair, "user", "Hi");
        run_template(&t, template, &turn, 1, text_term(""), text_term(""), think);
        const char *want = think ? "<user>Hi<assistant>" : "<user>Hi<assistant><think></think>";
        CHECK_TEXT(t.out, t.n_out, want, strlen(want));
        free_template(&t);
    }
}

// --- tokens -------------------------------------------------------------------------------------

enum { TYPE_NORMAL = 1, TYPE_CONTROL = 3 };
static const char *const names[] = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>",
                                    "[INST]"};
enum { BOS, EOS, START, END, OTHER_END, INST, BYTES, VOCAB = BYTES + 256 };

static Tokenizer make_vocabulary(int type, int add_bos)
{
    Out tokens = {0}, types = {0};
    for (int id = 0; id < VOCAB; id++) {
        char name[8] = "";
        if (id >= BYTES) sprintf(name, "<0x%02X>", (unsigned)(id - BYTES) & 255);
        put_string(&tokens, id < BYTES ? names[id] : name);
        put_u32(&types, id > EOS && id < BYTES ? (uint32_t)type : TYPE_NORMAL);
    }
    Vocab v = {.tokens = {tokens.p, VOCAB, G_STRING}, .types = {types.p, VOCAB, G_I32}, .bos = BOS, .eos = EOS,
               .eot = -1, .add_bos = add_bos};
    Tokenizer t;
    tokenizer_init(&t, "test", &v);
    return t;
}

// The ids of a template's text, in which only \1 to \6 are tokens, and those of the texts as bytes.
static void check_ids(const Session *s, const char *template, const char *user, const char *want)
{
    Term pair[2], turn = make_message(pair, "user", quote_text(&s->tokenizer, user));
    size_t n, bad = 0;
    int *ids = encode_chat(s, template, &turn, 1, &n);
    for (size_t i = 0; i < n && i < strlen(want); i++)
        bad += ids[i] != (want[i] <= BYTES ? want[i] - 1 : BYTES + (uint8_t)want[i]);
    CHECK_INT(n, strlen(want));
    CHECK_INT(bad, 0);
    free(ids);
}

static void test_tokens(void)
{
    const char *chatml = chat_formats[0].template;
    for (int type = TYPE_NORMAL; type <= TYPE_CONTROL; type += 2)
        for (int add_bos = 0; add_bos < 2; add_bos++) {
            Session s = {.tokenizer = make_vocabulary(type, add_bos)};
            Piece *p = s.tokenizer.pieces;
            CHECK(p[EOS].stop && !p[BOS].stop);
            CHECK(!try_template(&s.tokenizer, chatml));
            CHECK(p[END].stop && !p[START].stop && p[START].kind == TOKEN_CONTROL);
            check_ids(&s, chatml, "a", &"\1\3user\na\4\n\3assistant\n"[!add_bos]);
            check_ids(&s, chatml, "<|im_end|>", &"\1\3user\n<|im_end|>\4\n\3assistant\n"[!add_bos]);
            check_ids(&s, chatml, "<s></s>", &"\1\3user\n<s></s>\4\n\3assistant\n"[!add_bos]);
            check_ids(&s, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", "a",
                      "\1a");
        }
    Session s = {.tokenizer = make_vocabulary(TYPE_CONTROL, 0)};
    const char *mistral = chat_formats[FIND_NAME(chat_formats, "mistral")].template;
    CHECK(!try_template(&s.tokenizer, mistral));
    check_ids(&s, mistral, "[INST]", "\1\6 [INST] [/INST]");
    CHECK(strstr(try_template(&s.tokenizer, "{{ messages[0].content }}"), "what is said"));
    CHECK(strstr(try_template(&s.tokenizer, "{{ raise_exception('Never') }}"), "Never"));
}

// A token that ends a turn is the model's alone, user-defined or not; marks of thoughts are anybody's.
static void test_user_defined(void)
{
    Session s = {.tokenizer = make_vocabulary(4, 0)};
    Piece *p = s.tokenizer.pieces;
    CHECK(!try_template(&s.tokenizer, chat_formats[0].template));
    CHECK(p[END].stop && p[END].kind == TOKEN_CONTROL);
    check_ids(&s, chat_formats[0].template, "<|im_end|>", "\3user\n<|im_end|>\4\n\3assistant\n");
}

// What a reply's letters spell stays letters when the next turn is written; its control tokens stay
// control tokens.
static void test_spelled(void)
{
    Session s = {.tokenizer = make_vocabulary(TYPE_CONTROL, 0)};
    const char *text = "a<|im_end|>\1b";
    int ids[32], n = 0;
    CHECK(!try_template(&s.tokenizer, chat_formats[0].template));
    for (; text[n]; n++) ids[n] = BYTES + (uint8_t)text[n];
    ids[n++] = END;
    char *spelled = spell_ids(&s.tokenizer, ids, (size_t)n);
    Term pair[2], turn = make_message(pair, "user", spelled);
    size_t got;
    int *again = encode_chat(&s, "{{ messages[0].content }}", &turn, 1, &got);
    int bad = 0;
    for (int i = 0; i < n && (size_t)i < got; i++) bad += again[i] != ids[i];
    CHECK_INT(got, n);
    CHECK_INT(bad, 0);
}

// A template without a place for a system text, one with a text of its own, and a usual one.
static void test_system(void)
{
    Tokenizer t = make_vocabulary(TYPE_CONTROL, 0);
    const char *none = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}"
                       "{% endfor %}";
    const char *own = "{% if messages[0].role != 'system' %}Be kind.{% endif %}{% for m in messages %}"
                      "{{ m.content }}{% endfor %}";
    CHECK_INT(system_effect(&t, none, "Be brief."), 0);
    CHECK(system_effect(&t, own, "") < 0);
    CHECK(system_effect(&t, own, "Be kind.")); // which changes nothing, but has its place
    CHECK(system_effect(&t, chat_formats[0].template, "Be brief.") > 0);
    CHECK_INT(system_effect(&t, "{{ messages[0].content }}", ""), -1);
    CHECK(system_effect(&t, "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}"
                            "{% endif %}{{ messages[0].content }}", "a"));
}

// Pieces that are spelled alike: a text that merges makes the normal one, what is found in any text
// is the user-defined one, whichever of them comes first.
static void test_twins(void)
{
    for (uint32_t first = 1; first < 5; first += 3) {
        Out tokens = {0}, types = {0};
        int ids[8];
        for (int id = 0; id < 4 + 256; id++) {
            char name[8] = "ab";
            if (id > 3) sprintf(name, "<0x%02X>", (unsigned)(id - 4) & 255);
            put_string(&tokens, id < 2 ? names[id] : name);
            put_u32(&types, id == 2 ? first : id == 3 ? 5 - first : TYPE_NORMAL);
        }
        Vocab v = {.tokens = {tokens.p, 4 + 256, G_STRING}, .types = {types.p, 4 + 256, G_I32},
                   .bos = BOS, .eos = EOS, .eot = -1};
        Tokenizer t;
        tokenizer_init(&t, "twins", &v);
        CHECK_INT(find_piece(&t, "ab", 2, TOKEN_TEXT), first == 1 ? 2 : 3);
        CHECK_INT(find_piece(&t, "ab", 2, TOKEN_USER), first == 1 ? 3 : 2);
        CHECK_INT(tokenizer_encode(&t, "cabc", 4, ids), 3);
        CHECK_INT(ids[1], first == 1 ? 3 : 2);
    }
}

// Phi-3's tokenizer drops blanks behind a control token, but not behind BOS, and not in a user's text.
static void test_strip_right(void)
{
    static const char text[] = "<|end|>\n a<s> b<|end|> c";
    char template[sizeof text];
    int want[] = {OTHER_END, BYTES + 'a', BOS, BYTES + ' ', BYTES + 'b'};
    Tokenizer t = make_vocabulary(TYPE_CONTROL, 0);
    t.strip_right = 1;
    for (size_t i = 0; i < sizeof template; i++) template[i] = i < 15;
    size_t n, bad = 0;
    int *ids = encode_written(&t, text, template, sizeof text - 1, &n);
    CHECK_INT(n, 5 + 9);
    for (int i = 0; i < 5; i++) bad += ids[i] != want[i];
    CHECK_INT(bad, 0);
}

// What is read after a conversation was cut back, several times, gives what it gives from the
// beginning, to the last bit, whatever of it the cache had to forget.
static void test_rewind(void)
{
    enum { MOST = 900 };
    static const RopeConfig how[] = {{.theta = 10000}, {.theta = 10000, .window = 90},
        {.theta = 10000, .window = 70, .sinks = 3},
        {.theta = 10000, .method = ROPE_DYNAMIC, .factor = 2, .orig_ctx = 100}};
    uint64_t rng = 3;
    for (size_t k = 0; k < COUNT(how); k++) {
        Session s = {0}, fresh = {0};
        int ids[MOST], kept = 0, again = 0, failed = n_failed;
        size_t len = 0;
        Session *both[] = {&s, &fresh};
        for (int i = 0; i < 2; i++) {
            model_load(&both[i]->model, "models/pe-rope.bin");
            both[i]->model.config.rope = how[k];
            state_init(&both[i]->state, &both[i]->model, MOST, 16, 0, 0);
            both[i]->logits = xcalloc(both[i]->model.config.vocab_size, 4);
        }
        for (int turn = 0; turn < 15; turn++) {
            size_t pos = len ? next_random(&rng) % len : 0, n = 1 + next_random(&rng) % 300;
            if (turn % 3 == 2) pos = min_size(len, 3);
            if (pos + n > MOST) continue;
            rewind_session(&s, pos);
            kept += s.pos > 0, again += pos && !s.pos;
            for (size_t i = pos; i < pos + n; i++) ids[i] = 3 + (int)(next_random(&rng) % 4000);
            len = pos + n;
            feed(&s, ids + s.pos, len - s.pos);
            fresh.pos = 0;
            feed(&fresh, ids, len);
            CHECK(!memcmp(s.logits, fresh.logits, s.model.config.vocab_size * 4));
        }
        CHECK(kept > 3);
        CHECK(!how[k].window || again > 0);
        note_failures(failed, "method %zu: kept %d, again %d", k, kept, again);
    }
}

// Where a template comes from: the option, the file, the tokens.
static void test_choice(void)
{
    const char *what, *got;
    Out own = {0};
    put_string(&own, "{% for m in messages %}{{ m.content }}{% endfor %}");
    Session s = {.tokenizer = make_vocabulary(TYPE_CONTROL, 0), .model.vocab.tokens.n = VOCAB};
    got = open_template(&s, &what);
    CHECK(got == chat_formats[0].template && !strcmp(what, "chatml"));
    s.model.keys = (FileItem[]){
        {.name = "tokenizer.chat_template", .values = {own.p, 1, G_STRING}}, {.name = ""}};
    CHECK((got = open_template(&s, &what)) && strstr(got, "m.content }}{% endfor %}"));
    talk.format = "zephyr";
    CHECK(open_template(&s, &what) && !strcmp(what, "zephyr"));
    talk.format = NULL;
    s.model.keys = NULL;
    s.model.vocab = (Vocab){0}; // llama2.c's
    CHECK(open_template(&s, &what) && !strcmp(what, "llama2"));
    s.tokenizer.pieces[START].kind = 0;
    s.model.vocab.tokens.n = VOCAB;
    CHECK(!open_template(&s, &what));
}

// --- text on its way out ------------------------------------------------------------------------

static void check_stream(int terminal, const char *text, const char *want)
{
    char *shown;
    size_t n;
    FILE *out = open_memstream(&shown, &n);
    Stream s = {.out = out, .terminal = terminal};
    for (const char *p = text; *p; p++) stream_write(&s, p, 1);
    fclose(out);
    CHECK_TEXT(shown, n, want, strlen(want));
    free(shown);
}

static void test_stream(void)
{
    static const char text[] = "a\tb\n\33[2J\r\177\302\233m\303\251\360\237\230\200";
    check_stream(0, text, text);
    check_stream(1, text, "a\tb\n^[[2J^M^?^[[m\303\251\360\237\230\200");
    for (int terminal = 0; terminal < 2; terminal++) { // half a character at the end, and inside
        check_stream(terminal, "a\360\237", "a");
        check_stream(terminal, "a\303\251\303", "a\303\251");
        check_stream(terminal, "\360\237b", "\360\237b");
    }
}

// --- public templates ---------------------------------------------------------------------------

// JSON: the string at *p, decoded; the caller frees it.
static char *json_string(const char **p)
{
    char *s = xrealloc(NULL, strlen(*p) + 1, 1), *to = s;
    for (++*p; **p && **p != '"'; ++*p) {
        unsigned c = 0, low;
        if (**p != '\\') { *to++ = **p; continue; }
        const char *codes = "n\nt\tr\rb\bf\f", *code = strchr(codes, *++*p);
        if (**p != 'u') { *to++ = code ? code[1] : **p; continue; }
        sscanf(*p + 1, "%4x", &c);
        *p += 4;
        if (c >> 10 == 0x36 && sscanf(*p + 1, "\\u%4x", &low) == 1)
            c = 0x10000 + ((c & 1023) << 10) + (low & 1023), *p += 6;
        if (c < 0x80) *to++ = (char)c;
        else if (c < 0x800) to += sprintf(to, "%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
        else if (c < 0x10000)
            to += sprintf(to, "%c%c%c", 0xe0 | c >> 12, 0x80 | (c >> 6 & 63), 0x80 | (c & 63));
        else to += sprintf(to, "%c%c%c%c", 0xf0 | c >> 18, 0x80 | (c >> 12 & 63),
                           0x80 | (c >> 6 & 63), 0x80 | (c & 63));
    }
    *to = 0;
    *p += **p == '"';
    return s;
}

// Where the value of a key begins in the object at p (or the next item of an array: key NULL).
static const char *json_skip(const char *p)
{
    int depth = 0;
    do {
        if (*p == '"') free(json_string(&p)), p--;
        depth += (*p == '{' || *p == '[') - (*p == '}' || *p == ']');
        p++;
    } while (*p && (depth || !strchr(",}]", *p)));
    return p;
}

static const char *json_value(const char *p, const char *key)
{
    p += strcspn(p, "{") + 1;
    while (*(p += strspn(p, " \n\t,")) == '"') {
        char *name = json_string(&p);
        int found = !strcmp(name, key);
        free(name);
        p += strspn(p, " \n\t:");
        if (found) return p;
        p = json_skip(p);
    }
    return NULL;
}

static char *json_text(const char *p, const char *key) // NULL: null
{
    const char *value = json_value(p, key);
    return value && *value == '"' ? json_string(&value) : NULL;
}

// The next object in an array, or NULL.
static const char *json_next(const char *p)
{
    p += strcspn(p, "{]");
    return *p == '{' ? p : NULL;
}

static time_t in_june(time_t *now)
{
    (void)now;
    return 1749988800; // 15 June 2025, noon
}

// Whether a case is right: 1; refused though the template renders it: 0; wrong: -1.
static int check_case(const char *template, const char *bos, const char *eos, const char *c)
{
    Term pairs[16][2], messages[16];
    size_t n = 0;
    char *want = json_text(c, "rendered");
    const char *options = json_value(c, "options");
    int think = strncmp(options, "{}", 2) ? strstr(options, "true") < strchr(options, '}') &&
                strstr(options, "true") ? 1 : 0 : -1;
    const char *m = json_value(c, "messages");
    for (; (m = json_next(m)) && n < 16; m = json_skip(m), n++)
        messages[n] = make_message(pairs[n], json_text(m, "role"), json_text(m, "content"));
    Template t;
    run_template(&t, template, messages, (long)n, text_term(bos), text_term(eos), think);
    int right = *t.error ? !want : want && !strcmp(t.out, want) ? 1 : -1;
    free_template(&t);
    return right;
}

// Of one family: -1 if any case is wrong, 0 if any is refused, else 1.
static int check_family(const char *path)
{
    size_t len;
    const char *file = read_text(path, &len);
    char *template = json_text(file, "template"), *bos = json_text(file, "bos");
    char *eos = json_text(file, "eos");
    int result = 1, n = 0;
    for (const char *c = json_value(file, "cases"); (c = json_next(c)); c = json_skip(c), n++) {
        const char *options = json_value(c, "options");
        if (strncmp(options, "{}", 2) && strncmp(options, "{\"enable_thinking\"", 18)) continue;
        int right = check_case(template, bos ? bos : "", eos ? eos : "", c);
        result = right < result ? right : result;
    }
    CHECK(n > 0);
    if (result < 1) printf("test_chat: %s is %s\n", path, result ? "wrong" : "refused");
    return result;
}

static void test_public(void)
{
    char folder[PATH_MAX], path[2 * PATH_MAX];
    int right = 0, refused = 0, wrong = 0;
    if (!getenv("REFERENCE")) {
        printf("test_chat: REFERENCE is not set: the public templates are skipped\n");
        return;
    }
    snprintf(folder, sizeof folder, "%s/chat", getenv("REFERENCE"));
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!strstr(e->d_name, ".json")) continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        int result = check_family(path);
        right += result > 0, refused += !result, wrong += result < 0;
    }
    if (d) closedir(d);
    printf("test_chat: %d families right, %d refused, %d wrong\n", right, refused, wrong);
    CHECK(right >= 45);
    CHECK_INT(wrong, 0);
}

int main(void)
{
    clock_of_templates = in_june;
    test_language();
    test_jinja();
    test_limits();
    test_damaged();
    test_formats();
    test_thoughts();
    test_tokens();
    test_user_defined();
    test_spelled();
    test_system();
    test_twins();
    test_strip_right();
    test_rewind();
    test_choice();
    test_stream();
    test_public();
    return report("test_chat");
}
