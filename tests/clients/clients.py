"""Python clients, as their users write them: no proxy and no CA is named here.

Usage: clients.py CLIENT BASE_URL GRPC_AUTHORITY. It fails unless the client gets what the origin serves.
"""

import asyncio
import sys

HELLO = "hello from the origin of the test\n"
UPLOAD = bytes(5_000_000)


def expect(found, expected):
    assert found == expected, f"{found!r} instead of {expected!r}"


def urllib_get(base):
    import urllib.request

    expect(urllib.request.urlopen(base + "/hello").read().decode(), HELLO)
    request = urllib.request.Request(base + "/count", data=UPLOAD, method="POST")
    expect(urllib.request.urlopen(request).read(), b"5000000")


def requests_session(base):
    import requests

    with requests.Session() as session:
        expect(session.get(base + "/hello").text, HELLO)
        expect(session.post(base + "/count", data=UPLOAD).text, "5000000")
        expect(len(session.get(base + "/bytes/3000000").content), 3_000_000)


def requests_events(base):
    import requests

    seen = []
    with requests.get(base + "/events", stream=True) as response:
        for line in response.iter_lines(chunk_size=1):
            if line.startswith(b"data: "):
                seen.append(line)
                requests.post(base + "/confirm")
    expect(seen, [b"data: 0", b"data: 1", b"data: 2"])


def urllib3_proxy_from_environment(base):
    import os

    import urllib3

    # urllib3 reads no variable itself: this is what its documentation recommends.
    with urllib3.ProxyManager(os.environ["HTTPS_PROXY"]) as pool:
        expect(pool.request("GET", base + "/hello").data.decode(), HELLO)


def httpx_1_1(base):
    import httpx

    with httpx.Client() as client:
        expect(client.get(base + "/hello").text, HELLO)
        expect(client.post(base + "/count", content=UPLOAD).text, "5000000")


def httpx_async(base):
    import httpx

    async def main():
        async with httpx.AsyncClient(http2=True) as client:
            replies = await asyncio.gather(*(client.get(base + "/hello") for _ in range(20)))
            expect({reply.text for reply in replies}, {HELLO})

    asyncio.run(main())


def aiohttp_client(base):
    import aiohttp

    async def main():
        async with aiohttp.ClientSession(trust_env=True) as session:
            async with session.get(base + "/hello") as reply:
                expect(await reply.text(), HELLO)
            async with session.post(base + "/count", data=UPLOAD) as reply:
                expect(await reply.text(), "5000000")
            async with session.ws_connect(base.replace("https", "wss") + "/ws") as socket:
                await socket.send_str("echo")
                expect(await socket.receive_str(), "echo")

    asyncio.run(main())


def httplib2_client(base):
    import httplib2

    _, content = httplib2.Http().request(base + "/hello")
    expect(content.decode(), HELLO)


def google_auth_transport(base):
    from google.auth.transport.requests import AuthorizedSession
    from google.auth.credentials import AnonymousCredentials

    expect(AuthorizedSession(AnonymousCredentials()).get(base + "/hello").text, HELLO)


def niquests_client(base):
    import niquests

    expect(niquests.get(base + "/hello").text, HELLO)


def boto3_s3(base):
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=base,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    expect(client.get_object(Bucket="bucket", Key="key")["Body"].read().decode(), HELLO)


def websocket_client(base):
    import websocket

    socket = websocket.create_connection(base.replace("https", "wss") + "/ws")
    socket.send("echo")
    expect(socket.recv(), "echo")
    socket.close()


def websockets_sync(base):
    from websockets.sync.client import connect

    with connect(base.replace("https", "wss") + "/ws") as socket:
        socket.send(b"\0" * 500_000)
        expect(socket.recv(), b"\0" * 500_000)


def grpc_unary(authority):
    import grpc

    with grpc.secure_channel(authority, grpc.ssl_channel_credentials()) as channel:
        reverse = channel.unary_unary("/test.Echo/Reverse")
        expect(reverse(b"abc" * 100_000, timeout=30), b"cba" * 100_000)


CLIENTS = {
    client.__name__: client
    for client in [
        urllib_get,
        requests_session,
        requests_events,
        urllib3_proxy_from_environment,
        httpx_1_1,
        httpx_async,
        aiohttp_client,
        httplib2_client,
        google_auth_transport,
        niquests_client,
        boto3_s3,
        websocket_client,
        websockets_sync,
        grpc_unary,
    ]
}

if __name__ == "__main__":
    if sys.argv[1:] == ["list"]:
        print("\n".join(CLIENTS))
    else:
        name, base, authority = sys.argv[1:]
        CLIENTS[name](authority if name == "grpc_unary" else base)
        print(f"{name}: ok")
