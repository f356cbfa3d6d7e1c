//! A CONNECT client of few lines, to drive the relay's port and see every byte and how the connection ended.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::thread;

use super::PATIENCE;

/// What a proxy answered: a head, and what has come behind it so far.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// The head as text, the empty line left out.
    pub(crate) head: String,
    /// What came with the head: the first bytes of the tunnel.
    pub(crate) early: Vec<u8>,
}

impl Answer {
    /// Whether the head has a field of this name.
    pub(crate) fn has_field(&self, name: &str) -> bool {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .any(|(field, _)| field.eq_ignore_ascii_case(name))
    }
}

/// How a connection ended: nobody may take a part for the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// An orderly end of stream.
    Eof,
    /// A reset.
    Reset,
}

/// A tunnel through the proxy at `port`, or its refusal.
#[track_caller]
pub(crate) fn connect(port: u16, authority: &str) -> (TcpStream, Answer) {
    request(
        port,
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes(),
    )
}

/// Sends `bytes` to the port at once and reads the answer's head.
#[track_caller]
pub(crate) fn request(port: u16, bytes: &[u8]) -> (TcpStream, Answer) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let answer = answer(&mut stream);
    (stream, answer)
}

#[track_caller]
fn answer(stream: &mut TcpStream) -> Answer {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut buffer).expect("an answer");
        assert!(
            read > 0,
            "ended before a whole head: {:?}",
            String::from_utf8_lossy(&seen)
        );
        seen.extend_from_slice(&buffer[..read]);
        if let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
            let early = seen.split_off(end + 4);
            let head = String::from_utf8_lossy(&seen[..end]).into_owned();
            let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
            let status = status.unwrap_or_else(|| panic!("no status in {head:?}"));
            return Answer {
                status,
                head,
                early,
            };
        }
    }
}

/// Everything up to the end, and which end it was.
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
        // A far end that breaks off while we send is the reader's to judge.
        let sent = up.write_all(&payload);
        sent.and_then(|()| up.shutdown(Shutdown::Write))
    });
    let all = read_to_end(stream);
    let _ = sender.join().unwrap();
    all
}
