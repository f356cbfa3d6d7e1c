//! A minimal CONNECT client. It talks to the relay's port and reports every byte and how the
//! connection ended.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::thread;

use super::TIMEOUT;

/// A proxy's response: the head, and the bytes that arrived together with it.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The head as text, without the empty line.
    pub(crate) head: String,
    /// The bytes that arrived together with the head: the first bytes of the tunnel.
    pub(crate) early: Vec<u8>,
}

impl Response {
    /// Whether the head has a field of this name.
    pub(crate) fn has_field(&self, name: &str) -> bool {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .any(|(field, _)| field.eq_ignore_ascii_case(name))
    }
}

/// How a connection ended. A reset means that the data may be incomplete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A clean end of stream.
    Eof,
    /// A reset.
    Reset,
}

/// Opens a tunnel through the proxy at `port`. Returns the response, which may be a refusal.
#[track_caller]
pub(crate) fn connect(port: u16, authority: &str) -> (TcpStream, Response) {
    request(
        port,
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes(),
    )
}

/// Connects to the port, sends `bytes` and reads the response head.
#[track_caller]
pub(crate) fn request(port: u16, bytes: &[u8]) -> (TcpStream, Response) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(bytes).unwrap();
    let response = read_response(&mut stream);
    (stream, response)
}

/// Reads a response head.
#[track_caller]
pub(crate) fn read_response(stream: &mut TcpStream) -> Response {
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut buffer).expect("a response");
        assert!(
            read > 0,
            "closed before a complete head: {:?}",
            String::from_utf8_lossy(&received)
        );
        received.extend_from_slice(&buffer[..read]);
        if let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") {
            let early = received.split_off(end + 4);
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
            let status = status.unwrap_or_else(|| panic!("no status in {head:?}"));
            return Response {
                status,
                head,
                early,
            };
        }
    }
}

/// Reads all bytes up to the end of the connection. Returns them and how it ended.
#[track_caller]
pub(crate) fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, Ending) {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, Ending::Eof),
            Ok(read) => all.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return (all, Ending::Reset);
            }
            Err(error) => panic!("{error} after {} bytes", all.len()),
        }
    }
}

/// Sends `payload` and half-closes, while reading to the end.
#[track_caller]
pub(crate) fn exchange(stream: &mut TcpStream, payload: Vec<u8>) -> (Vec<u8>, Ending) {
    let mut up = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        // If the peer closes early, this write fails; the reader's result shows how.
        let sent = up.write_all(&payload);
        sent.and_then(|()| up.shutdown(Shutdown::Write))
    });
    let all = read_to_end(stream);
    let _ = sender.join().unwrap();
    all
}
