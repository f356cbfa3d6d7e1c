"""A gateway to test the relay: an independent peer based on `websockets` and the protocol page.

It connects to the target and forwards the data. It prints JSON lines: first
`{"event":"ready","port":N}`, then for each WebSocket `upgrade` (the request), `opening` (the head,
and whether it has the exact form), and `end` (bytes, digests, close code). A `--quirk` makes it
unusual but valid (the tunnel must work) or invalid (the relay must end the tunnel as documented).
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
MAX_HEAD = 16 * 1024
# The timeout in seconds for each wait, so that a failing test ends.
TIMEOUT = 30.0

# The responses in the tunnel in place of 200, by quirk. The challenges must not reach the client.
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
    "answer-huge-head": b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * MAX_HEAD + b"\r\n\r\n",
    "answer-nul": b"\0" * 64,
}

# Faults that happen when the tunnel is open and the first bytes were sent down.
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

    def __call__(self, event, **values):
        with self.lock:
            print(json.dumps({"event": event, **values}), flush=True)


class Gateway:
    def __init__(self, options, report):
        self.options, self.report = options, report
        self.ids = itertools.count(1)

    # The upgrade.

    def before_upgrade(self, connection, request):
        """Serves the CA, refuses unknown paths, and applies the quirks of the upgrade."""
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

    def change_upgrade(self, _connection, _request, response):
        """Makes the 101 response invalid or unusual if a quirk says so."""
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
        """Handles one WebSocket: opening, data, end."""
        tunnel = Tunnel(self, ws, next(self.ids))
        try:
            tunnel.run()
        except (ConnectionClosed, OSError, chunk.Undecodable, Broken) as error:
            tunnel.broke = f"{type(error).__name__}: {error}"
        finally:
            tunnel.close()


class Broken(Exception):
    """The peer broke a rule of the protocol."""


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
            self.send(b"early data")
            # A head that the relay has already sent is read, but gets no response.
            while True:
                self.ws.recv()
        if self.has("keepalives"):
            self.keepalives()
        head, early = self.opening()
        authority = self.report_opening(head, early)
        refusal = next((REFUSALS[q] for q in self.quirks if q in REFUSALS), None)
        if refusal is not None:
            self.ws.send(chunk.encode(refusal))
            return self.ws.close(1000)
        host, _, port = authority.rpartition(":")
        self.target = socket.create_connection((host.strip("[]"), int(port)), TIMEOUT)
        self.target.settimeout(None)
        self.respond()
        self.send_to_target(early)
        down = threading.Thread(target=self.forward_down, daemon=True)
        down.start()
        self.forward_up()
        down.join(TIMEOUT)

    def opening(self):
        """Returns the head, including the empty line, and the data after it."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.receive()
            if len(data) > MAX_HEAD:
                raise Broken("a head over 16 KiB")
        head, _, early = data.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n", early

    def report_opening(self, head, early):
        """Reports the head and whether it has the exact form of the page. Returns the authority."""
        authority = head.split(b" ")[1].decode("ascii")
        options = self.gateway.options
        basic = base64.b64encode(f"{options.session}:{options.token}".encode()).decode()
        exact = f"CONNECT {authority} HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode()
        self.gateway.report("opening", id=self.number, authority=authority, exact=head == exact, early=len(early), v2=self.v2)
        return authority

    def cork(self, corked):
        """Delays sending, so that the relay gets response, data and fault in one read."""
        if self.has("corked"):
            self.ws.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, corked)

    def respond(self):
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
        """Sends one chunk in the encoding that the quirks select."""
        message = None
        for quirk in self.quirks:
            message = message or chunk.encode_unusually(quirk, data, fin)
        message = message if message is not None else chunk.encode(data, fin)
        if self.has("fragmented"):
            self.ws.send(self.fragments(message))
        else:
            self.ws.send(message)
        if self.has("keepalives"):
            self.keepalives()

    def fragments(self, message):
        """The message in fragments, the first ones tiny, with pings and an empty one between."""
        for at in range(min(4, len(message))):
            yield message[at : at + 1]
            self.ws.ping()
        yield b""
        step = max(1, len(message) // 7)
        for at in range(4, len(message), step):
            yield message[at : at + step]

    def keepalives(self):
        """Sends every kind of message without data."""
        self.ws.send(b"")
        self.ws.send(b"\x0a\x00")
        self.ws.send(chunk.UNKNOWN_FIELDS)
        self.ws.ping()
        self.ws.pong(b"unasked")

    def receive(self):
        """Returns the data of the next chunk, and checks the rules for senders."""
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

    def forward_up(self):
        """Forwards relay to target until the WebSocket closes; `fin` half-closes the target."""
        try:
            while True:
                finished = self.fin_up
                self.send_to_target(self.receive())
                if self.fin_up and not finished:
                    self.target.shutdown(socket.SHUT_WR)
                    self.close_if_both_finished()
        except ConnectionClosed:
            # The close of the relay ends the target connection. In version 1 it is the only signal.
            self.shut_target()

    def send_to_target(self, data):
        if data:
            self.up.update(data)
            self.up_bytes += len(data)
            self.target.sendall(data)

    def forward_down(self):
        """Forwards target to relay. At the end sends `fin` (version 2) or closes with 1000."""
        try:
            while data := self.target.recv(chunk.LARGEST_DATA if self.has("big-chunks") else 65536):
                self.send(data)
                self.count_down(data)
                if fault := next((q for q in self.quirks if q in FAULTS), None):
                    return self.inject(fault)
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
            # If this thread ends early, this wakes the other one.
            if not self.fin_down:
                self.shut_target()

    def close_if_both_finished(self):
        if self.fin_up and self.fin_down:
            self.ws.close(1000)

    def count_down(self, data):
        self.down.update(data)
        self.down_bytes += len(data)

    def inject(self, fault):
        if fault in UNDECODABLE:
            self.ws.send(UNDECODABLE[fault])
        elif fault == "text":
            self.ws.send("a text message")
        elif fault == "too-big":
            self.ws.send(b"\x0a" + chunk.varint(2 * chunk.LARGEST_MESSAGE) + bytes(2 * chunk.LARGEST_MESSAGE))
        elif fault == "data-after-fin":
            self.ws.send(chunk.encode(fin=True))
            self.ws.send(chunk.encode(b"data after fin"))
        elif fault == "close-before-fin":
            self.ws.close(1000)
        elif fault.startswith("close-"):
            self.ws.close(int(fault.removeprefix("close-")))
        elif fault == "tcp-reset":
            self.ws.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # A shutdown of both directions would send a FIN. The close with linger 0 sends the
            # reset, once the library's thread has released the socket.
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
        """Closes both ends, and reports the tunnel."""
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
    parser.add_argument("--elsewhere", default="http://127.0.0.1:9/", help="the location of a redirect")
    parser.add_argument("--v1", dest="v2", action="store_false", help="never select upstreamproxy.v2")
    parser.add_argument("--v2", dest="v2", action="store_true", help="select upstreamproxy.v2 if it is offered (default)")
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
        process_request=gateway.before_upgrade, process_response=gateway.change_upgrade, server_header=None,
    )
    report("ready", port=server.socket.getsockname()[1])
    server.serve_forever()


if __name__ == "__main__":
    main()
