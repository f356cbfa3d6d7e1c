//! Small TCP servers on loopback. Each has a behaviour that a tunnel must support.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::TIMEOUT;

/// Returns `length` pseudo-random bytes, so that lost, duplicated or reordered data is detected.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

/// Runs one function for each connection, each on a thread, and counts the connections. The
/// accepting thread runs until the test process exits.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Server {
    fn start(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (serve, seen) = (Arc::new(serve), Arc::clone(&connections));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                seen.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                thread::spawn(move || {
                    stream.set_read_timeout(Some(TIMEOUT))?;
                    serve(stream)
                });
            }
        });
        Self { port, connections }
    }
}

/// The methods that all servers share.
macro_rules! server {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub(crate) struct $name(Server);

        #[allow(dead_code, reason = "not every test uses every method")]
        impl $name {
            /// The port on loopback.
            pub(crate) fn port(&self) -> u16 {
                self.0.port
            }

            /// `127.0.0.1:port`.
            pub(crate) fn authority(&self) -> String {
                format!("127.0.0.1:{}", self.port())
            }

            /// How many connections were accepted.
            pub(crate) fn connections(&self) -> usize {
                self.0.connections.load(Ordering::SeqCst)
            }
        }
    };
}

server!(
    /// Echoes all bytes, and closes after its peer has closed.
    EchoServer
);
server!(
    /// Sends a greeting before it reads (as SMTP and SSH servers do), and then echoes.
    SpeaksFirstServer
);
server!(
    /// Reads to the end of its input and answers only then, so it needs a half-close. The answer is
    /// `N bytes` and the last 8 of them.
    HalfCloseServer
);
server!(
    /// Answers any HTTP request with the same bytes and closes.
    CannedServer
);

server!(
    /// Runs a function of the test for each connection.
    ScriptedServer
);

impl ScriptedServer {
    pub(crate) fn start(
        serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self(Server::start(serve))
    }
}

impl EchoServer {
    pub(crate) fn start() -> Self {
        Self(Server::start(echo))
    }
}

impl SpeaksFirstServer {
    /// What it sends first.
    pub(crate) const GREETING: &str = "220 speaks first\r\n";

    pub(crate) fn start() -> Self {
        Self(Server::start(|mut stream| {
            stream.write_all(Self::GREETING.as_bytes())?;
            echo(stream)
        }))
    }
}

impl HalfCloseServer {
    pub(crate) fn start() -> Self {
        Self(Server::start(|mut stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            stream.write_all(&Self::answer(&all))
        }))
    }

    /// The answer to the input `all`.
    pub(crate) fn answer(all: &[u8]) -> Vec<u8> {
        let mut answer = format!("{} bytes ", all.len()).into_bytes();
        answer.extend_from_slice(&all[all.len().saturating_sub(8)..]);
        answer
    }
}

impl CannedServer {
    /// Sends `response` after the empty line of the request. With an empty `response` it never
    /// answers.
    pub(crate) fn start(response: impl Into<Vec<u8>>) -> Self {
        let response = response.into();
        Self(Server::start(move |mut stream| {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
                head.push(byte[0]);
            }
            if response.is_empty() {
                // Stays silent until the client closes.
                return stream.read_to_end(&mut head).map(|_| ());
            }
            stream.write_all(&response)?;
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_end(&mut head).map(|_| ())
        }))
    }

    /// Answers with `status` and `body`, with a matching `Content-Length`.
    pub(crate) fn answering(status: &str, body: &[u8]) -> Self {
        let mut response = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        response.extend_from_slice(body);
        Self::start(response)
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.authority())
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}
