// terminal.c: runs a program on a terminal of its own and types what a script says.
//
//   terminal OUT PROGRAM [ARGS...] < SCRIPT
//
// All that the program writes, with what the terminal echoes, goes to OUT. A line of the script:
//   > text      type the text and Enter
//   line N      type N times the letter x, and Enter
//   ^C          press Ctrl-C
//   ^D          press Ctrl-D
//   ? text      wait for the text in what came since the last wait, 60 seconds at most
//   more N      wait for N bytes, whatever they are
// The exit status is the program's; 99 if what was waited for did not come.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

static char seen[1 << 20]; // since the last wait
static size_t n_seen;
static int terminal;
static pid_t child;
static FILE *out;

// Takes what the program writes within some milliseconds; 0: it closed the terminal.
static int listen_for(int ms)
{
    struct pollfd p = {.fd = terminal, .events = POLLIN};
    char part[4096];
    if (poll(&p, 1, ms) <= 0) return 1;
    ssize_t n = read(terminal, part, sizeof part);
    if (n <= 0) return 0;
    fwrite(part, 1, (size_t)n, out);
    if (n_seen + (size_t)n >= sizeof seen) n_seen = 0;
    memcpy(seen + n_seen, part, (size_t)n);
    n_seen += (size_t)n;
    return 1;
}

static void type(const char *text, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t wrote = write(terminal, text + at, n - at > 512 ? 512 : n - at);
        if (wrote < 0) exit(98);
        at += (size_t)wrote;
        listen_for(1);
    }
}

static void type_many(long n)
{
    char *text = malloc((size_t)n + 1);
    memset(text, 'x', (size_t)n);
    text[n] = '\n';
    type(text, (size_t)n + 1);
    free(text);
}

static void wait_for(const char *text, size_t more)
{
    for (int tries = 0; tries < 600; tries++) {
        char *at = memmem(seen, n_seen, text, strlen(text));
        if (at && n_seen >= more) {
            size_t used = more ? more : (size_t)(at - seen) + strlen(text);
            memmove(seen, seen + used, n_seen -= used);
            return;
        }
        if (!listen_for(100)) break;
    }
    fprintf(stderr, "terminal: '%s' did not come\n", text);
    kill(child, SIGKILL);
    exit(99);
}

int main(int argc, char **argv)
{
    char line[4096];
    terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (argc < 3 || terminal < 0 || grantpt(terminal) || unlockpt(terminal)) return 98;
    out = fopen(argv[1], "w");
    child = fork();
    if (!child) {
        setsid();
        int fd = open(ptsname(terminal), O_RDWR);
        ioctl(fd, TIOCSCTTY, 0);
        ioctl(fd, TIOCSWINSZ, &(struct winsize){.ws_row = 24, .ws_col = 80});
        for (int i = 0; i < 3; i++) dup2(fd, i);
        execv(argv[2], argv + 2);
        _exit(127);
    }
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "> ", 2)) type(line + 2, strlen(line + 2)); // with its newline
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "line ", 5)) type_many(atol(line + 5));
        else if (!strcmp(line, "^C")) type("\003", 1);
        else if (!strcmp(line, "^D")) type("\004", 1);
        else if (!strncmp(line, "? ", 2)) wait_for(line + 2, 0);
        else if (!strncmp(line, "more ", 5)) wait_for("", (size_t)atol(line + 5));
    }
    int status = 0, ended = 0;
    for (int tries = 0; tries < 600 && !ended; tries++) {
        ended = waitpid(child, &status, WNOHANG) == child;
        if (!listen_for(50)) usleep(50000);
    }
    while (poll(&(struct pollfd){.fd = terminal, .events = POLLIN}, 1, 50) > 0)
        if (!listen_for(0)) break;
    if (!ended) {
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
    }
    fclose(out);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
