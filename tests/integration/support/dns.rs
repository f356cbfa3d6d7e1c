//! A minimal DNS server: answers A and AAAA queries as the test decides and records them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// The length of a message header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// A query for the addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsQuery {
    /// The name in lower case, without a final dot.
    pub(crate) name: String,
    /// Whether it asks for IPv6 addresses (AAAA). Otherwise it asks for IPv4 addresses (A).
    pub(crate) is_ipv6: bool,
}

/// What the server does with a query.
pub(crate) enum DnsReply {
    /// The name exists and has these addresses; those of the other family are not sent.
    Addresses(Vec<IpAddr>),
    /// The name does not exist.
    NoSuchName,
    /// The query is dropped.
    Silence,
}

/// Serves port 53 on one loopback address. Its thread runs until the test process exits.
pub(crate) struct DnsServer {
    queries: Arc<Mutex<Vec<DnsQuery>>>,
}

impl DnsServer {
    /// Starts a server at `at`. It answers 127.0.0.1 for `names` and "no such name" for all others.
    pub(crate) fn start(at: Ipv4Addr, names: &'static [&'static str]) -> Self {
        Self::answering(at, |query| {
            if names.contains(&query.name.as_str()) {
                DnsReply::Addresses(vec![Ipv4Addr::LOCALHOST.into()])
            } else {
                DnsReply::NoSuchName
            }
        })
    }

    /// Starts a server at `at` that answers as `reply` says.
    pub(crate) fn answering(
        at: Ipv4Addr,
        mut reply: impl FnMut(&DnsQuery) -> DnsReply + Send + 'static,
    ) -> Self {
        let socket = UdpSocket::bind((at, 53)).unwrap();
        let queries = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&queries);
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                let message = &buffer[..length];
                if let Some((query, question_end)) = parse(message) {
                    log.lock().unwrap().push(query.clone());
                    let reply = reply(&query);
                    if let Some(message) = answer(&message[..question_end], &query, reply) {
                        send(&socket, &message, client);
                    }
                }
            }
        });
        Self { queries }
    }

    /// The queries so far.
    pub(crate) fn queries(&self) -> Vec<DnsQuery> {
        self.queries.lock().unwrap().clone()
    }

    /// Whether a query for `name` was received.
    pub(crate) fn was_queried_for(&self, name: &str) -> bool {
        self.queries().iter().any(|query| query.name == name)
    }
}

fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    // The client may have closed its socket, so an error is ignored.
    let _ = socket.send_to(reply, client);
}

/// Parses a message. Returns the query and the end of its question. `None`: it does not ask for
/// addresses.
fn parse(message: &[u8]) -> Option<(DnsQuery, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(std::str::from_utf8(message.get(at..at + length)?).ok()?);
        at += length;
    }
    // Type A or AAAA, class IN.
    let is_ipv6 = match message.get(at..at + 4)? {
        [0, 1, 0, 1] => false,
        [0, 28, 0, 1] => true,
        _ => return None,
    };
    let name = labels.join(".").to_lowercase();
    Some((DnsQuery { name, is_ipv6 }, at + 4))
}

/// The reply to `message`, which ends after its question.
fn answer(message: &[u8], query: &DnsQuery, reply: DnsReply) -> Option<Vec<u8>> {
    let (code, addresses) = match reply {
        DnsReply::Addresses(addresses) => (0, addresses),
        DnsReply::NoSuchName => (3, Vec::new()),
        DnsReply::Silence => return None,
    };
    let of_family = addresses.iter().filter(|a| a.is_ipv6() == query.is_ipv6);
    let records: Vec<Vec<u8>> = of_family
        .map(|address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        })
        .collect();
    let mut answer = message[..2].to_vec();
    // Flags: response, recursion desired and available.
    answer.extend([0x81, 0x80 | code]);
    answer.extend([0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    answer.extend(&message[HEADER..]);
    for record in records {
        // The name as a pointer to the question, type, class, valid for 60 seconds, length.
        let kind = if query.is_ipv6 { 28 } else { 1 };
        answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, record.len() as u8]);
        answer.extend(record);
    }
    Some(answer)
}
