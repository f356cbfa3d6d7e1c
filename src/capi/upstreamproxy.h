/* upstreamproxy.h - the C API of upstreamproxy (MIT OR Apache-2.0).
 *
 * A CONNECT proxy on loopback inside this process. Each of its tunnels is a WebSocket to an upstream gateway. It provides
 * the environment variables with which child processes (curl, git, npm, pip, ...) find the proxy and trust it.
 *
 *     upstreamproxy_config *config;
 *     upstreamproxy *proxy;
 *
 *     upstreamproxy_config_new(NULL, &config);               settings from the environment of this process,
 *     upstreamproxy_config_set(config, "keepalive", "30s");  and from the host
 *     if (upstreamproxy_start(config, &proxy) >= 0) {        enabled or disabled: both have an environment for children
 *         execve(path, argv, upstreamproxy_environment(proxy));   in a child process
 *         upstreamproxy_shutdown(proxy, UPSTREAMPROXY_DRAIN_DEFAULT, NULL, 0);
 *         upstreamproxy_free(proxy);
 *     }
 *     upstreamproxy_config_free(config);
 *
 * A complete program, and how to build the library: src/manual/c-api.md.
 *
 * RULES FOR ALL FUNCTIONS
 *
 * Threads. Any thread may call any function, also at the same time on the same object, with two exceptions: no other thread
 * may use an object while it is freed, and no thread may change the environment (setenv, putenv) while
 * upstreamproxy_config_new(NULL, ...) or upstreamproxy_start runs. The library starts threads named "uproxy-...", "tun-N"
 * and "gw-N". They block every signal except SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP and SIGSYS, so that the handlers of
 * the host run on the threads of the host.
 *
 * Results. A function that returns int returns UPSTREAMPROXY_OK (0) or a positive value if it succeeded, and a negative
 * UPSTREAMPROXY_ERROR_ code otherwise. After an error nothing has changed, and upstreamproxy_last_error() has the message.
 *
 * Pointers. A NULL that is not allowed is UPSTREAMPROXY_ERROR_NULL (other functions than those that return int return NULL
 * or 0), never a crash. Any other pointer must be valid. Strings end with a zero byte. The library copies strings passed to
 * it. Strings that it returns belong to the library: never free or change them. Texts of the library are UTF-8; paths and
 * variables are bytes, as in the system.
 *
 * Process state. The library installs no signal handler. It does not change the signal mask, the locale, the working
 * directory, the environment or the limits of the process. It raises no SIGPIPE, so a host may keep the default action. It
 * prints nothing, with one exception: a bug in the library (a panic, reported as UPSTREAMPROXY_ERROR_INTERNAL) prints a
 * message on standard error. It may return free heap memory to the system (malloc_trim). By default it makes the
 * process non-dumpable before the session token is in memory (prctl PR_SET_DUMPABLE 0: no core file, no debugger,
 * /proc/PID for root only), and the process stays so. The setting "harden" = "false" disables that.
 *
 * fork. A child made by fork without exec does not have the threads. It must not use a proxy of its parent, but may read
 * its strings until it calls exec. In the child upstreamproxy_shutdown, _abort and _free fail with
 * UPSTREAMPROXY_ERROR_FORKED and do nothing. All descriptors are close-on-exec.
 *
 * The log callback must not throw an exception or call longjmp. Do not dlclose the library: a thread in a name lookup, which
 * cannot be cancelled, may still run its code.
 */
#ifndef UPSTREAMPROXY_H
#define UPSTREAMPROXY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. It increases when programs compiled against an older header would no longer work. New
 * functions, codes, settings, and fields at the end of a struct do not increase it. Compare it with
 * upstreamproxy_abi_version() at run time. */
#define UPSTREAMPROXY_ABI_VERSION 1

/* Codes. */
#define UPSTREAMPROXY_OK 0        /* success; from upstreamproxy_start: the proxy is enabled */
#define UPSTREAMPROXY_DISABLED 1  /* from upstreamproxy_start: the proxy is disabled, which is not an error */
#define UPSTREAMPROXY_ERROR_NULL (-1)        /* a pointer that must not be NULL is NULL */
#define UPSTREAMPROXY_ERROR_ARGUMENT (-2)    /* an argument is out of range */
#define UPSTREAMPROXY_ERROR_SETTING (-3)     /* there is no setting of this name */
#define UPSTREAMPROXY_ERROR_VALUE (-4)       /* the setting cannot have this value */
#define UPSTREAMPROXY_ERROR_IN_CALLBACK (-5) /* the log callback must not call this function */
#define UPSTREAMPROXY_ERROR_FORKED (-6)      /* another process started the proxy */
#define UPSTREAMPROXY_ERROR_LOG_TAKEN (-7)   /* the program is written in Rust and has set another logger */
#define UPSTREAMPROXY_ERROR_INTERNAL (-8)    /* a bug in the library; please report it */

/* The state of a proxy: upstreamproxy_state. */
#define UPSTREAMPROXY_STATE_ENABLED 0  /* it is enabled */
#define UPSTREAMPROXY_STATE_DISABLED 1 /* it is disabled, and never was enabled */
#define UPSTREAMPROXY_STATE_STOPPING 2 /* a shutdown is in progress */
#define UPSTREAMPROXY_STATE_STOPPED 3  /* the shutdown is complete */

/* For drain_ms of upstreamproxy_shutdown: use the setting "drain-timeout". */
#define UPSTREAMPROXY_DRAIN_DEFAULT (-1)

/* Settings for a start. Made by upstreamproxy_config_new, freed by upstreamproxy_config_free. */
typedef struct upstreamproxy_config upstreamproxy_config;

/* The result of a start. Made by upstreamproxy_start, freed by upstreamproxy_free. */
typedef struct upstreamproxy upstreamproxy;

/* Counters. New fields are added at the end; programs pass the size that they were compiled with. */
struct upstreamproxy_stats {
    uint64_t live;        /* connections that are served now */
    uint64_t tunnels;     /* tunnels that were established */
    uint64_t standby_used; /* of these, tunnels that used a standby connection */
    uint64_t standby_open; /* standby connections that are open now */
    uint64_t refused;     /* connections that were refused */
    uint64_t broken;      /* tunnels that broke or were cut */
    uint64_t bytes_up;    /* bytes from clients to targets */
    uint64_t bytes_down;  /* bytes from targets to clients */
};

/* What happened to the tunnels that were open when a shutdown began. */
struct upstreamproxy_report {
    uint64_t ended; /* ended by themselves, or closed cleanly because they were silent */
    uint64_t cut;   /* cut at the deadline */
};

/* ---- The library ---- */

/* UPSTREAMPROXY_ABI_VERSION of the linked library. */
uint32_t upstreamproxy_abi_version(void);

/* The version of the library, such as "0.1.0"; always valid. */
const char *upstreamproxy_version(void);

/* The message of the last error of a call in this thread: one sentence for the user of the program; "" if there was none.
 * The pointer is the same for the life of the thread, and the next error replaces the text, so that
 * printf("%d %s", upstreamproxy_config_set(...), upstreamproxy_last_error()) prints the message of that call. Calls that
 * succeed do not change it. */
const char *upstreamproxy_last_error(void);

/* A function of the host that receives the log. `context` is the one passed to upstreamproxy_log_to; `level` is 1 error,
 * 2 warning, 3 information (one line per tunnel), 4 debug. `message` is one line of UTF-8 without control characters and
 * without a line end, valid during this call only. It never contains a secret.
 *
 * Any thread may call it, also several at the same time; some have stacks of 256 KiB. While it blocks, a tunnel blocks. It
 * must not call upstreamproxy_log_to, _log_to_fd, _start, _shutdown or _free (UPSTREAMPROXY_ERROR_IN_CALLBACK; _free then frees
 * nothing). It may call the other functions; what they log is dropped. */
typedef void (*upstreamproxy_log_callback)(void *context, int level, const char *message);

/* Sends the log to `callback`: records up to `level`, from 0 (nothing) to 4. By default the log is dropped. `context` may be
 * NULL; the library does not dereference it. If `callback` is NULL, the log is dropped again.
 *
 * There is one log for the whole library. When this function returns, the previous callback is not running and is not called
 * any more. It waits for running calls, so do not hold a lock that the callback takes. */
int upstreamproxy_log_to(upstreamproxy_log_callback callback, void *context, int level);

/* Writes the log to a copy of the descriptor `fd` instead: one line per record, as "upstreamproxy: warn: message" (without
 * a level for information). For hosts whose callback would need a lock or an event loop that may wait for this library.
 *
 * A write to a pipe, a terminal or a socket never waits for its reader, and raises no SIGPIPE. Lines for which there is no
 * room are dropped; the next line that can be written is preceded by one with their number. The flags of `fd` do not
 * change, and the host may close it. The copy is closed by the next call of upstreamproxy_log_to or _log_to_fd, or with
 * level 0. UPSTREAMPROXY_ERROR_ARGUMENT if `fd` is not open for writing. */
int upstreamproxy_log_to_fd(int fd, int level);

/* ---- Settings ---- */

/* Makes settings and writes them to *config; after an error *config is NULL.
 *
 * `environment` is the environment that child processes would have without the proxy: an array of "NAME=VALUE" strings that
 * ends with NULL, such as `environ`; it is copied. NULL: the current environment of this process. The library reads three
 * things in it: the variables of the session (CLAUDE_CODE_REMOTE, CCR_UPSTREAM_PROXY_ENABLED,
 * CLAUDE_CODE_REMOTE_SESSION_ID, ANTHROPIC_BASE_URL); settings as UPSTREAMPROXY_<NAME>, with "_" for "-"; and what children
 * inherit (NO_PROXY, SSL_CERT_FILE and others are merged, HOME determines where the CA bundle is written). An entry without
 * "=" is ignored. An array with only the NULL is an empty environment.
 *
 * A wrong value in the environment is not an error here: the proxy is then disabled, and the reason names the variable. */
int upstreamproxy_config_new(const char *const *environment, upstreamproxy_config **config);

/* Sets one setting. It overrides the environment and earlier values. UPSTREAMPROXY_ERROR_SETTING if there is no setting of
 * this name, UPSTREAMPROXY_ERROR_VALUE if it cannot have this value; an empty value is refused too. It has no effect on a
 * start that is running or complete.
 *
 * Durations: "500ms", "10s", "2m", or a number of seconds. Switches: "1", "true", "yes", "on", or "0", "false", "no", "off".
 * Values of a list are separated by spaces.
 *
 *   when                auto (default): run if the two switches of the session are on; always: do not check them, and
 *                       require base-url and session-id; never: keep the proxy disabled
 *   embedded            switch: start a gateway inside this process, with its own session and token, and use it as the
 *                       upstream; implies when = always; base-url, session-id and the token settings have no effect
 *   base-url            base URL of the upstream: https://..., or http:// for loopback
 *   session-id          session ID sent to the upstream: visible ASCII without a colon, at most 256 bytes
 *   token-file          file with the session token, at most 64 KiB; default /run/ccr/session_token. It is deleted once
 *                       the proxy is enabled, so a second start needs a new one. A FIFO, and "-" for standard input, is
 *                       read once, within 10 s; a symbolic link must lead below its own directory, and is kept
 *   token-fd            number of an inherited descriptor, not close-on-exec, from which the token is read once
 *   keep-token          switch: do not delete the token file
 *   upstream-ca         PEM file with additional roots for connections to the upstream; with embedded, for verifying targets
 *   upstream-uid        another user ID whose process may have the port of an http upstream; default only this user and
 *                       root. The token is sent to no other
 *   parent-proxy        HTTP proxy on the path to the upstream, http://[USER:PASSWORD@]HOST:PORT, or none; with embedded, on
 *                       the path to targets; default: HTTPS_PROXY or ALL_PROXY of the environment, except for hosts in
 *                       its NO_PROXY
 *   system-ca           PEM file with the base roots; default SSL_CERT_FILE of the environment, or the roots of the
 *                       distribution
 *   ca-bundle           where to write the merged CA bundle for children; default ~/.ccr/ca-bundle.crt (for root whose home
 *                       is closed to other users, /run/upstreamproxy/ca-bundle.crt), with embedded a
 *                       private temporary directory that is removed with the proxy
 *   listen              ADDR:PORT, or PORT of 127.0.0.1; default 127.0.0.1:0; port 0 selects a free port
 *   allow-non-loopback  switch: allow a listen address that other machines can reach; without it the proxy is disabled
 *   allow-any-user      switch: allow every local user to use the port; by default only this user, root, and
 *                       processes that this process has started
 *   listen-credential   switch: put a random password into the URL, and refuse clients that do not send it
 *   omit-variable       list: variables that are not set for children, in upper and lower case, such as http_proxy
 *   node-hook           switch: make Node programs of children use the proxy that read no variable: NODE_OPTIONS loads a
 *                       small file beside the CA bundle into each
 *   intercept           list, with embedded: targets whose TLS is intercepted: *, example.com or *.example.com, each with
 *                       or without :PORT, or none; default *:443
 *   require-tls         switch, with embedded: refuse connections to intercepted targets that are not TLS; by default
 *                       they are passed through
 *   resolve             list, with embedded: HOST:PORT:ADDR, use this address for this name, as in curl; PORT * is every port
 *   max-tunnels         maximum number of open tunnels, at least 1; further requests are answered 503; default what the
 *                       limits of the process allow, at most 1024
 *   standby             maximum number of standby connections, opened in advance if the upstream is far away, 0 to 64; default 8;
 *                       0 disables them
 *   drain-timeout       how long open tunnels may continue after a stop request; default 10s; 0 cuts them at once
 *   connect-timeout     limit for each of name resolution, TCP, TLS and upgrade; default 10s; with 0 every connection fails
 *   keepalive           interval between pings on a silent tunnel; three unanswered pings end it; default 25s; 0 disables
 *                       pings
 *   idle-timeout        how long a tunnel may transfer no data; default 0: no limit
 *   harden              switch: make the process non-dumpable before the token is read; default true
 */
int upstreamproxy_config_set(upstreamproxy_config *config, const char *name, const char *value);

/* Gives the session token itself: `length` bytes of visible ASCII, which are copied; wipe your own copy. No token file is read
 * or deleted then. UPSTREAMPROXY_ERROR_VALUE if the bytes cannot be a token. */
int upstreamproxy_config_set_token(upstreamproxy_config *config, const void *token, size_t length);

/* Cancels every start with these settings, one that is running in another thread and all later ones. A cancelled start
 * changes nothing more and returns UPSTREAMPROXY_DISABLED, at the latest when its current download ends (5 s). This cannot
 * be undone; make new settings instead. A proxy that is enabled is not affected. */
int upstreamproxy_config_cancel(upstreamproxy_config *config);

/* Frees settings, also while a proxy that was started with them is enabled. NULL has no effect. */
void upstreamproxy_config_free(upstreamproxy_config *config);

/* ---- A proxy ---- */

/* Runs the stages gate, token, ca, relay and burn, and writes the result to *proxy. Free it with upstreamproxy_free in both
 * of these cases:
 *
 *   UPSTREAMPROXY_OK        the proxy is enabled: it listens, and the token file is deleted
 *   UPSTREAMPROXY_DISABLED  a stage did not succeed, so the proxy is disabled; also if the session does not request one.
 *                           upstreamproxy_stage and _reason say why. There are no variables for children, and their
 *                           environment is the inherited one: the session continues without a proxy
 *
 * After an error *proxy is NULL. It blocks during set-up: a closed gate returns at once, otherwise it takes up to a few
 * seconds; upstreamproxy_config_cancel ends it early. Each start is independent of others in the process. */
int upstreamproxy_start(const upstreamproxy_config *config, upstreamproxy **proxy);

/* One of UPSTREAMPROXY_STATE_, or a negative error. */
int upstreamproxy_state(const upstreamproxy *proxy);

/* Why the proxy is disabled: the stage ("gate", "token", "ca", "relay"), and one sentence with a remedy for the user of the
 * program. NULL if it is or was enabled. Valid until upstreamproxy_free. */
const char *upstreamproxy_stage(const upstreamproxy *proxy);
const char *upstreamproxy_reason(const upstreamproxy *proxy);

/* Where the proxy listens: its port, or its URL, such as "http://127.0.0.1:41351" (with the setting listen-credential it
 * contains a password, and is a secret). 0 and NULL if it is disabled. Valid until upstreamproxy_free, although the port is
 * closed after a shutdown. */
uint16_t upstreamproxy_port(const upstreamproxy *proxy);
const char *upstreamproxy_url(const upstreamproxy *proxy);

/* The path of the PEM file with all roots that a child needs. NULL if the proxy is disabled. The file is not removed with
 * the proxy, because a child may run longer. With an embedded gateway it is, unless the setting ca-bundle names it. */
const char *upstreamproxy_ca_bundle(const upstreamproxy *proxy);

/* The variables for a child process, about 27: their number, and the name and value of each from 0 to count - 1. Set all of
 * them: each tool reads others. The count is 0 if the proxy is disabled; name and value are NULL for a larger index. They
 * never contain the token. Valid until upstreamproxy_free. */
size_t upstreamproxy_env_count(const upstreamproxy *proxy);
const char *upstreamproxy_env_name(const upstreamproxy *proxy, size_t index);
const char *upstreamproxy_env_value(const upstreamproxy *proxy, size_t index);

/* The complete environment for a child process: the inherited one with these variables, as an array of "NAME=VALUE" strings
 * that ends with NULL, for execve, execvpe or posix_spawn. If the proxy is disabled, it is the inherited one. It has the
 * type of the argument of these functions; do not write to it. Valid until upstreamproxy_free. */
char *const *upstreamproxy_environment(const upstreamproxy *proxy);

/* Uses another session token for all new connections to the upstream: `length` bytes of visible ASCII, which are copied; wipe
 * your own copy. Open tunnels continue. The library wipes the old token when no dial uses it any more, except for the copy in
 * settings that upstreamproxy_config_set_token made. UPSTREAMPROXY_ERROR_VALUE if the bytes cannot be a token: the old one
 * stays in use. UPSTREAMPROXY_DISABLED if the proxy is not enabled. It does not block. */
int upstreamproxy_replace_token(upstreamproxy *proxy, const void *token, size_t length);

/* Writes the current counters to *stats. `size` is sizeof(struct upstreamproxy_stats): a struct of an older header receives
 * the fields that it has; in a struct of a newer header, fields that the library does not know become 0. All are 0 if the
 * proxy is disabled. After a shutdown they keep their last values. */
int upstreamproxy_read_stats(const upstreamproxy *proxy, struct upstreamproxy_stats *stats, size_t size);

/* Stops the proxy: it accepts no new connections, and open tunnels have `drain_ms` milliseconds to end (0: none;
 * UPSTREAMPROXY_DRAIN_DEFAULT: the setting drain-timeout); then they are reset. When it returns, every socket is closed and
 * every thread has ended, except at most 4 threads (36 with an embedded gateway) that are in a name lookup. With an embedded
 * gateway it takes up to 1 s longer.
 *
 * `report` may be NULL; `size` is sizeof(struct upstreamproxy_report), as for upstreamproxy_read_stats. If another thread is
 * stopping the proxy, this waits for it and returns the same report. It has no effect on a proxy that is stopped or
 * disabled. The proxy must still be freed. */
int upstreamproxy_shutdown(upstreamproxy *proxy, int64_t drain_ms, struct upstreamproxy_report *report, size_t size);

/* Resets every open tunnel at once, which also ends a shutdown that another thread waits for. It does not block. An enabled
 * proxy then serves no connections, and must still be shut down. */
int upstreamproxy_abort(upstreamproxy *proxy);

/* Stops the proxy with the setting drain-timeout, unless it is stopped or disabled, and frees it with all strings that it
 * returned. NULL has no effect. */
void upstreamproxy_free(upstreamproxy *proxy);

#ifdef __cplusplus
}
#endif

#endif
