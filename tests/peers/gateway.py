"""A gateway written from the protocol page with the `websockets` library: an outside peer to prove our relay against.

It really dials the target and pumps. It prints JSON lines: `{"event":"ready","port":N}` first, then what it saw of
each WebSocket: `upgrade` (the request), `opening` (the head, and whether it has the exact form), `end` (bytes, digests,
close code). With `--quirk` it is odd, but right (the tunnel must work), or wrong (the relay must end it as the page says).
"""

import argparse
import base64
import hashlib
import http
import itertools
import json
import socket
import ssl
import struct
import threading

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.datastructures import Headers
from websockets.sync.server import serve

import chunk

PATH = "/v1/code/upstreamproxy/"
V2 = "upstreamproxy.v2"
LONGEST_HEAD = 16 * 1024
# Bounds on what is waited for, so that a test which fails ends.
PATIENCE = 30.0

# What the gateway answers inside the tunnel instead of 200, by quirk. The challenges must never reach the client.
REFUSALS = {
    "refuse-400": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "refuse-401": b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=canary-challenge\r\nContent-Length: 0\r\n\r\n",
    "refuse-403": b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 19\r\n\r\nnot on the list (7)",
    "refuse-403-until-close": b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\nnot on the list (7)",
    "refuse-403-long": b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 8192\r\n\r\n" + b"x" * 8192,
    "refuse-407": b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=canary-challenge\r\n\r\n",
    "refuse-418": b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\n\r\n",
    "refuse-429": b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",
    "refuse-500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "refuse-502": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
    "refuse-503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "refuse-504": b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n",
    "answer-not-http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "answer-huge-head": b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * LONGEST_HEAD + b"\r\n\r\n",
    "answer-nul": b"\0" * 64,
}

# Faults that strike once the tunnel stands and the first bytes have gone down.
FAULTS = (
    "text", "truncated", "bad-wire-type", "field-zero", "long-varint", "open-group", "too-big", "data-after-fin",
    "close-before-fin", "close-1011", "close-1008", "tcp-reset", "tcp-fin",
)
UNDECODABLE = {
    "truncated": b"\x0a\x7fonly this",
    "bad-wire-type": b"\x0a\x02ok\x0e",
    "field-zero": b"\x0a\x02ok\x02\x01x",
    "long-varint": b"\x0a\x02ok\x48" + b"\x80" * 10 + b"\x01",
    "open-group": b"\x0a\x02ok\x63",
}


class Report:
    """JSON lines on standard output, one at a time."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, event, **seen):
        with self.lock:
            print(json.dumps({"event": event, **seen}), flush=True)


class Gateway:
    def __init__(self, options, report):
        self.options, self.report = options, report
        self.ids = itertools.count(1)

    # The upgrade.

    def before_upgrade(self, connection, request):
        """Serves the CA, refuses what is no tunnel, and plays the quirks of the upgrade."""
        if request.path == PATH + "ca-cert":
            self.report("ca-cert", authorization="Authorization" in request.headers)
            with open(self.options.ca_pem, encoding="ascii") as pem:
                return connection.respond(http.HTTPStatus.OK, pem.read())
        if request.path != PATH + "ws":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "no such endpoint\n")
        headers = request.headers
        authorised = headers.get_all("Authorization") == ["Bearer " + self.options.token]
        self.report(
            "upgrade",
            authorised=authorised,
            content_type=headers.get("Content-Type"),
            extensions=headers.get("Sec-WebSocket-Extensions"),
            subprotocols=headers.get("Sec-WebSocket-Protocol"),
            origin=headers.get("Origin"),
        )
        if not authorised:
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "bad bearer\n")
        for quirk in self.options.quirk:
            kind, _, status = quirk.partition("upgrade-")
            if kind == "" and status.isdigit():
                extra = {"Location": self.options.elsewhere, "Content-Length": "0", "Connection": "close",
                         "WWW-Authenticate": "Basic realm=canary-challenge", "Proxy-Authenticate": "Basic realm=canary-challenge"}
                return Response(int(status), "Odd", Headers(extra), b"")
        return None

    def spoil_upgrade(self, _connection, _request, response):
        """Makes the 101 wrong (or odd), where a quirk says so."""
        if response.status_code != 101:
            return response
        for quirk, field, value in (
            ("wrong-accept", "Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            ("missing-accept", "Sec-WebSocket-Accept", None),
            ("extra-extension", "Sec-WebSocket-Extensions", "permessage-deflate"),
            ("extra-subprotocol", "Sec-WebSocket-Protocol", "chat"),
            ("odd-case-upgrade", "Upgrade", "WebSocket"),
            ("odd-case-upgrade", "Connection", "keep-alive, Upgrade"),
        ):
            if self.has(quirk):
                if field in response.headers:
                    del response.headers[field]
                if value is not None:
                    response.headers[field] = value
        return response

    def choose_version(self, _connection, offered):
        return V2 if self.options.v2 and V2 in offered else None

    def has(self, quirk):
        return quirk in self.options.quirk

    # The tunnel.

    def tunnel(self, ws):
        """One WebSocket: opening, pumps, end."""
        tunnel = Tunnel(self, ws, next(self.ids))
        try:
            tunnel.run()
        except (ConnectionClosed, OSError, chunk.Undecodable, Broken) as error:
            tunnel.broke = f"{type(error).__name__}: {error}"
        finally:
            tunnel.close()


class Broken(Exception):
    """The peer broke a rule of the wire."""


class Tunnel:
    def __init__(self, gateway, ws, number):
        self.gateway, self.ws, self.number = gateway, ws, number
        self.quirks = gateway.options.quirk
        self.v2 = ws.subprotocol == V2
        self.up, self.down = hashlib.sha256(), hashlib.sha256()
        self.up_bytes = self.down_bytes = self.messages = self.empty = self.largest = 0
        self.fin_up = self.fin_down = False
        self.target = None
        self.broke = None

    def has(self, quirk):
        return quirk in self.quirks

    def run(self):
        if self.has("data-before-head"):
            self.send(b"early bird")
            # A head that was on its way already is read and not served.
            while True:
                self.ws.recv()
        if self.has("keepalives"):
            self.keepalives()
        head, early = self.opening()
        authority = self.check(head, early)
        refusal = next((REFUSALS[q] for q in self.quirks if q in REFUSALS), None)
        if refusal is not None:
            self.ws.send(chunk.encode(refusal))
            return self.ws.close(1000)
        host, _, port = authority.rpartition(":")
        self.target = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)
        self.target.settimeout(None)
        self.answer()
        self.deliver(early)
        down = threading.Thread(target=self.pump_down, daemon=True)
        down.start()
        self.pump_up()
        down.join(PATIENCE)

    def opening(self):
        """The first data, up to and with the empty line, and what came behind it."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.receive()
            if len(data) > LONGEST_HEAD:
                raise Broken("a head over 16 KiB")
        head, _, early = data.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n", early

    def check(self, head, early):
        """Reports the head, and whether it is to the byte what the protocol page asks for."""
        authority = head.split(b" ")[1].decode("ascii")
        options = self.gateway.options
        basic = base64.b64encode(f"{options.session}:{options.token}".encode()).decode()
        exact = f"CONNECT {authority} HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode()
        self.gateway.report("opening", id=self.number, authority=authority, exact=head == exact, early=len(early), v2=self.v2)
        return authority

    def cork(self, corked):
        """Holds back what is sent, so that answer, data and fault come to the relay in one read."""
        if self.has("corked"):
            self.ws.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, corked)

    def answer(self):
        self.cork(True)
        head = b"HTTP/1.1 200 Connection Established\r\n\r\n"
        if self.has("answer-204"):
            head = b"HTTP/1.1 204 Whatever\r\nX-Gateway: odd\r\n\r\n"
        if self.has("byte-chunks"):
            for byte in head:
                self.send(bytes([byte]))
        elif self.has("head-and-payload"):
            first = self.target.recv(65536)
            self.send(head + first)
            self.count_down(first)
        else:
            self.send(head)

    def send(self, data=b"", fin=False):
        """One chunk, in the form that the quirks ask for."""
        message = None
        for quirk in self.quirks:
            message = message or chunk.odd_but_right(quirk, data, fin)
        message = message if message is not None else chunk.encode(data, fin)
        if self.has("fragmented"):
            self.ws.send(self.fragments(message))
        else:
            self.ws.send(message)
        if self.has("keepalives"):
            self.keepalives()

    def fragments(self, message):
        """The message in pieces, the first ones tiny, with pings and an empty frame between them."""
        for at in range(min(4, len(message))):
            yield message[at : at + 1]
            self.ws.ping()
        yield b""
        step = max(1, len(message) // 7)
        for at in range(4, len(message), step):
            yield message[at : at + step]

    def keepalives(self):
        """All forms of saying nothing."""
        self.ws.send(b"")
        self.ws.send(b"\x0a\x00")
        self.ws.send(chunk.UNKNOWN_FIELDS)
        self.ws.ping()
        self.ws.pong(b"unasked")

    def receive(self):
        """The data of the next chunk; the rules for senders are checked on the way."""
        message = self.ws.recv()
        if isinstance(message, str):
            raise Broken("a text message")
        data, fin = chunk.decode(message)
        if len(data) > chunk.LARGEST_DATA:
            raise Broken(f"a chunk of {len(data)} bytes")
        if self.fin_up and (data or fin):
            raise Broken("data after fin")
        self.messages += 1
        self.empty += not data and not fin
        self.largest = max(self.largest, len(data))
        self.fin_up = self.v2 and fin
        return data

    def pump_up(self):
        """Relay to target, until the WebSocket has closed; `fin` half-closes the target."""
        try:
            while True:
                finished = self.fin_up
                self.deliver(self.receive())
                if self.fin_up and not finished:
                    self.target.shutdown(socket.SHUT_WR)
                    self.close_if_both_finished()
        except ConnectionClosed:
            # The relay's close ends what `fin` has not ended before: version 1 has nothing else.
            self.shut_target()

    def deliver(self, data):
        if data:
            self.up.update(data)
            self.up_bytes += len(data)
            self.target.sendall(data)

    def pump_down(self):
        """Target to relay; at the target's end `fin` (version 2) or the close with 1000 (version 1)."""
        try:
            while data := self.target.recv(chunk.LARGEST_DATA if self.has("big-chunks") else 65536):
                self.send(data)
                self.count_down(data)
                if fault := next((q for q in self.quirks if q in FAULTS), None):
                    return self.strike(fault)
            if self.v2:
                self.send(fin=True)
                self.fin_down = True
                self.close_if_both_finished()
            else:
                self.fin_down = True
                self.ws.close(1000)
        except ConnectionClosed:
            pass
        except OSError as error:
            self.broke = f"target: {error}"
            self.ws.close(1011)
        finally:
            # Nobody else wakes the other pump when this one leaves early.
            if not self.fin_down:
                self.shut_target()

    def close_if_both_finished(self):
        if self.fin_up and self.fin_down:
            self.ws.close(1000)

    def count_down(self, data):
        self.down.update(data)
        self.down_bytes += len(data)

    def strike(self, fault):
        if fault in UNDECODABLE:
            self.ws.send(UNDECODABLE[fault])
        elif fault == "text":
            self.ws.send("a text message")
        elif fault == "too-big":
            self.ws.send(b"\x0a" + chunk.varint(2 * chunk.LARGEST_MESSAGE) + bytes(2 * chunk.LARGEST_MESSAGE))
        elif fault == "data-after-fin":
            self.ws.send(chunk.encode(fin=True))
            self.ws.send(chunk.encode(b"ghost"))
        elif fault == "close-before-fin":
            self.ws.close(1000)
        elif fault.startswith("close-"):
            self.ws.close(int(fault.removeprefix("close-")))
        elif fault == "tcp-reset":
            self.ws.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # shutdown would say goodbye; a close with linger 0 is the reset, once the library's thread lets go.
            self.ws.socket.shutdown(socket.SHUT_RD)
            self.ws.socket.close()
            return
        elif fault == "tcp-fin":
            self.ws.socket.shutdown(socket.SHUT_WR)
            return
        self.cork(False)

    def shut_target(self):
        try:
            self.target.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self):
        """Closes both ends, and says what was seen."""
        if self.fin_up and self.fin_down and not self.broke:
            self.ws.close(1000)
        else:
            self.ws.close(1011)
        if self.target is not None:
            self.target.close()
        received = self.ws.protocol.close_rcvd
        self.gateway.report(
            "end", id=self.number, up=self.up_bytes, down=self.down_bytes,
            up_sha256=self.up.hexdigest(), down_sha256=self.down.hexdigest(),
            fin_up=self.fin_up, fin_down=self.fin_down, messages=self.messages, empty=self.empty, largest=self.largest,
            close_code=received.code if received else None, broke=self.broke,
        )


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--session", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    parser.add_argument("--ca-pem", default="/dev/null")
    parser.add_argument("--elsewhere", default="http://127.0.0.1:9/", help="where a redirect points")
    parser.add_argument("--v1", dest="v2", action="store_false", help="never select upstreamproxy.v2")
    parser.add_argument("--v2", dest="v2", action="store_true", help="select it where it is offered (the default)")
    parser.add_argument("--quirk", action="append", default=[])
    parser.set_defaults(v2=True)
    return parser.parse_args()


def main():
    options, report = parse(), Report()
    gateway = Gateway(options, report)
    host, _, port = options.listen.rpartition(":")
    tls = None
    if options.tls_cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.tls_cert, options.tls_key)
    server = serve(
        gateway.tunnel, host, int(port), ssl=tls, compression=None, ping_interval=None, close_timeout=5,
        max_size=chunk.LARGEST_MESSAGE, select_subprotocol=gateway.choose_version, subprotocols=[V2],
        process_request=gateway.before_upgrade, process_response=gateway.spoil_upgrade, server_header=None,
    )
    report("ready", port=server.socket.getsockname()[1])
    server.serve_forever()


if __name__ == "__main__":
    main()
