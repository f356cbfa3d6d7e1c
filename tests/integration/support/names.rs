//! A name server of few lines: addresses (A) of the names that it is told, and a count of who was asked for.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// The length of a message's head (RFC 1035, section 4.1.1).
const HEAD: usize = 12;
/// The type and class of an address: A, IN.
const ADDRESS: [u8; 4] = [0, 1, 0, 1];

/// Answers on port 53 of one loopback address. Its thread ends with the test process.
pub(crate) struct NameServer {
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// One at `at` that says 127.0.0.1 for `names`, and of all others that they do not exist.
    pub(crate) fn start(at: Ipv4Addr, names: &'static [&'static str]) -> Self {
        let socket = UdpSocket::bind((at, 53)).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, who)) = socket.recv_from(&mut buffer) {
                if let Some((name, reply)) = answer(&buffer[..length], names) {
                    log.lock().unwrap().push(name);
                    send(&socket, &reply, who);
                }
            }
        });
        Self { asked }
    }

    /// Whether anybody has asked for `name`.
    pub(crate) fn was_asked_for(&self, name: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked == name)
    }
}

fn send(socket: &UdpSocket, reply: &[u8], who: SocketAddr) {
    // One who has gone meanwhile asks no more.
    let _ = socket.send_to(reply, who);
}

/// The name that `query` asks for, and the reply.
fn answer(query: &[u8], names: &[&str]) -> Option<(String, Vec<u8>)> {
    let mut labels = Vec::new();
    let mut at = HEAD;
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
    // One who has no address of this type, IPv6 say, still exists.
    let gives = known && kind == ADDRESS;
    let mut reply = query[..2].to_vec();
    // Response, recursion desired and available; no error, or no such name.
    reply.extend([0x81, if known { 0x80 } else { 0x83 }]);
    reply.extend([0, 1, 0, u8::from(gives), 0, 0, 0, 0]);
    reply.extend(&query[HEAD..at + 4]);
    if gives {
        // The name by reference to the question, good for a minute.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some((name, reply))
}
