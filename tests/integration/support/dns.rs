//! A minimal DNS server: answers A queries for a list of names and records which names were
//! queried.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// The length of a message header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;
/// The query type and class of an IPv4 address: A, IN.
const ADDRESS: [u8; 4] = [0, 1, 0, 1];

/// Serves port 53 on one loopback address. Its thread runs until the test process exits.
pub(crate) struct DnsServer {
    queried: Arc<Mutex<Vec<String>>>,
}

impl DnsServer {
    /// Starts a server at `at`. It answers 127.0.0.1 for `names` and "no such name" for all others.
    pub(crate) fn start(at: Ipv4Addr, names: &'static [&'static str]) -> Self {
        let socket = UdpSocket::bind((at, 53)).unwrap();
        let queried = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&queried);
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                if let Some((name, reply)) = answer(&buffer[..length], names) {
                    log.lock().unwrap().push(name);
                    send(&socket, &reply, client);
                }
            }
        });
        Self { queried }
    }

    /// Whether a query for `name` was received.
    pub(crate) fn was_queried_for(&self, name: &str) -> bool {
        self.queried
            .lock()
            .unwrap()
            .iter()
            .any(|queried| queried == name)
    }
}

fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    // The client may have closed its socket, so an error is ignored.
    let _ = socket.send_to(reply, client);
}

/// Returns the name in `query` and the reply.
fn answer(query: &[u8], names: &[&str]) -> Option<(String, Vec<u8>)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(std::str::from_utf8(query.get(at..at + length)?).ok()?);
        at += length;
    }
    let name = labels.join(".").to_lowercase();
    let kind = query.get(at..at + 4)?;
    let known = names.contains(&name.as_str());
    // A known name exists even if it has no address of the requested type (such as IPv6).
    let has_answer = known && kind == ADDRESS;
    let mut reply = query[..2].to_vec();
    // Flags: response, recursion desired and available. Code: no error, or no such name.
    reply.extend([0x81, if known { 0x80 } else { 0x83 }]);
    reply.extend([0, 1, 0, u8::from(has_answer), 0, 0, 0, 0]);
    reply.extend(&query[HEADER..at + 4]);
    if has_answer {
        // The name as a pointer to the question; valid for 60 seconds.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some((name, reply))
}
