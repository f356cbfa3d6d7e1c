/* A host in C that uses only the header. ../capi.rs builds and runs it as
 * `host ROLE [NAME=VALUE]... [-- COMMAND|TARGET]`, where NAME=VALUE is a setting.
 * It prints "all as expected" and exits with 0 if every expectation is met. */
#define _POSIX_C_SOURCE 200809L

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "upstreamproxy.h"

#define EXPECT(condition)                                                                  \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "host.c:%d: not true: %s (last error: %s)\n", __LINE__,          \
                    #condition, upstreamproxy_last_error());                               \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

static char **settings;
static char **command;
static int lines;
static pthread_mutex_t lines_lock = PTHREAD_MUTEX_INITIALIZER;

/* The log callback. It prints to standard error, where the test searches for secrets. */
static void take_line(void *context, int level, const char *message)
{
    static const char *const names[] = {"off", "error", "warn", "info", "debug"};
    EXPECT(context == &lines && level >= 1 && level <= 4 && strchr(message, '\n') == NULL);
    /* A call that is not allowed in the callback returns an error instead of blocking. */
    EXPECT(upstreamproxy_log_to(NULL, NULL, 0) == UPSTREAMPROXY_ERROR_IN_CALLBACK);
    EXPECT(upstreamproxy_log_to_fd(2, 4) == UPSTREAMPROXY_ERROR_IN_CALLBACK);
    pthread_mutex_lock(&lines_lock);
    lines++;
    pthread_mutex_unlock(&lines_lock);
    fprintf(stderr, "%s: %s\n", names[level], message);
}

static upstreamproxy_config *configured(const char *const *environment)
{
    upstreamproxy_config *config = NULL;
    char **setting;
    EXPECT(upstreamproxy_config_new(environment, &config) == UPSTREAMPROXY_OK);
    for (setting = settings; *setting != NULL && strcmp(*setting, "--") != 0; setting++) {
        char name[64];
        const char *equals = strchr(*setting, '=');
        EXPECT(equals != NULL && (size_t)(equals - *setting) < sizeof name);
        memcpy(name, *setting, (size_t)(equals - *setting));
        name[equals - *setting] = '\0';
        EXPECT(upstreamproxy_config_set(config, name, equals + 1) == UPSTREAMPROXY_OK);
    }
    return config;
}

static upstreamproxy *started(void)
{
    upstreamproxy_config *config = configured(NULL);
    upstreamproxy *proxy = NULL;
    EXPECT(upstreamproxy_start(config, &proxy) == UPSTREAMPROXY_OK);
    upstreamproxy_config_free(config);
    EXPECT(upstreamproxy_state(proxy) == UPSTREAMPROXY_STATE_ENABLED);
    EXPECT(upstreamproxy_stage(proxy) == NULL && upstreamproxy_reason(proxy) == NULL);
    return proxy;
}

static void run_command(const upstreamproxy *proxy)
{
    pid_t child;
    int status;
    EXPECT(posix_spawnp(&child, command[0], NULL, NULL, command, upstreamproxy_environment(proxy)) == 0);
    while (waitpid(child, &status, 0) < 0)
        EXPECT(errno == EINTR);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The environment for a child contains exactly the variables that are listed one by one. */
static void expect_variables(const upstreamproxy *proxy)
{
    char *const *environment = upstreamproxy_environment(proxy);
    size_t count = upstreamproxy_env_count(proxy);
    size_t index;
    EXPECT(count > 20);
    for (index = 0; index < count; index++) {
        const char *name = upstreamproxy_env_name(proxy, index);
        const char *value = upstreamproxy_env_value(proxy, index);
        size_t found = 0, at;
        for (at = 0; environment[at] != NULL; at++)
            found += strncmp(environment[at], name, strlen(name)) == 0 && environment[at][strlen(name)] == '='
                     && strcmp(environment[at] + strlen(name) + 1, value) == 0;
        EXPECT(found == 1);
        if (strcmp(name, "HTTPS_PROXY") == 0)
            EXPECT(strcmp(value, upstreamproxy_url(proxy)) == 0);
        if (strcmp(name, "SSL_CERT_FILE") == 0)
            EXPECT(strcmp(value, upstreamproxy_ca_bundle(proxy)) == 0);
    }
    EXPECT(upstreamproxy_env_name(proxy, count) == NULL && upstreamproxy_env_value(proxy, count) == NULL);
}

/* Starts the proxy, runs a command through it, and stops it. */
static void *run_once(void *unused)
{
    upstreamproxy *proxy = started();
    struct upstreamproxy_stats stats;
    struct upstreamproxy_report report;
    char port[8];
    (void)unused;
    sprintf(port, ":%u", (unsigned)upstreamproxy_port(proxy));
    EXPECT(strstr(upstreamproxy_url(proxy), port) != NULL);
    expect_variables(proxy);
    run_command(proxy);
    EXPECT(upstreamproxy_read_stats(proxy, &stats, sizeof stats) == UPSTREAMPROXY_OK);
    EXPECT(stats.tunnels == 1 && stats.bytes_up > 0 && stats.bytes_down > 0);
    EXPECT(upstreamproxy_shutdown(proxy, UPSTREAMPROXY_DRAIN_DEFAULT, &report, sizeof report) == UPSTREAMPROXY_OK);
    EXPECT(upstreamproxy_state(proxy) == UPSTREAMPROXY_STATE_STOPPED && report.cut == 0);
    EXPECT(upstreamproxy_shutdown(proxy, 0, NULL, 0) == UPSTREAMPROXY_OK);
    EXPECT(upstreamproxy_read_stats(proxy, &stats, sizeof stats) == UPSTREAMPROXY_OK);
    EXPECT(stats.tunnels == 1 && stats.live == 0 && stats.standby_open == 0);
    upstreamproxy_free(proxy);
    return NULL;
}

static int entries(const char *path)
{
    DIR *directory = opendir(path);
    int count = 0;
    EXPECT(directory != NULL);
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

/* Sleeps between two polls of a state that has no event. */
static void poll_pause(void)
{
    struct timespec moment = {0, 1000000};
    nanosleep(&moment, NULL);
}

/* The state that a library must not change: signal handlers, signal mask, threads, descriptors. */
struct process_state {
    int threads, descriptors;
    void (*handlers[32])(int);
    int blocked[32];
};

static struct process_state read_state(void)
{
    struct process_state state;
    sigset_t mask;
    int number;
    memset(&state, 0, sizeof state);
    state.threads = entries("/proc/self/task");
    state.descriptors = entries("/proc/self/fd");
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    for (number = 1; number < 32; number++) {
        struct sigaction action;
        sigaction(number, NULL, &action);
        state.handlers[number] = action.sa_handler;
        state.blocked[number] = sigismember(&mask, number);
    }
    return state;
}

static void expect_as_before(const struct process_state *before)
{
    struct process_state now = read_state();
    int polls;
    /* A joined thread remains in /proc for a short time. */
    for (polls = 0; now.threads > before->threads && polls < 10000; polls++) {
        poll_pause();
        now = read_state();
    }
    EXPECT(now.threads == before->threads && now.descriptors == before->descriptors);
    EXPECT(memcmp(&now, before, sizeof now) == 0);
}

/* Starts and stops the proxy twice in sequence, then twice in parallel. */
static void lifecycle(void)
{
    struct process_state before;
    pthread_t threads[2];
    int count;
    EXPECT(upstreamproxy_log_to(take_line, &lines, 4) == UPSTREAMPROXY_OK);
    before = read_state();
    run_once(NULL);
    expect_as_before(&before);
    run_once(NULL);
    expect_as_before(&before);
    for (count = 0; count < 2; count++)
        EXPECT(pthread_create(&threads[count], NULL, run_once, NULL) == 0);
    for (count = 0; count < 2; count++)
        pthread_join(threads[count], NULL);
    expect_as_before(&before);
    EXPECT(lines > 0);
    /* After the log is switched off, the callback is not called. */
    EXPECT(upstreamproxy_log_to(NULL, NULL, 0) == UPSTREAMPROXY_OK);
    count = lines;
    run_once(NULL);
    EXPECT(lines == count);
    /* Freeing a running proxy stops it first. */
    upstreamproxy_free(started());
    expect_as_before(&before);
}

static void expect_error(int code, int expected, const char *message)
{
    EXPECT(code == expected);
    EXPECT(strstr(upstreamproxy_last_error(), message) != NULL);
}

/* Without a session the proxy is disabled, and the environment for children is unchanged. */
static void disabled(void)
{
    static const char *const environment[] = {"PATH=/bin", "NO_PROXY=a.example", NULL};
    upstreamproxy_config *config = configured(environment);
    upstreamproxy *proxy = NULL;
    struct upstreamproxy_stats stats;
    struct upstreamproxy_report report;
    char *const *child;
    EXPECT(upstreamproxy_start(config, &proxy) == UPSTREAMPROXY_DISABLED);
    EXPECT(upstreamproxy_state(proxy) == UPSTREAMPROXY_STATE_DISABLED);
    printf("%s: %s\n", upstreamproxy_stage(proxy), upstreamproxy_reason(proxy));
    EXPECT(upstreamproxy_port(proxy) == 0 && upstreamproxy_url(proxy) == NULL && upstreamproxy_ca_bundle(proxy) == NULL);
    EXPECT(upstreamproxy_env_count(proxy) == 0 && upstreamproxy_env_name(proxy, 0) == NULL);
    child = upstreamproxy_environment(proxy);
    EXPECT(strcmp(child[0], "NO_PROXY=a.example") == 0 && strcmp(child[1], "PATH=/bin") == 0 && child[2] == NULL);
    EXPECT(upstreamproxy_read_stats(proxy, &stats, sizeof stats) == UPSTREAMPROXY_OK && stats.tunnels == 0);
    EXPECT(upstreamproxy_abort(proxy) == UPSTREAMPROXY_OK);
    EXPECT(upstreamproxy_shutdown(proxy, 0, &report, sizeof report) == UPSTREAMPROXY_OK && report.ended == 0);
    EXPECT(upstreamproxy_state(proxy) == UPSTREAMPROXY_STATE_DISABLED);
    upstreamproxy_free(proxy);
    /* A cancelled configuration gives a disabled proxy. */
    EXPECT(upstreamproxy_config_set(config, "embedded", "true") == UPSTREAMPROXY_OK);
    EXPECT(upstreamproxy_config_cancel(config) == UPSTREAMPROXY_OK);
    EXPECT(upstreamproxy_start(config, &proxy) == UPSTREAMPROXY_DISABLED);
    EXPECT(strstr(upstreamproxy_reason(proxy), "called off") != NULL);
    upstreamproxy_free(proxy);
    upstreamproxy_config_free(config);
}

/* Every misuse returns an error code and sets a message. */
static void misuse(void)
{
    static const char *const empty[] = {NULL};
    static const char *const odd[] = {"NO_EQUALS_SIGN", NULL};
    upstreamproxy_config *config = NULL;
    upstreamproxy *proxy = (upstreamproxy *)&config;
    struct upstreamproxy_stats stats;

    EXPECT(upstreamproxy_abi_version() == UPSTREAMPROXY_ABI_VERSION);
    EXPECT(strchr(upstreamproxy_version(), '.') != NULL);
    EXPECT(strcmp(upstreamproxy_last_error(), "") == 0);

    expect_error(upstreamproxy_config_new(empty, NULL), UPSTREAMPROXY_ERROR_NULL, "config is NULL");
    EXPECT(upstreamproxy_config_new(odd, &config) == UPSTREAMPROXY_OK);
    upstreamproxy_config_free(config);
    EXPECT(upstreamproxy_config_new(empty, &config) == UPSTREAMPROXY_OK);
    expect_error(upstreamproxy_config_set(NULL, "when", "always"), UPSTREAMPROXY_ERROR_NULL, "config");
    expect_error(upstreamproxy_config_set(config, NULL, "always"), UPSTREAMPROXY_ERROR_NULL, "name");
    expect_error(upstreamproxy_config_set(config, "when", NULL), UPSTREAMPROXY_ERROR_NULL, "value");
    expect_error(upstreamproxy_config_set(config, "colour", "red"), UPSTREAMPROXY_ERROR_SETTING, "colour");
    expect_error(upstreamproxy_config_set(config, "when", "perhaps"), UPSTREAMPROXY_ERROR_VALUE, "auto, always, never");
    expect_error(upstreamproxy_config_set(config, "keepalive", "soon"), UPSTREAMPROXY_ERROR_VALUE, "duration");
    expect_error(upstreamproxy_config_set(config, "base-url", "ftp://a"), UPSTREAMPROXY_ERROR_VALUE, "base-url");
    expect_error(upstreamproxy_config_cancel(NULL), UPSTREAMPROXY_ERROR_NULL, "config");
    {
        const char *message = upstreamproxy_last_error();
        expect_error(upstreamproxy_config_set_token(NULL, "t", 1), UPSTREAMPROXY_ERROR_NULL, "config");
        expect_error(upstreamproxy_config_set_token(config, NULL, 1), UPSTREAMPROXY_ERROR_NULL, "token");
        expect_error(upstreamproxy_config_set_token(config, "a b", 3), UPSTREAMPROXY_ERROR_VALUE, "visible ASCII");
        expect_error(upstreamproxy_config_set_token(config, "a", 0), UPSTREAMPROXY_ERROR_VALUE, "empty");
        EXPECT(upstreamproxy_config_set_token(config, "a\0b", 1) == UPSTREAMPROXY_OK);
        EXPECT(message == upstreamproxy_last_error() && strstr(message, "empty") != NULL);
    }

    expect_error(upstreamproxy_start(NULL, &proxy), UPSTREAMPROXY_ERROR_NULL, "config");
    EXPECT(proxy == NULL);
    expect_error(upstreamproxy_start(config, NULL), UPSTREAMPROXY_ERROR_NULL, "proxy");
    EXPECT(upstreamproxy_start(config, &proxy) == UPSTREAMPROXY_DISABLED);
    expect_error(upstreamproxy_read_stats(proxy, NULL, sizeof stats), UPSTREAMPROXY_ERROR_NULL, "stats");
    EXPECT(upstreamproxy_replace_token(proxy, "t", 1) == UPSTREAMPROXY_DISABLED);
    expect_error(upstreamproxy_replace_token(NULL, "t", 1), UPSTREAMPROXY_ERROR_NULL, "proxy");
    expect_error(upstreamproxy_replace_token(proxy, NULL, 1), UPSTREAMPROXY_ERROR_NULL, "token");
    expect_error(upstreamproxy_replace_token(proxy, "a b", 3), UPSTREAMPROXY_ERROR_VALUE, "visible ASCII");
    expect_error(upstreamproxy_shutdown(proxy, -2, NULL, 0), UPSTREAMPROXY_ERROR_ARGUMENT, "-2 ms");
    upstreamproxy_free(proxy);

    expect_error(upstreamproxy_state(NULL), UPSTREAMPROXY_ERROR_NULL, "proxy");
    expect_error(upstreamproxy_read_stats(NULL, &stats, sizeof stats), UPSTREAMPROXY_ERROR_NULL, "proxy");
    expect_error(upstreamproxy_shutdown(NULL, 0, NULL, 0), UPSTREAMPROXY_ERROR_NULL, "proxy");
    expect_error(upstreamproxy_abort(NULL), UPSTREAMPROXY_ERROR_NULL, "proxy");
    EXPECT(upstreamproxy_stage(NULL) == NULL && upstreamproxy_reason(NULL) == NULL);
    EXPECT(upstreamproxy_port(NULL) == 0 && upstreamproxy_url(NULL) == NULL && upstreamproxy_ca_bundle(NULL) == NULL);
    EXPECT(upstreamproxy_env_count(NULL) == 0 && upstreamproxy_environment(NULL) == NULL);
    EXPECT(upstreamproxy_env_name(NULL, 0) == NULL && upstreamproxy_env_value(NULL, 0) == NULL);
    expect_error(upstreamproxy_log_to(take_line, NULL, 5), UPSTREAMPROXY_ERROR_ARGUMENT, "level 5");
    upstreamproxy_free(NULL);
    upstreamproxy_config_free(NULL);
    upstreamproxy_config_free(config);
}

/* The log goes to a descriptor that no one reads: nothing waits, and the lost lines are counted. When
 * the reader is gone, no signal ends the host. */
static void log_to_fd(void)
{
    static char text[1 << 20];
    const char *const environment[] = {"UPSTREAMPROXY_WHEN=always", NULL};
    upstreamproxy_config *config = NULL;
    upstreamproxy *proxy = NULL;
    int ends[2], kind, count, lost;
    ssize_t got;
    char *report;
    EXPECT(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    expect_error(upstreamproxy_log_to_fd(-1, 4), UPSTREAMPROXY_ERROR_ARGUMENT, "descriptor -1");
    expect_error(upstreamproxy_log_to_fd(12345, 4), UPSTREAMPROXY_ERROR_ARGUMENT, "descriptor 12345");
    expect_error(upstreamproxy_log_to_fd(1, 5), UPSTREAMPROXY_ERROR_ARGUMENT, "level 5");
    EXPECT(upstreamproxy_config_new(environment, &config) == UPSTREAMPROXY_OK);
    for (kind = 0; kind < 2; kind++) {
        struct process_state before = read_state();
        EXPECT((kind == 0 ? pipe(ends) : socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) == 0);
        if (kind == 0)
            expect_error(upstreamproxy_log_to_fd(ends[0], 4), UPSTREAMPROXY_ERROR_ARGUMENT, "writing");
        EXPECT(upstreamproxy_log_to_fd(ends[1], 2) == UPSTREAMPROXY_OK);
        /* Each start writes one warning. */
        for (count = 0; count < 4000; count++) {
            EXPECT(upstreamproxy_start(config, &proxy) == UPSTREAMPROXY_DISABLED);
            upstreamproxy_free(proxy);
        }
        EXPECT((fcntl(ends[1], F_GETFL) & O_NONBLOCK) == 0);
        got = read(ends[0], text, sizeof text - 1);
        EXPECT(got > 0);
        text[got] = '\0';
        EXPECT(strncmp(text, "upstreamproxy: warn: disabled at gate: ", 39) == 0);
        EXPECT(upstreamproxy_start(config, &proxy) == UPSTREAMPROXY_DISABLED);
        upstreamproxy_free(proxy);
        got = read(ends[0], text, sizeof text - 1);
        EXPECT(got > 0);
        text[got] = '\0';
        report = strstr(text, "the log is too slow: ");
        EXPECT(report != NULL && sscanf(report, "the log is too slow: %d lines were dropped", &lost) == 1);
        EXPECT(lost > 0 && lost < 4000);
        close(ends[0]);
        EXPECT(upstreamproxy_start(config, &proxy) == UPSTREAMPROXY_DISABLED);
        upstreamproxy_free(proxy);
        EXPECT(upstreamproxy_log_to_fd(ends[1], 0) == UPSTREAMPROXY_OK);
        close(ends[1]);
        expect_as_before(&before);
    }
    upstreamproxy_config_free(config);
}

static pthread_t main_thread;
static sem_t stop_requested;
static volatile sig_atomic_t on_main_thread;

static void take_signal(int number)
{
    (void)number;
    on_main_thread = pthread_equal(pthread_self(), main_thread) != 0;
    sem_post(&stop_requested);
}

/* Serves until SIGTERM. The signal handler must run on the host's only thread; SIGPIPE keeps its
 * default action. */
static void serve(void)
{
    upstreamproxy *proxy;
    struct upstreamproxy_stats stats;
    struct upstreamproxy_report report;
    main_thread = pthread_self();
    EXPECT(sem_init(&stop_requested, 0, 0) == 0);
    EXPECT(upstreamproxy_log_to(take_line, &lines, 4) == UPSTREAMPROXY_OK);
    EXPECT(signal(SIGTERM, take_signal) != SIG_ERR && signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    proxy = started();
    printf("{\"port\":%u}\n", (unsigned)upstreamproxy_port(proxy));
    fflush(stdout);
    while (sem_wait(&stop_requested) != 0)
        EXPECT(errno == EINTR);
    EXPECT(on_main_thread);
    EXPECT(upstreamproxy_shutdown(proxy, 0, &report, sizeof report) == UPSTREAMPROXY_OK);
    EXPECT(upstreamproxy_read_stats(proxy, &stats, sizeof stats) == UPSTREAMPROXY_OK);
    printf("%lu tunnels\n", (unsigned long)stats.tunnels);
    upstreamproxy_free(proxy);
}

static void *stop(void *proxy)
{
    struct upstreamproxy_report report;
    EXPECT(upstreamproxy_shutdown((upstreamproxy *)proxy, 3600 * 1000, &report, sizeof report) == UPSTREAMPROXY_OK);
    EXPECT(report.cut == 1);
    return NULL;
}

/* Opens a tunnel to the target (given in place of a command) and sends a byte, which the target
 * does not answer. */
static int tunnel(const upstreamproxy *proxy)
{
    struct sockaddr_in address;
    char head[512];
    ssize_t got;
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons(upstreamproxy_port(proxy));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT(connect(connection, (struct sockaddr *)&address, sizeof address) == 0);
    sprintf(head, "CONNECT %.200s HTTP/1.1\r\nHost: %.200s\r\n\r\n", command[0], command[0]);
    EXPECT(send(connection, head, strlen(head), 0) == (ssize_t)strlen(head));
    got = recv(connection, head, sizeof head, 0);
    EXPECT(got > 12 && memcmp(head, "HTTP/1.1 200", 12) == 0);
    EXPECT(send(connection, "?", 1, 0) == 1);
    return connection;
}

/* Two threads wait for a shutdown with a drain time of one hour, and a third aborts it. A forked
 * child may not stop the parent's proxy. */
static void contend(void)
{
    upstreamproxy *proxy = started();
    struct upstreamproxy_stats stats;
    pthread_t threads[2];
    pid_t child;
    int connection = tunnel(proxy);
    int count, status;
    do {
        poll_pause();
        EXPECT(upstreamproxy_read_stats(proxy, &stats, sizeof stats) == UPSTREAMPROXY_OK);
    } while (stats.bytes_up == 0);

    child = fork();
    if (child == 0) {
        int refused = upstreamproxy_shutdown(proxy, 0, NULL, 0) == UPSTREAMPROXY_ERROR_FORKED
                    && upstreamproxy_abort(proxy) == UPSTREAMPROXY_ERROR_FORKED
                    && upstreamproxy_env_count(proxy) > 20;
        upstreamproxy_free(proxy);
        _exit(refused ? 0 : 1);
    }
    EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT(upstreamproxy_state(proxy) == UPSTREAMPROXY_STATE_ENABLED);

    for (count = 0; count < 2; count++)
        EXPECT(pthread_create(&threads[count], NULL, stop, proxy) == 0);
    while (upstreamproxy_state(proxy) != UPSTREAMPROXY_STATE_STOPPING)
        poll_pause();
    EXPECT(upstreamproxy_read_stats(proxy, &stats, sizeof stats) == UPSTREAMPROXY_OK && stats.live == 1);
    EXPECT(upstreamproxy_abort(proxy) == UPSTREAMPROXY_OK);
    for (count = 0; count < 2; count++)
        pthread_join(threads[count], NULL);
    EXPECT(upstreamproxy_state(proxy) == UPSTREAMPROXY_STATE_STOPPED);
    upstreamproxy_free(proxy);
    close(connection);
}

int main(int count, char **arguments)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } roles[] = {{"lifecycle", lifecycle}, {"disabled", disabled}, {"misuse", misuse}, {"log_to_fd", log_to_fd}, {"serve", serve}, {"contend", contend}};
    size_t role;
    EXPECT(count > 1);
    settings = arguments + 2;
    for (command = settings; *command != NULL; command++)
        if (strcmp(*command, "--") == 0) {
            command++;
            break;
        }
    for (role = 0; role < sizeof roles / sizeof roles[0]; role++)
        if (strcmp(arguments[1], roles[role].name) == 0) {
            roles[role].run();
            puts("all as expected");
            return 0;
        }
    fprintf(stderr, "unknown role: %s\n", arguments[1]);
    return 2;
}
