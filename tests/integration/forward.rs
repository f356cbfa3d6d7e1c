//! Requests in absolute-form and SOCKS5 on the relay's port.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::support::{
    CannedServer, EchoServer, Ending, GatewayProcess, HttpsOrigin, RelayProcess, ScriptedServer,
    TIMEOUT, TempHome, exchange, need_tool, pattern, read_to_end, request,
};

/// A gateway that allows every address, and a relay in front of it.
fn relay_and_gateway(home: &TempHome) -> (RelayProcess, GatewayProcess) {
    let gateway = GatewayProcess::start(home, &[]);
    let relay = RelayProcess::start(home, &gateway.base_url(), &[]);
    (relay, gateway)
}

/// An HTTP/1.1 connection, for the client and for the origin of a test.
struct Http(BufReader<TcpStream>);

/// A message: its start line and fields, and its body without chunk framing.
#[derive(Debug)]
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    fn start_line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

impl Http {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn head(&mut self) -> Option<String> {
        let mut head = String::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                assert!(
                    head.is_empty(),
                    "the connection ended inside a head: {head:?}"
                );
                return None;
            }
            if line == "\r\n" {
                return Some(head);
            }
            head += &line;
        }
    }

    /// Reads a message whose body has a length, or none. `None`: the connection has ended.
    fn message(&mut self, has_body: bool) -> Option<Message> {
        let mut message = Message {
            head: self.head()?,
            body: Vec::new(),
        };
        if !has_body {
            return Some(message);
        }
        if let Some(length) = message.field("content-length") {
            message.body = vec![0; length.parse().unwrap()];
            self.0.read_exact(&mut message.body).unwrap();
        } else if message.field("transfer-encoding").is_some() {
            loop {
                let line = self.line();
                let size = line.trim().split(';').next().unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                if size == 0 {
                    while self.line() != "\r\n" {}
                    break;
                }
                let start = message.body.len();
                message.body.resize(start + size, 0);
                self.0.read_exact(&mut message.body[start..]).unwrap();
                assert_eq!(self.line(), "\r\n");
            }
        }
        Some(message)
    }
}

/// An origin that answers each request with its own text, its fields and its body.
fn mirror() -> ScriptedServer {
    ScriptedServer::start(|stream| {
        let mut http = Http(BufReader::new(stream));
        while let Some(request) = http.message(true) {
            let chunked = request.field("x-respond-chunked").is_some();
            let body = [request.head.as_bytes(), b"\r\n", &request.body].concat();
            if request.head.starts_with("HEAD ") {
                http.send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                ));
            } else if chunked {
                http.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for chunk in body.chunks(70_000) {
                    http.send(format!("{:x};x=1\r\n", chunk.len()));
                    http.send(chunk);
                    http.send("\r\n");
                }
                http.send("0\r\nX-Trailer: 1\r\n\r\n");
            } else {
                http.send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                ));
                http.send(body);
            }
        }
        Ok(())
    })
}

#[test]
fn one_connection_serves_many_requests_with_any_framing_of_their_bodies() {
    let home = TempHome::new();
    let (relay, gateway) = relay_and_gateway(&home);
    let origin = mirror();
    let mut client = Http::connect(relay.port());
    let at = origin.authority();
    for size in [0, 1, 1_000, 3_000_000] {
        let body = pattern(size);
        for chunked_request in [false, true] {
            for extra in ["", "X-Respond-Chunked: 1\r\n"] {
                client.send(format!(
                    "POST http://{at}/{size} HTTP/1.1\r\nHost: ignored\r\n{extra}"
                ));
                let mut sender = client.0.get_ref().try_clone().unwrap();
                let sent = body.clone();
                // The origin answers while large bodies are still under way.
                let sending = std::thread::spawn(move || {
                    if chunked_request {
                        let mut framed = b"Transfer-Encoding: chunked\r\n\r\n".to_vec();
                        for chunk in sent.chunks(9_999) {
                            framed.extend(format!("{:X}\r\n", chunk.len()).as_bytes());
                            framed.extend(chunk);
                            framed.extend(b"\r\n");
                        }
                        framed.extend(b"0\r\n\r\n");
                        sender.write_all(&framed)
                    } else {
                        let length = format!("Content-Length: {}\r\n\r\n", sent.len());
                        sender.write_all(&[length.as_bytes(), &sent].concat())
                    }
                });
                let response = client.message(true).expect("a response");
                sending.join().unwrap().unwrap();
                assert_eq!(response.start_line(), "HTTP/1.1 200 OK");
                let separator = response
                    .body
                    .windows(4)
                    .position(|w| w == b"\r\n\r\n")
                    .unwrap();
                let (head, received) = response.body.split_at(separator + 4);
                assert!(received == body, "{size}: the body is unchanged");
                let head = String::from_utf8_lossy(head);
                assert!(
                    head.starts_with(&format!("POST /{size} HTTP/1.1\r\nHost: {at}\r\n")),
                    "{head}"
                );
                assert!(!head.contains("ignored"), "{head}");
            }
        }
    }
    client.send(format!(
        "HEAD http://{at}/ HTTP/1.1\r\nHost: h\r\n\r\nGET http://{at}/last HTTP/1.1\r\nHost: h\r\n\r\n"
    ));
    let head = client.message(false).unwrap();
    assert!(
        head.field("content-length")
            .is_some_and(|length| length != "0"),
        "{head:?}"
    );
    let last = client.message(true).unwrap();
    assert!(
        last.body.starts_with(b"GET /last "),
        "a pipelined request is served"
    );
    assert_eq!(
        origin.connections(),
        1,
        "one tunnel serves all requests to one origin"
    );
    drop(client);
    relay.stop().succeeded();
    gateway.running.stop().succeeded();
}

#[test]
fn requests_to_several_origins_share_the_clients_connection() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home);
    let (first, second) = (mirror(), mirror());
    let mut client = Http::connect(relay.port());
    for (n, origin) in [&first, &second, &second, &first].into_iter().enumerate() {
        client.send(format!(
            "GET http://{}/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
            origin.authority()
        ));
        let response = client.message(true).unwrap();
        assert!(response.body.starts_with(format!("GET /{n} ").as_bytes()));
    }
    assert_eq!((first.connections(), second.connections()), (2, 1));
    drop(client);
    let log = relay.stop().succeeded().stderr;
    let lines = |origin: &ScriptedServer| {
        log.matches(&format!("relay: {} ", origin.authority()))
            .count()
    };
    assert_eq!(
        (lines(&first), lines(&second)),
        (2, 1),
        "one line per tunnel: {log}"
    );
}

#[test]
fn interim_responses_and_early_final_responses_are_forwarded() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home);
    let origin = ScriptedServer::start(|stream| {
        let mut http = Http(BufReader::new(stream));
        let head = http.head().unwrap();
        if head.contains("/early") {
            http.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno\n");
            return Ok(());
        }
        http.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
        let mut body = [0; 5];
        http.0.read_exact(&mut body)?;
        assert_eq!(&body, b"hello");
        http.send("HTTP/1.1 204 No Content\r\n\r\n");
        Ok(())
    });
    let at = origin.authority();
    let mut client = Http::connect(relay.port());
    let head = format!(
        "PUT http://{at}/ HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    );
    client.send(&head);
    assert_eq!(
        client.message(false).unwrap().start_line(),
        "HTTP/1.1 103 Early Hints"
    );
    assert_eq!(
        client.message(false).unwrap().start_line(),
        "HTTP/1.1 100 Continue"
    );
    client.send("hello");
    assert_eq!(
        client.message(false).unwrap().start_line(),
        "HTTP/1.1 204 No Content"
    );

    let mut client = Http::connect(relay.port());
    client.send(head.replace("/ HTTP", "/early HTTP"));
    let refused = client.message(true).unwrap();
    assert_eq!(
        (refused.start_line(), refused.body.as_slice()),
        ("HTTP/1.1 413 Too Large", &b"no\n"[..])
    );
    assert_eq!(
        refused.field("connection"),
        Some("close"),
        "the body was never sent"
    );
    assert!(client.message(true).is_none());
}

#[test]
fn after_an_upgrade_both_directions_are_a_stream() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home);
    let origin = ScriptedServer::start(|stream| {
        let mut http = Http(BufReader::new(stream));
        let head = http.head().unwrap();
        assert!(
            head.contains("Upgrade: websocket\r\nConnection: Upgrade\r\n"),
            "{head}"
        );
        http.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst");
        let mut stream = http.0.into_inner();
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)?;
        stream.shutdown(Shutdown::Write)
    });
    let head = format!(
        "GET http://{}/chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        origin.authority()
    );
    let (mut stream, response) = request(relay.port(), head.as_bytes());
    assert_eq!(response.status, 101);
    let payload = pattern(1_000_000);
    let (received, ending) = exchange(&mut stream, payload.clone());
    let received = [response.early, received].concat();
    assert!(received == [b"first", payload.as_slice()].concat());
    assert_eq!(ending, Ending::Eof);
}

#[test]
fn a_part_of_a_response_never_looks_like_the_whole() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home);
    // The response of the origin, and what the client receives.
    let cases: [(&str, u16, &str, Ending); 12] = [
        (
            "HTTP/1.1 200 OK\r\n\r\nuntil close",
            200,
            "until close",
            Ending::Eof,
        ),
        ("HTTP/1.0 200 OK\r\n\r\nold", 200, "old", Ending::Eof),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            200,
            "short",
            Ending::Reset,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort",
            200,
            "5\r\nshort",
            Ending::Reset,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            200,
            "",
            Ending::Reset,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            502,
            "malformed",
            Ending::Eof,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            502,
            "malformed",
            Ending::Eof,
        ),
        (
            "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            502,
            "malformed",
            Ending::Eof,
        ),
        ("SSH-2.0-x\r\n", 502, "malformed", Ending::Eof),
        (
            "HTTP/1.1 200 OK\r\nContent-Le",
            502,
            "inside its response",
            Ending::Eof,
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            502,
            "changed the protocol",
            Ending::Eof,
        ),
        ("HTTP/1.1 100 Continue\r\n\r\n", 100, "", Ending::Reset),
    ];
    for (bytes, status, text, expected) in cases {
        let origin = CannedServer::start(bytes);
        let head = format!("GET {}/ HTTP/1.1\r\nHost: h\r\n\r\n", origin.url());
        let (mut stream, response) = request(relay.port(), head.as_bytes());
        assert_eq!(response.status, status, "{bytes:?}: {response:?}");
        let (rest, ending) = read_to_end(&mut stream);
        let body = String::from_utf8([response.early, rest].concat()).unwrap();
        if status == 502 {
            assert!(body.contains(text), "{bytes:?}: {body:?}");
        } else {
            assert_eq!(body, text, "{bytes:?}");
        }
        assert_eq!(ending, expected, "{bytes:?}");
    }
}

#[test]
fn requests_that_two_readers_could_read_differently_are_rejected() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home);
    let origin = mirror();
    let at = origin.authority();
    for (fields, status) in [
        ("Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
        (
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("Transfer-Encoding: chunked\r\n\r\n5\nhello", 400),
        ("Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        ("Content-Length: -1\r\n\r\n", 400),
        ("X : 1\r\n\r\n", 400),
        ("Host: a.test\r\n\r\n", 400),
        ("\r\n", 400),
    ] {
        let host = if fields == "\r\n" { "" } else { "Host: h\r\n" };
        let head = format!("POST http://{at}/ HTTP/1.1\r\n{host}{fields}");
        let (mut stream, response) = request(relay.port(), head.as_bytes());
        assert_eq!(response.status, status, "{fields:?}: {response:?}");
        assert_eq!(read_to_end(&mut stream).1, Ending::Eof, "{fields:?}");
    }
    let port = relay.port();
    for (url, status) in [
        ("http://user:secret@a.test/".to_owned(), 400),
        ("gopher://a.test/".to_owned(), 400),
        (format!("http://127.0.0.1:{port}/"), 403),
        (format!("https://localhost:{port}/"), 403),
        ("http://127.0.0.1:1/".to_owned(), 502),
    ] {
        let (mut stream, response) = request(
            port,
            format!("GET {url} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes(),
        );
        assert_eq!(response.status, status, "{url}");
        let (rest, _) = read_to_end(&mut stream);
        let body = [response.early, rest].concat();
        assert!(!String::from_utf8_lossy(&body).contains("secret"), "{url}");
    }
}

#[test]
fn an_idle_tunnel_that_the_origin_has_closed_is_replaced() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home);
    // Each connection serves one request, although its response says nothing about that.
    let origin = ScriptedServer::start(|stream| {
        let mut http = Http(BufReader::new(stream));
        if http.message(true).is_some() {
            http.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        Ok(())
    });
    let mut client = Http::connect(relay.port());
    for n in 1..=20 {
        client.send(format!(
            "GET http://{}/ HTTP/1.1\r\nHost: h\r\n\r\n",
            origin.authority()
        ));
        assert_eq!(client.message(true).unwrap().body, b"ok");
        assert_eq!(origin.connections(), n);
    }
    drop(client);
    let log = relay.stop().succeeded().stderr;
    let line = format!("relay: {} ", origin.authority());
    assert_eq!(log.matches(&line).count(), 20, "one line per tunnel: {log}");
}

#[test]
fn https_urls_are_requested_with_tls_and_verified() {
    let home = TempHome::new();
    let origin = HttpsOrigin::start("origin.test");
    let script = format!(
        "set -e; url={}; proxy=${{HTTPS_PROXY#http://}}; host=${{proxy%:*}}; port=${{proxy#*:}}
         printf 'GET %s HTTP/1.1\\r\\nHost: h\\r\\nConnection: close\\r\\n\\r\\n' \"$url\" |
             curl -sS --max-time 30 telnet://$proxy",
        origin.url("/hello")
    );
    if !need_tool("curl") {
        return;
    }
    let run = |options: &[&str]| {
        let mut command = origin.embedded(&home, options);
        command.args(["--", "sh", "-c", &script]);
        crate::support::finish(&mut command)
    };
    let ca = origin.ca_file();
    let trusted = run(&["--system-ca", ca.to_str().unwrap()]).succeeded();
    assert!(
        trusted.text().ends_with(HttpsOrigin::HELLO),
        "{}",
        trusted.text()
    );
    let passed_through = run(&[
        "--intercept",
        "other.test",
        "--system-ca",
        ca.to_str().unwrap(),
    ]);
    assert!(
        passed_through.text().ends_with(HttpsOrigin::HELLO),
        "{}",
        passed_through.text()
    );
}

#[test]
fn an_https_origin_that_is_not_trusted_gets_502_with_the_reason() {
    let home = TempHome::new();
    let origin = HttpsOrigin::start("origin.test");
    let gateway = GatewayProcess::start(&home, &["--resolve", &origin.resolve()]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let head = format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", origin.url("/hello"));
    let (mut stream, response) = request(relay.port(), head.as_bytes());
    let (rest, _) = read_to_end(&mut stream);
    let body = String::from_utf8([response.early, rest].concat()).unwrap();
    assert_eq!(response.status, 502, "{body}");
    assert!(
        body.contains("certificate") && body.contains("not issued by a CA"),
        "{body}"
    );
}

/// Sends SOCKS messages and checks each reply.
fn socks(port: u16, messages: &[(&[u8], &[u8])]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    for (message, expected) in messages {
        // Byte by byte: no message depends on its segmentation.
        for byte in *message {
            stream.write_all(&[*byte]).unwrap();
        }
        let mut reply = vec![0; expected.len()];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, expected, "after {message:?}");
    }
    stream
}

const ESTABLISHED: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// A SOCKS5 CONNECT request for an IPv4 address or a name.
fn socks_request(host: &str, port: u16) -> Vec<u8> {
    let head = [5, 1, 0, 3, u8::try_from(host.len()).unwrap()];
    [&head, host.as_bytes(), &port.to_be_bytes()].concat()
}

#[test]
fn socks5_opens_tunnels_to_names_and_addresses() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home);
    let echo = EchoServer::start();
    let port = echo.port();
    let address = [&[5, 1, 0, 1, 127, 0, 0, 1][..], &port.to_be_bytes()].concat();
    for request in [
        address,
        socks_request("127.0.0.1", port),
        socks_request("localhost", port),
    ] {
        let greeting: (&[u8], &[u8]) = (&[5, 2, 0, 2], &[5, 0]);
        let mut stream = socks(relay.port(), &[greeting, (&request, ESTABLISHED)]);
        let payload = pattern(300_000);
        let (received, ending) = exchange(&mut stream, payload.clone());
        assert!(received == payload && ending == Ending::Eof);
    }
    let log = relay.stop().succeeded().stderr;
    assert!(
        log.contains(&format!("relay: localhost:{port} 300000 bytes up")),
        "{log}"
    );
}

#[test]
fn socks_clients_receive_the_code_for_what_failed() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home);
    let port = relay.port();
    let own_port = socks_request("localhost", port);
    let closed = socks_request("127.0.0.1", 1);
    let failure = |code| [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
    let (own, refused, command, kind, general) =
        (failure(2), failure(5), failure(7), failure(8), failure(1));
    let greeting: (&[u8], &[u8]) = (&[5, 1, 0], &[5, 0]);
    for messages in [
        vec![(&[5_u8, 1, 2][..], &[5_u8, 0xff][..])],
        vec![(&[4, 1, 0, 80, 127, 0, 0, 1, 0], &[0, 91, 0, 0, 0, 0, 0, 0])],
        vec![greeting, (&own_port, &own)],
        vec![greeting, (&closed, &refused)],
        vec![greeting, (&[5, 2, 0, 1, 127, 0, 0, 1, 0, 80], &command)],
        vec![greeting, (&[5, 3, 0, 1], &command)],
        vec![greeting, (&[5, 1, 0, 9], &kind)],
        vec![greeting, (&[5, 1, 0, 3, 1, b'?', 0, 80], &general)],
    ] {
        let mut stream = socks(port, &messages[..messages.len() - 1]);
        // The last message may be refused before all of it was sent, so it is sent at once.
        let (message, reply) = messages[messages.len() - 1];
        stream.write_all(message).unwrap();
        let (received, ending) = read_to_end(&mut stream);
        assert_eq!(
            (received.as_slice(), ending),
            (reply, Ending::Eof),
            "{messages:?}"
        );
    }
}

#[test]
fn socks_clients_authenticate_with_the_password_of_the_proxy_url() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--listen-credential"]);
    let url = relay.ready["env"]["HTTPS_PROXY"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let userinfo = url
        .strip_prefix("http://")
        .unwrap()
        .split('@')
        .next()
        .unwrap();
    let (user, password) = userinfo.split_once(':').unwrap();
    let echo = EchoServer::start();
    let message = |password: &str| {
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        let user_part = [&[1, length(user)], user.as_bytes()].concat();
        [&user_part, &[length(password)][..], password.as_bytes()].concat()
    };
    let greeting: (&[u8], &[u8]) = (&[5, 2, 0, 2], &[5, 2]);
    let target = socks_request("localhost", echo.port());
    let right = message(password);
    let authenticated: (&[u8], &[u8]) = (&right, &[1, 0]);
    let mut stream = socks(
        relay.port(),
        &[greeting, authenticated, (&target, ESTABLISHED)],
    );
    assert_eq!(exchange(&mut stream, b"hello".to_vec()).0, b"hello");
    let mut stream = socks(relay.port(), &[greeting, (&message("wrong"), &[1, 1])]);
    assert_eq!(read_to_end(&mut stream).0, b"");
    let mut stream = socks(relay.port(), &[(&[5, 1, 0], &[5, 0xff])]);
    assert_eq!(read_to_end(&mut stream).0, b"");

    // The same password is required for requests in absolute-form.
    let origin = mirror();
    let get = |field: &str| {
        format!(
            "GET http://{}/ HTTP/1.1\r\nHost: h\r\n{field}\r\n",
            origin.authority()
        )
    };
    let mut client = Http::connect(relay.port());
    client.send(get(""));
    let refused = client.message(true).unwrap();
    assert_eq!(
        refused.start_line(),
        "HTTP/1.1 407 this proxy requires a password"
    );
    let basic = data_encoding::BASE64.encode(userinfo.as_bytes());
    client.send(get(&format!("Proxy-Authorization: Basic {basic}\r\n")));
    let served = client.message(true).unwrap();
    assert!(
        !String::from_utf8_lossy(&served.body).contains(&basic),
        "it is not forwarded"
    );
    client.send(get(""));
    let refused = client.message(true).unwrap();
    assert!(
        refused.start_line().contains("407"),
        "also for a later request"
    );
}
