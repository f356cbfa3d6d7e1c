//! A relay written by hand, which also does what no relay does: it stops in any phase.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use data_encoding::BASE64;

use super::TIMEOUT;

/// The upgrade request with `token`.
pub(crate) fn upgrade_request(token: &str) -> String {
    format!(
        "GET /v1/code/upstreamproxy/ws HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: upstreamproxy.v2\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
}

/// A message of the client that is masked with zeros. `finished`: it has no further fragments.
pub(crate) fn message(payload: &[u8], finished: bool) -> Vec<u8> {
    let mut frame = vec![if finished { 0x82 } else { 0x02 }];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            frame.push(0xfe);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0xff);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// The opening for `authority`, as one message.
pub(crate) fn opening(authority: &str, session: &str, token: &str) -> Vec<u8> {
    let basic = BASE64.encode(format!("{session}:{token}").as_bytes());
    let head =
        format!("CONNECT {authority} HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n");
    let mut chunk = vec![0x0a];
    let (low, high) = (head.len() & 0x7f, head.len() >> 7);
    if high == 0 {
        chunk.push(low as u8);
    } else {
        chunk.extend([low as u8 | 0x80, high as u8]);
    }
    chunk.extend(head.as_bytes());
    message(&chunk, true)
}

/// A connection to a gateway on loopback.
#[derive(Debug)]
pub(crate) struct HandWrittenRelay {
    /// The socket.
    pub(crate) stream: TcpStream,
}

impl HandWrittenRelay {
    /// Connects and sends nothing.
    #[track_caller]
    pub(crate) fn connect(port: u16) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream }
    }

    /// Sends the upgrade request and returns the status of its response; `None` if the gateway
    /// closed the connection instead.
    pub(crate) fn upgrade(&mut self, token: &str) -> Option<u16> {
        self.stream
            .write_all(upgrade_request(token).as_bytes())
            .ok()?;
        let head = self.read_until_empty_line()?;
        head.split(' ').nth(1)?.parse().ok()
    }

    /// A WebSocket without an opening.
    #[track_caller]
    pub(crate) fn upgraded(port: u16, token: &str) -> Self {
        let mut relay = Self::connect(port);
        assert_eq!(relay.upgrade(token), Some(101));
        relay
    }

    /// Sends the opening and returns the status of its response; `None` if the gateway closed the
    /// connection instead.
    pub(crate) fn open(&mut self, authority: &str, session: &str, token: &str) -> Option<u16> {
        self.stream
            .write_all(&opening(authority, session, token))
            .ok()?;
        let text = self.read_until_empty_line()?;
        let status = text.split_once("HTTP/1.1 ")?.1;
        status.get(..3)?.parse().ok()
    }

    /// Whether the gateway has closed the connection. It does not block.
    pub(crate) fn is_closed(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let read = (&self.stream).read(&mut [0; 4096]);
        self.stream.set_nonblocking(false).unwrap();
        !matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    fn read_until_empty_line(&mut self) -> Option<String> {
        let (mut text, mut byte) = (Vec::new(), [0]);
        while !text.ends_with(b"\r\n\r\n") {
            if self.stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            text.push(byte[0]);
        }
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}
