"""An HTTPS origin for HTTP, server-sent events, uploads, WebSocket, git and a little of S3, and a gRPC one.

Usage: origin.py CERTIFICATE KEY GIT_DIRECTORY. It prints one JSON line with its ports when it is ready.
"""

import asyncio
import json
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from aiohttp import WSMsgType, web

HELLO = "hello from the origin of the test\n"


async def hello(request):
    return web.Response(text=HELLO)


async def count(request):
    """Answers with the number of bytes in the body of the request."""
    total = 0
    async for part in request.content.iter_any():
        total += len(part)
    return web.Response(text=str(total))


async def download(request):
    return web.Response(body=bytes(int(request.match_info["size"])))


async def events(request):
    """Three events. The next is sent only when the client has confirmed the last one."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(3):
        request.app["confirmed"].clear()
        await response.write(f"data: {number}\n\n".encode())
        await request.app["confirmed"].wait()
    await response.write_eof()
    return response


async def confirm(request):
    request.app["confirmed"].set()
    return web.Response(text="ok")


async def echo(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def git(request):
    """The smart HTTP protocol of git, by its own CGI program."""
    environment = {
        "GIT_PROJECT_ROOT": request.app["git"],
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": "/" + request.match_info["path"],
        "REMOTE_USER": "user",
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": request.query_string,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "git", "http-backend", env=environment, stdin=pipe, stdout=pipe
    )
    output, _ = await process.communicate(await request.read())
    head, _, body = output.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    status = int(fields.pop("Status", "200").split()[0])
    return web.Response(status=status, headers=fields, body=body)


def grpc_server(certificate, key):
    def reply(request, context):
        return request[::-1]

    handler = grpc.method_handlers_generic_handler(
        "test.Echo", {"Reverse": grpc.unary_unary_rpc_method_handler(reply)}
    )
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((handler,))
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, port


async def main(certificate, key, git_root):
    app = web.Application(client_max_size=1 << 30)
    app["git"] = git_root
    app["confirmed"] = asyncio.Event()
    app.router.add_get("/hello", hello)
    app.router.add_get("/bucket/key", hello)
    app.router.add_post("/count", count)
    app.router.add_put("/count", count)
    app.router.add_get("/bytes/{size}", download)
    app.router.add_get("/events", events)
    app.router.add_post("/confirm", confirm)
    app.router.add_get("/ws", echo)
    app.router.add_route("*", "/git/{path:.*}", git)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    with open(certificate, "rb") as c, open(key, "rb") as k:
        server, grpc_port = grpc_server(c.read(), k.read())
    port = site._server.sockets[0].getsockname()[1]
    print(json.dumps({"port": port, "grpc": grpc_port}), flush=True)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
