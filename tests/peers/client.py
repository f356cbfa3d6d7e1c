"""A protocol client to test the gateway: an independent peer based on `websockets`.

It opens one tunnel, sends bytes, half-closes (version 2), and reads to the end. Then it prints one
JSON line: the answers to the upgrade and the opening, the length and SHA-256 of the received bytes,
and how the tunnel ended.
"""

import argparse
import base64
import hashlib
import json
import socket
import ssl
import sys
import threading

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

import chunk

V2 = "upstreamproxy.v2"
# The timeout in seconds for each wait, so that a failing test ends.
TIMEOUT = 30.0

# Invalid messages that a hostile client sends in place of a chunk, by quirk.
INVALID = {
    "text": "a text message",
    "truncated": b"\x0a\x7fonly this",
    "bad-wire-type": b"\x0a\x02ok\x0e",
    "field-zero": b"\x0a\x02ok\x02\x01x",
    "long-varint": b"\x0a\x02ok\x48" + b"\x80" * 10 + b"\x01",
    "too-big": b"\x0a" + chunk.varint(2 * chunk.LARGEST_MESSAGE) + bytes(2 * chunk.LARGEST_MESSAGE),
}


class Client:
    def __init__(self, options, ws, payload):
        self.options, self.ws, self.payload = options, ws, payload
        self.v2 = ws.subprotocol == V2
        self.fin = False
        self.error = None

    def has(self, quirk):
        return quirk in self.options.quirk

    def send(self, data=b"", fin=False):
        message = None
        for quirk in self.options.quirk:
            message = message or chunk.encode_unusually(quirk, data, fin)
        message = message if message is not None else chunk.encode(data, fin)
        if self.has("fragmented"):
            step = max(1, len(message) // 5)
            self.ws.send([message[at : at + step] for at in range(0, len(message), step)] or [b""])
        else:
            self.ws.send(message)
        if self.has("keepalives"):
            for empty in (b"", b"\x0a\x00", chunk.UNKNOWN_FIELDS):
                self.ws.send(empty)
            self.ws.ping()

    def opening(self):
        options = self.options
        basic = options.basic or f"{options.session}:{options.token}"
        credentials = base64.b64encode(basic.encode()).decode()
        head = f"CONNECT {options.target} HTTP/1.1\r\n"
        if self.has("unknown-header"):
            head += "Host: elsewhere.test\r\nX-Unknown: yes\r\n"
        if not self.has("no-basic"):
            head += f"Proxy-Authorization: Basic {credentials}\r\n"
        head = (head + "\r\n").encode()
        if self.has("no-http"):
            head = b"SSH-2.0-client\r\n\r\n"
        if self.has("huge-head"):
            head = head[:-2] + b"X-Filler: " + b"x" * 20000 + b"\r\n\r\n"
        if self.has("many-chunks"):
            for byte in head:
                self.send(bytes([byte]))
        elif self.has("head-and-payload"):
            first, self.payload = self.payload[:1000], self.payload[1000:]
            self.send(head + first)
        else:
            self.send(head)
        if self.has("early-data"):
            early, self.payload = self.payload[:30000], self.payload[30000:]
            for at in range(0, len(early), 999):
                self.send(early[at : at + 999])

    def receive(self):
        """Returns the data of the next chunk, and checks the rules for senders."""
        message = self.ws.recv(TIMEOUT)
        if isinstance(message, str):
            raise chunk.Undecodable("a text message")
        data, fin = chunk.decode(message)
        if len(data) > chunk.LARGEST_DATA or (self.fin and (data or fin)):
            raise chunk.Undecodable("the sender broke a rule")
        self.fin = self.v2 and fin
        return data

    def answer(self):
        """Returns the head without the empty line, and the data after it."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.receive()
        head, _, rest = data.partition(b"\r\n\r\n")
        return head.decode("latin-1"), rest

    def send_payload(self):
        try:
            for at in range(0, len(self.payload), self.options.chunk):
                self.send(self.payload[at : at + self.options.chunk])
            for quirk in self.options.quirk:
                if quirk in INVALID:
                    self.ws.send(INVALID[quirk])
            if self.has("data-after-fin"):
                # In one segment. Otherwise the tunnel may correctly end before the data arrives.
                self.ws.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, True)
            if self.v2 and not self.options.no_fin:
                self.send(fin=True)
            if self.has("data-after-fin"):
                self.ws.send(chunk.encode(b"data after fin"))
                self.ws.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, False)
        except ConnectionClosed:
            pass

    def run(self):
        report = {"subprotocol": self.ws.subprotocol, "status": None}
        body = b""
        try:
            self.opening()
            head, body = self.answer()
            report["status"], report["head"] = int(head.split(" ")[1]), head
            sender = threading.Thread(target=self.send_payload, daemon=True)
            if report["status"] // 100 == 2:
                sender.start()
            while not self.fin:
                body += self.receive()
                if self.options.expect and len(body) >= self.options.expect:
                    break
            if sender.ident:
                sender.join(TIMEOUT)
            self.ws.close(1000)
        except ConnectionClosed:
            pass
        except (chunk.Undecodable, TimeoutError) as error:
            report["error"] = f"{type(error).__name__}: {error}"
            self.ws.close(1011)
        received = self.ws.protocol.close_rcvd
        report.update(
            length=len(body), sha256=hashlib.sha256(body).hexdigest(), fin=self.fin,
            close_code=received.code if received else None,
        )
        if self.options.out:
            with open(self.options.out, "wb") as out:
                out.write(body)
        return report


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--session", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--bearer", help="token in the upgrade, if not --token")
    parser.add_argument("--basic", help="`session:token` in the opening, if not --session and --token")
    parser.add_argument("--target", required=True)
    parser.add_argument("--ca", help="PEM file with the CA of a wss gateway")
    parser.add_argument("--v1", action="store_true", help="do not offer upstreamproxy.v2")
    parser.add_argument("--send", help="file with the bytes to send; `-` is standard input")
    parser.add_argument("--out", help="file for the received bytes")
    parser.add_argument("--chunk", type=int, default=65536)
    parser.add_argument("--no-fin", action="store_true")
    parser.add_argument("--expect", type=int, default=0, help="disconnect after this number of bytes")
    parser.add_argument("--quirk", action="append", default=[])
    return parser.parse_args()


def main():
    options = parse()
    payload = b""
    if options.send == "-":
        payload = sys.stdin.buffer.read()
    elif options.send:
        with open(options.send, "rb") as source:
            payload = source.read()
    url = options.base_url.replace("http", "ws", 1) + "/v1/code/upstreamproxy/ws"
    headers = {"Authorization": "Bearer " + (options.bearer or options.token), "Content-Type": "application/proto"}
    if "no-bearer" in options.quirk:
        del headers["Authorization"]
    tls = ssl.create_default_context(cafile=options.ca) if url.startswith("wss:") else None
    settings = {
        "additional_headers": headers, "subprotocols": None if options.v1 else [V2], "ssl": tls, "compression": None,
        "proxy": None, "ping_interval": None, "user_agent_header": None, "max_size": chunk.LARGEST_MESSAGE,
        "close_timeout": 5, "open_timeout": TIMEOUT, "origin": "https://evil.test" if "origin" in options.quirk else None,
    }
    try:
        with connect(url, **settings) as ws:
            print(json.dumps({"upgrade": 101, **Client(options, ws, payload).run()}))
    except InvalidStatus as error:
        print(json.dumps({"upgrade": error.response.status_code}))
    except (WebSocketException, OSError) as error:
        print(json.dumps({"upgrade": None, "error": f"{type(error).__name__}: {error}"}))


if __name__ == "__main__":
    main()
