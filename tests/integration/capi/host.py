"""A host in Python that uses ctypes. ../capi.rs runs it as `host.py LIBRARY NAME=VALUE... -- COMMAND...`."""

import ctypes
import subprocess
import sys
import threading
import time
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint64, c_void_p


class Stats(ctypes.Structure):
    _fields_ = [(name, c_uint64) for name in (
        "live", "tunnels", "standby_used", "standby_open", "refused", "broken", "bytes_up", "bytes_down")]


class Report(ctypes.Structure):
    _fields_ = [("ended", c_uint64), ("cut", c_uint64)]


LogCallback = CFUNCTYPE(None, c_void_p, c_int, c_char_p)
OK, DISABLED, ERROR_SETTING = 0, 1, -3

library = ctypes.CDLL(sys.argv[1])
for name, result, *arguments in (
    ("last_error", c_char_p),
    ("log_to", c_int, LogCallback, c_void_p, c_int),
    ("config_new", c_int, POINTER(c_char_p), POINTER(c_void_p)),
    ("config_set", c_int, c_void_p, c_char_p, c_char_p),
    ("config_free", None, c_void_p),
    ("start", c_int, c_void_p, POINTER(c_void_p)),
    ("stage", c_char_p, c_void_p),
    ("reason", c_char_p, c_void_p),
    ("env_count", c_size_t, c_void_p),
    ("env_name", c_char_p, c_void_p, c_size_t),
    ("env_value", c_char_p, c_void_p, c_size_t),
    ("environment", POINTER(c_char_p), c_void_p),
    ("read_stats", c_int, c_void_p, POINTER(Stats), c_size_t),
    ("shutdown", c_int, c_void_p, c_int64, POINTER(Report), c_size_t),
    ("free", None, c_void_p),
):
    function = getattr(library, "upstreamproxy_" + name)
    function.restype, function.argtypes = result, arguments
    globals()[name] = function

split = sys.argv.index("--")
settings = [argument.split("=", 1) for argument in sys.argv[2:split]]
command = sys.argv[split + 1:]
lines = []


@LogCallback
def take_line(context, level, message):
    lines.append(message.decode())
    print(message.decode(), file=sys.stderr, flush=True)


def configured(settings):
    config = c_void_p()
    assert config_new(None, byref(config)) == OK, last_error()
    for name, value in settings:
        assert config_set(config, name.encode(), value.encode()) == OK, last_error()
    return config


def environment_of(proxy):
    pairs = {}
    for entry in environment(proxy):
        if entry is None:
            return pairs
        name, value = entry.split(b"=", 1)
        pairs[name] = value


def run_once():
    config, proxy = configured(settings), c_void_p()
    assert start(config, byref(proxy)) == OK, (stage(proxy), reason(proxy), last_error())
    config_free(config)
    variables = {env_name(proxy, at): env_value(proxy, at) for at in range(env_count(proxy))}
    children = environment_of(proxy)
    assert variables.items() <= children.items() and len(variables) > 20
    subprocess.run(command, env=children, check=True)
    stats, report = Stats(), Report()
    assert read_stats(proxy, byref(stats), ctypes.sizeof(stats)) == OK, last_error()
    assert stats.tunnels == 1 and stats.bytes_up > 0 and stats.bytes_down > 0
    assert shutdown(proxy, -1, byref(report), ctypes.sizeof(report)) == OK, last_error()
    assert report.cut == 0
    free(proxy)


def threads():
    with open("/proc/self/status") as status:
        return next(line for line in status if line.startswith("Threads:"))


assert log_to(take_line, None, 4) == OK, last_error()
before = threads()
run_once()
run_once()
# A joined thread remains in /proc for a short time.
for _ in range(10000):
    if threads() == before:
        break
    time.sleep(0.001)
assert threads() == before
assert lines
others = [threading.Thread(target=run_once) for _ in range(2)]
for other in others:
    other.start()
for other in others:
    other.join()

config, proxy = configured([("when", "never")]), c_void_p()
assert config_set(config, b"colour", b"red") == ERROR_SETTING and b"colour" in last_error()
assert start(config, byref(proxy)) == DISABLED
assert stage(proxy) == b"gate" and b"never" in reason(proxy) and env_count(proxy) == 0
free(proxy)
config_free(config)
assert log_to(LogCallback(), None, 0) == OK
print("all as expected")
