/* upstreamproxy.h - the C API of upstreamproxy (MIT OR Apache-2.0).
 *
 * A CONNECT proxy on loopback, inside this process, whose every tunnel is a WebSocket to an upstream gateway; and the
 * environment variables by which child processes (curl, git, npm, pip ...) find it and trust it.
 *
 *     upstreamproxy_config *config;
 *     upstreamproxy *proxy;
 *
 *     upstreamproxy_config_new(NULL, &config);             settings: what this process' environment says,
 *     upstreamproxy_config_set(config, "keepalive", "30s");  and what the host says
 *     if (upstreamproxy_start(config, &proxy) >= 0) {      up, or off: either way there is an environment for children
 *         execve(path, argv, upstreamproxy_environment(proxy));   in a child process
 *         upstreamproxy_shutdown(proxy, UPSTREAMPROXY_DRAIN_DEFAULT, NULL, 0);
 *         upstreamproxy_free(proxy);
 *     }
 *     upstreamproxy_config_free(config);
 *
 * A whole program and how to build the library: src/manual/c-api.md.
 *
 * WHAT HOLDS FOR EVERY FUNCTION
 *
 * Threads. Every function may be called from any thread, several at once on the same object, with two exceptions: nobody
 * else may use an object while it is freed, and an environment may not be changed (setenv, putenv) while
 * upstreamproxy_config_new(NULL, ...) or upstreamproxy_start runs. The library starts threads of its own, named
 * "uproxy-..." and "tun-N", "gw-N". All of them block every signal (but SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS),
 * so that the host's handlers run on the host's own threads.
 *
 * Answers. A function that returns int returns UPSTREAMPROXY_OK (0) or a positive value where it worked, and a negative
 * UPSTREAMPROXY_ERROR_ code where not: then nothing was changed, and upstreamproxy_last_error() has the words.
 *
 * Pointers. NULL where it is not allowed is UPSTREAMPROXY_ERROR_NULL (or, from functions that return something else, NULL or
 * 0), never a crash. Any other pointer must be a good one. Strings end with a zero byte; those given to the library are copied
 * and stay the caller's; those it returns stay the library's: never free or change them. Text of the library's own is UTF-8;
 * paths and variables are bytes, as the system has them.
 *
 * Signals, and what else is the host's. The library installs no signal handler, and changes neither the signal mask nor the
 * locale, the working directory, the environment or the limits of the process. It raises no SIGPIPE, so that a host may leave
 * that at its default. It prints nothing, save that a fault of its own (a panic, answered with UPSTREAMPROXY_ERROR_INTERNAL)
 * is told on standard error. Free heap memory it may give back to the system (malloc_trim). One thing it does to the process
 * unless it is told not to: before the session token is in memory the process is made non-dumpable (prctl PR_SET_DUMPABLE 0:
 * no core file, no debugger, /proc/PID for root only), and it stays so. The setting "harden" = "false" declines that.
 *
 * fork. A child made by fork without exec has none of the threads: it must not use a proxy of its parent's, but may read the
 * strings of it, up to its exec. upstreamproxy_shutdown, _abort and _free answer UPSTREAMPROXY_ERROR_FORKED there and do
 * nothing. All descriptors are close-on-exec.
 *
 * Exceptions must not leave the log callback, neither may longjmp. Do not dlclose the library: threads that sit in a look-up of
 * a name, which nothing can call off, may still be in it.
 */
#ifndef UPSTREAMPROXY_H
#define UPSTREAMPROXY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. It grows when programs compiled against an older header would go wrong; new functions,
 * codes, settings and fields at a struct's end do not count. Compare it with upstreamproxy_abi_version() at run time. */
#define UPSTREAMPROXY_ABI_VERSION 1

/* Codes. */
#define UPSTREAMPROXY_OK 0        /* done; of upstreamproxy_start: the proxy is up */
#define UPSTREAMPROXY_DISABLED 1  /* of upstreamproxy_start: the proxy is off, which is no error */
#define UPSTREAMPROXY_ERROR_NULL (-1)        /* a pointer is NULL that must not be */
#define UPSTREAMPROXY_ERROR_ARGUMENT (-2)    /* an argument is outside of what is allowed */
#define UPSTREAMPROXY_ERROR_SETTING (-3)     /* there is no setting of this name */
#define UPSTREAMPROXY_ERROR_VALUE (-4)       /* the setting cannot have this value */
#define UPSTREAMPROXY_ERROR_IN_CALLBACK (-5) /* the log callback may not call this */
#define UPSTREAMPROXY_ERROR_FORKED (-6)      /* the process that started the proxy is another one */
#define UPSTREAMPROXY_ERROR_LOG_TAKEN (-7)   /* the program around is Rust, and has a logger of its own */
#define UPSTREAMPROXY_ERROR_INTERNAL (-8)    /* a fault of the library; please report it */

/* Where a proxy stands: upstreamproxy_state. */
#define UPSTREAMPROXY_STATE_ENABLED 0  /* it is up */
#define UPSTREAMPROXY_STATE_DISABLED 1 /* it is off, and was never up */
#define UPSTREAMPROXY_STATE_STOPPING 2 /* a shutdown is under way */
#define UPSTREAMPROXY_STATE_STOPPED 3  /* the shutdown is done */

/* As drain_ms of upstreamproxy_shutdown: what the setting "drain-timeout" says. */
#define UPSTREAMPROXY_DRAIN_DEFAULT (-1)

/* Settings, to start with. Made by upstreamproxy_config_new, freed by upstreamproxy_config_free. */
typedef struct upstreamproxy_config upstreamproxy_config;

/* One start and what came of it. Made by upstreamproxy_start, freed by upstreamproxy_free. */
typedef struct upstreamproxy upstreamproxy;

/* What has happened so far. New fields come at the end, so that programs pass the size that they know. */
struct upstreamproxy_stats {
    uint64_t live;        /* connections that are served now */
    uint64_t tunnels;     /* tunnels that were established */
    uint64_t standby;     /* of these, those that found a WebSocket already open */
    uint64_t standing_by; /* WebSockets that are open ahead of need now */
    uint64_t refused;     /* connections that were answered with a refusal */
    uint64_t broken;      /* tunnels that broke or were cut */
    uint64_t bytes_up;    /* bytes that clients sent to targets, so far */
    uint64_t bytes_down;  /* bytes that targets sent to clients, so far */
};

/* What came of the tunnels that were open when a shutdown began. */
struct upstreamproxy_report {
    uint64_t ended; /* by themselves, or in order because they were silent */
    uint64_t cut;   /* at the deadline */
};

/* ---- The library ---- */

/* UPSTREAMPROXY_ABI_VERSION of the library that is linked. */
uint32_t upstreamproxy_abi_version(void);

/* The version of the library, such as "0.1.0"; good for ever. */
const char *upstreamproxy_version(void);

/* The words of the last error that a call of this very thread answered with: one sentence for whoever runs the program. ""
 * if there was none. Good until this thread's next error, or its end. A call that works leaves it as it is. */
const char *upstreamproxy_last_error(void);

/* A function of the host's that takes the log. `context` is what was given with it; `level` is 1 error, 2 warning, 3
 * information (a line for each tunnel), 4 debug. `message` is one line of UTF-8 without control characters and without an end
 * of line, good for this call only; it never holds a secret.
 *
 * It is called from any thread, also from several at once, some with stacks of 256 KiB. What it waits for, a tunnel waits for.
 * It may not call upstreamproxy_log_to, _start, _shutdown or _free (UPSTREAMPROXY_ERROR_IN_CALLBACK; _free then frees
 * nothing); the other functions it may. What these log is dropped. */
typedef void (*upstreamproxy_log_callback)(void *context, int level, const char *message);

/* Sends the log, which without this goes nowhere, to `callback`: records of `level` and below, 0 (nothing) to 4. `context`
 * may be NULL; the library never looks into it. NULL for `callback` ends it.
 *
 * There is one log for the whole library. When this function returns, the callback before is not called any more and no call
 * of it is under way: it waits for that, so do not hold a lock that the callback takes. */
int upstreamproxy_log_to(upstreamproxy_log_callback callback, void *context, int level);

/* ---- Settings ---- */

/* Makes settings, and writes them to *config; after an error *config is NULL.
 *
 * `environment` is the environment that child processes would have without the proxy: an array of "NAME=VALUE" strings with
 * a NULL at its end, such as `environ`; it is copied. NULL: that of this process, now. It is read for three things: the switches
 * of the session (CLAUDE_CODE_REMOTE, CCR_UPSTREAM_PROXY_ENABLED, CLAUDE_CODE_REMOTE_SESSION_ID, ANTHROPIC_BASE_URL); settings
 * as UPSTREAMPROXY_<NAME>, with "_" for "-"; and what children inherit (NO_PROXY, SSL_CERT_FILE and others are merged, HOME
 * says where the CA bundle goes). An entry without "=" is left out. An array with nothing but the NULL is an empty environment.
 *
 * What is wrong in the environment is no error here: it leaves the proxy off, and the reason says so. */
int upstreamproxy_config_new(const char *const *environment, upstreamproxy_config **config);

/* Sets one setting; it wins over the environment, and a later one over an earlier one. UPSTREAMPROXY_ERROR_SETTING where there
 * is none of this name, UPSTREAMPROXY_ERROR_VALUE where it cannot have this value (an empty value is refused too). A start that is
 * under way or done is not changed.
 *
 * Durations: "500ms", "10s", "2m", or a bare number of seconds. Switches: "1", "true", "yes", "on", or "0", "false", "no",
 * "off". Lists have blanks between their values.
 *
 *   when                auto (default): run if the session's switches are on; always: skip them, and want base-url and
 *                       session-id; never: stay off, whatever else is said
 *   embedded            switch: bring a gateway along, inside this process, with a session and a token of its own, and use
 *                       that as the upstream; implies when = always, and base-url, session-id and token-file do not count
 *   base-url            the upstream: https://..., or http:// for loopback
 *   session-id          who we are to it: visible ASCII without a colon, at most 256 bytes
 *   token-file          the file with the session token, at most 64 KiB; default /run/ccr/session_token. It is deleted once
 *                       the proxy is up, so that a second start needs a new one
 *   upstream-ca         PEM file of further roots for connections to the upstream; with embedded, for verifying targets
 *   system-ca           PEM file of base roots; default SSL_CERT_FILE of the environment, else the distribution's
 *   ca-bundle           where the merged bundle for children is written; default ~/.ccr/ca-bundle.crt, with embedded a
 *                       private temporary folder that goes with the proxy
 *   listen              ADDR:PORT; default 127.0.0.1:0, where 0 is any free port
 *   allow-non-loopback  switch: listen may be an address that other machines reach; without it the proxy stays off there
 *   allow-any-user      switch: every user of this machine may use the port; without it only this one and root
 *   listen-credential   switch: put a random password into the URL, and refuse clients that do not send it
 *   intercept           list, with embedded: whose TLS is intercepted: *, example.com, *.example.com, each with :PORT or for
 *                       any port, or none; default *:443
 *   resolve             list, with embedded: HOST:PORT:ADDR, this address for this name, as curl means it
 *   max-tunnels         tunnels at once, at least 1, the next is answered 503; default what the limits of the process allow,
 *                       at most 1024
 *   standby             WebSockets opened ahead of need where the upstream is far, 0 to 64; default 8; 0: none
 *   drain-timeout       how long open tunnels may go on after a stop was asked for; default 10s; 0: they are cut at once
 *   connect-timeout     the bound on each of look-up, TCP, TLS and upgrade; default 10s; 0: every dial fails
 *   keepalive           a ping after each such silence, three without an answer end the tunnel; default 25s; 0: none
 *   idle-timeout        how long a tunnel may move no data; default 0: for ever
 *   harden              switch: make the process non-dumpable before the token is read; default true
 */
int upstreamproxy_config_set(upstreamproxy_config *config, const char *name, const char *value);

/* Calls off every start with these settings, one that is under way in another thread and all later ones: from then on it
 * changes nothing more, and ends with UPSTREAMPROXY_DISABLED, at the latest when the download that it is in is over (5 s).
 * There is no way back; make new settings. A proxy that is up already stays up. */
int upstreamproxy_config_cancel(upstreamproxy_config *config);

/* Frees settings, also while a proxy that was started with them lives. NULL: nothing happens. */
void upstreamproxy_config_free(upstreamproxy_config *config);

/* ---- A proxy ---- */

/* Goes through the stages gate, token, ca, relay, burn, and writes what came of it to *proxy, to be freed by
 * upstreamproxy_free in both of these cases:
 *
 *   UPSTREAMPROXY_OK        the proxy is up: it listens, and the token file is deleted
 *   UPSTREAMPROXY_DISABLED  a stage was not satisfied, so that the proxy is off, which is how the host learns that the session
 *                           asks for none, too. upstreamproxy_stage and _reason say why, there are no variables for children,
 *                           and their environment is the one that they would have had: the session goes on
 *
 * After an error *proxy is NULL. It blocks for as long as set-up takes: at once where the gate is closed, else up to a few
 * seconds; upstreamproxy_config_cancel ends it early. Each start is independent of others in the process. */
int upstreamproxy_start(const upstreamproxy_config *config, upstreamproxy **proxy);

/* One of UPSTREAMPROXY_STATE_, or a negative error. */
int upstreamproxy_state(const upstreamproxy *proxy);

/* Why the proxy is off: the stage ("gate", "token", "ca", "relay"), and one sentence with what to do, for whoever runs the
 * program. NULL if it is up or was. Good until upstreamproxy_free. */
const char *upstreamproxy_stage(const upstreamproxy *proxy);
const char *upstreamproxy_reason(const upstreamproxy *proxy);

/* Where the proxy listens: its port, or its whole URL, as "http://127.0.0.1:41351" (with a password in it where the setting
 * listen-credential is on: a secret then). 0 and NULL if it is off. Good until upstreamproxy_free, though nobody listens there
 * after a shutdown. */
uint16_t upstreamproxy_port(const upstreamproxy *proxy);
const char *upstreamproxy_url(const upstreamproxy *proxy);

/* The path of the PEM file of all roots that a child needs. NULL if the proxy is off. The file stays when the proxy goes, as a
 * child may live longer; that of an embedded gateway goes with it, unless ca-bundle says where it should be. */
const char *upstreamproxy_ca_bundle(const upstreamproxy *proxy);

/* The variables to set for a child process, some 27: how many, and the name and the value of each from 0 to count - 1. Set them
 * all: each tool looks at others. The count is 0 if the proxy is off; name and value are NULL beyond it. They never hold the
 * token. Good until upstreamproxy_free. */
size_t upstreamproxy_env_count(const upstreamproxy *proxy);
const char *upstreamproxy_env_name(const upstreamproxy *proxy, size_t index);
const char *upstreamproxy_env_value(const upstreamproxy *proxy, size_t index);

/* The whole environment for a child process: the one that the settings were made with, and these variables over it, as an
 * array of "NAME=VALUE" strings with a NULL at its end, ready for execve, execvpe or posix_spawn. If the proxy is off it is the
 * one that the settings were made with. The type is the one that these functions want; do not write to it. Good until
 * upstreamproxy_free. */
char *const *upstreamproxy_environment(const upstreamproxy *proxy);

/* Writes the counters, each as it is now, to *stats. `size` is sizeof(struct upstreamproxy_stats): of a struct of an older
 * header as much is written as it has, in one of a newer header the fields that the library does not know are 0. All are 0 if
 * the proxy is off; after a shutdown they stay as they were at its end. */
int upstreamproxy_read_stats(const upstreamproxy *proxy, struct upstreamproxy_stats *stats, size_t size);

/* Stops the proxy: no new connections; open tunnels get `drain_ms` milliseconds to end (0: none;
 * UPSTREAMPROXY_DRAIN_DEFAULT: the setting drain-timeout), then they are cut with a reset. When it returns, every socket is
 * closed and every thread has ended, save at most four (36 with an embedded gateway) that sit in a look-up of a name. With an embedded gateway that takes up
 * to 1 s more.
 *
 * `report` may be NULL; `size` is sizeof(struct upstreamproxy_report), as for upstreamproxy_read_stats. If another thread
 * is stopping the proxy, this waits for that and gives the same report; a second shutdown, or that of a proxy that is off, does
 * nothing. The proxy still has to be freed. */
int upstreamproxy_shutdown(upstreamproxy *proxy, int64_t drain_ms, struct upstreamproxy_report *report, size_t size);

/* Cuts every open tunnel at once, and with that ends a shutdown that another thread waits for. Does not wait itself. A proxy
 * that is up then serves nobody any more, and is still to be shut down. */
int upstreamproxy_abort(upstreamproxy *proxy);

/* Stops the proxy with the setting drain-timeout, unless it is stopped or off, and frees it, with all strings that came from it.
 * NULL: nothing happens. */
void upstreamproxy_free(upstreamproxy *proxy);

#ifdef __cplusplus
}
#endif

#endif
