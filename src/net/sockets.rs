//! TCP sockets and the kernel: keepalive probes, and the kernel's socket table over `sock_diag(7)`
//! (Linux).
//!
//! The table has the owner of a socket, and whether the peer acknowledges what was written to it.
//! Where netlink is not available, the result is an error, and callers conclude nothing from it.

use std::io;
#[cfg(feature = "gateway")]
use std::net::UdpSocket;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use socket2::{SockRef, TcpKeepalive};

/// How long to wait for the kernel's answer. It answers at once, unless the answer was lost for
/// lack of memory.
const ANSWER_TIMEOUT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

// Constants of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const NLMSG_HEADER: usize = 16;
/// The length of a query: the header and `struct inet_diag_req_v2`.
const QUERY: usize = NLMSG_HEADER + 56;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// The offset of `idiag_state` in an answer, and its value for a listening socket.
const STATE_AT: usize = NLMSG_HEADER + 1;
const LISTEN: u8 = 10;
/// The offset of `idiag_timer` and `idiag_retrans`: the last two of the four bytes
/// after the header.
const TIMER_AT: usize = NLMSG_HEADER + 2;
/// The offset of `idiag_uid` and `idiag_inode`: after the header come four bytes, the socket's ID
/// (48 bytes) and three counters.
const UID_AT: usize = NLMSG_HEADER + 4 + 48 + 12;
const INODE_AT: usize = UID_AT + 4;
/// The offset of the attributes, and the attribute that is requested: `struct tcp_info` of
/// linux/tcp.h.
const ATTRIBUTES_AT: usize = INODE_AT + 4;
const INET_DIAG_INFO: u8 = 2;
/// The offsets in it of the milliseconds since data was last sent, and since an acknowledgement was
/// last received.
const LAST_DATA_SENT_AT: usize = 44;
const LAST_ACK_RECEIVED_AT: usize = 56;
/// The offset in it of the smoothed round-trip time in microseconds.
const ROUND_TRIP_AT: usize = 68;
/// The values of `idiag_timer` that mean that data is in flight, or waits for a closed window to
/// open. (2 is a keepalive probe, 3 is `TIME_WAIT`.)
const IN_FLIGHT: u8 = 1;
const WINDOW_CLOSED: u8 = 4;
/// This many unanswered attempts in a row mean that the peer is gone. One or two do not: a packet
/// may be lost, and Linux answers probes of its closed window only twice a second.
const ATTEMPTS: u8 = 3;

/// A connection to the kernel's socket table. One query at a time.
#[derive(Debug)]
pub(crate) struct SocketTable(OwnedFd);

/// The table's entry for one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketEntry {
    /// The user ID of the owner.
    pub(crate) uid: u32,
    /// Zero for a socket that its process has closed. The kernel then reports root as the owner.
    pub(crate) inode: u64,
    state: u8,
    timer: u8,
    /// Retransmissions without an acknowledgement, or window probes without an answer.
    attempts: u8,
    /// How long ago data was last sent, and an acknowledgement was last received.
    times: Option<(Duration, Duration)>,
    round_trip: Option<Duration>,
}

/// The state of the data that was written to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The peer has acknowledged all of it.
    Acknowledged,
    /// It is in flight, or waits for a peer that answers and has no buffer space.
    InFlight,
    /// It was sent repeatedly, or the peer's window was probed repeatedly, without an answer for a
    /// long time.
    PeerSilent,
}

impl SocketTable {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// This system has no `sock_diag`.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(Self(socket))
    }

    /// The socket with the local address `own` that is connected to `peer`, if there is one.
    ///
    /// # Errors
    /// The kernel does not answer, or reports an error.
    pub(crate) fn query(
        &self,
        own: SocketAddr,
        peer: SocketAddr,
    ) -> io::Result<Option<SocketEntry>> {
        let sequence = u32::from(own.port());
        let request = request(unmapped(own), unmapped(peer), sequence);
        send(&self.0, &request, SendFlags::empty())?;
        self.connected(sequence)
    }

    /// The socket that listens at `server`, and then the socket there that is connected to `peer`.
    /// They are looked up in this order.
    ///
    /// # Errors
    /// The kernel does not answer, or reports an error.
    pub(crate) fn query_server(
        &self,
        server: SocketAddr,
        peer: SocketAddr,
    ) -> io::Result<(Option<SocketEntry>, Option<SocketEntry>)> {
        let (server, peer) = (unmapped(server), unmapped(peer));
        // No socket is connected to port 0.
        let no_peer = SocketAddr::new(peer.ip(), 0);
        let sequence = u32::from(peer.port());
        let (first, second) = (sequence | 1 << 16, sequence | 2 << 16);
        let requests = [
            request(server, no_peer, first),
            request(server, peer, second),
        ];
        send(&self.0, requests.as_flattened(), SendFlags::empty())?;
        let listening = self.answer(first)?.filter(SocketEntry::is_listening);
        Ok((listening, self.connected(second)?))
    }

    /// The answer to a query for a connection. If there is none, the kernel answers with a socket
    /// that listens at the address.
    fn connected(&self, sequence: u32) -> io::Result<Option<SocketEntry>> {
        let answer = self.answer(sequence)?;
        Ok(answer.filter(|entry| !entry.is_listening()))
    }

    /// The kernel's answer to the query with this sequence number.
    fn answer(&self, sequence: u32) -> io::Result<Option<SocketEntry>> {
        let mut answer = [0; 1024];
        loop {
            let len = match recv(&self.0, &mut answer, RecvFlags::DONTWAIT) {
                Ok((len, _)) => len,
                // Usually the kernel answers while `send` runs.
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
                    if poll(&mut fds, Some(&ANSWER_TIMEOUT))? == 0 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let answer = &answer[..len];
            if number(answer, 8) != Some(sequence) {
                continue;
            }
            let kind = number(answer, 4)
                .map(|both| u16::from_ne_bytes([both.to_ne_bytes()[0], both.to_ne_bytes()[1]]));
            return match (kind, number(answer, UID_AT), number(answer, INODE_AT)) {
                (Some(SOCK_DIAG_BY_FAMILY), Some(uid), Some(inode)) => Ok(Some(SocketEntry {
                    uid,
                    inode: inode.into(),
                    state: answer.get(STATE_AT).copied().unwrap_or(0),
                    timer: answer.get(TIMER_AT).copied().unwrap_or(0),
                    attempts: answer.get(TIMER_AT + 1).copied().unwrap_or(0),
                    times: times(answer),
                    round_trip: round_trip_in(answer),
                })),
                (Some(NLMSG_ERROR), ..) => match number(answer, NLMSG_HEADER).map(u32::cast_signed)
                {
                    Some(code) if code == -Errno::NOENT.raw_os_error() => Ok(None),
                    Some(code) => Err(io::Error::from_raw_os_error(-code)),
                    None => Err(io::ErrorKind::InvalidData.into()),
                },
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
}

impl SocketEntry {
    fn is_listening(&self) -> bool {
        self.state == LISTEN
    }

    fn delivery(self, long: Duration) -> Delivery {
        let repeated = self.attempts >= ATTEMPTS;
        let unanswered = match (self.timer, self.times) {
            // A peer without buffer space drops the data, and still acknowledges.
            (IN_FLIGHT, Some((sent, answered))) => repeated && sent < answered && answered >= long,
            (WINDOW_CLOSED, Some((_, answered))) => repeated && answered >= long,
            (IN_FLIGHT | WINDOW_CLOSED, None) => false,
            _ => return Delivery::Acknowledged,
        };
        if unanswered {
            Delivery::PeerSilent
        } else {
            Delivery::InFlight
        }
    }
}

/// Lets the kernel probe a silent peer after `interval`, and give up before three intervals have
/// passed. Zero: no probes. Connections inherit this from their listening socket.
pub(crate) fn probe_every(socket: &impl AsFd, interval: Duration) {
    if interval.is_zero() {
        return;
    }
    // The kernel counts whole seconds, and its timers may be late by an eighth. So it probes more
    // often than this program would: with 25 s, after 25, 37, 49 and, without an answer, for the
    // last time 61 s.
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new()
        .with_time(interval.max(second))
        .with_interval((interval / 2).max(second))
        .with_retries(3);
    // A socket that rejects the option is closed already. Its next use reports that.
    let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

/// The state of the data that was written to `socket`; `long` is the time without an answer that
/// counts as too long. If it cannot be determined, the data counts as in flight.
pub(crate) fn delivery(socket: &TcpStream, long: Duration) -> Delivery {
    entry_of(socket).map_or(Delivery::InFlight, |entry| entry.delivery(long))
}

/// The time of a round trip to the peer of `socket`, which the kernel has measured. `None`: not
/// known.
pub(crate) fn round_trip(socket: &TcpStream) -> Option<Duration> {
    entry_of(socket)?.round_trip
}

fn entry_of(socket: &TcpStream) -> Option<SocketEntry> {
    let (own, peer) = (socket.local_addr().ok()?, socket.peer_addr().ok()?);
    SocketTable::open().ok()?.query(own, peer).ok()?
}

/// A query for the socket at `own` that is connected to `peer`. The sequence number identifies a
/// late answer to an earlier query.
fn request(own: SocketAddr, peer: SocketAddr, sequence: u32) -> [u8; QUERY] {
    let mut query = [0; QUERY];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        query[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&(QUERY as u32).to_ne_bytes());
    put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&NLM_F_REQUEST.to_ne_bytes());
    put(&sequence.to_ne_bytes());
    put(&[0; 4]);
    let family = if own.is_ipv4() { AF_INET } else { AF_INET6 };
    put(&[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    put(&[0xff; 4]); // any state
    put(&own.port().to_be_bytes());
    put(&peer.port().to_be_bytes());
    put(&octets(own.ip()));
    put(&octets(peer.ip()));
    put(&[0; 4]); // any interface
    put(&[0xff; 8]); // no cookie
    query
}

/// Whether `address` is one of this machine's addresses, in the route tables too. No packet is
/// sent.
#[cfg(feature = "gateway")]
pub(crate) fn is_local(mut address: SocketAddr) -> bool {
    address.set_port(0);
    // With `ip_nonlocal_bind`, any address can be bound; but only a local one can be the source of
    // a connection.
    UdpSocket::bind(address).is_ok_and(|socket| {
        address.set_port(9);
        socket.connect(address).is_ok()
    })
}

/// How long ago data was last sent, and an acknowledgement was last received.
fn times(answer: &[u8]) -> Option<(Duration, Duration)> {
    let info = tcp_info(answer)?;
    let ago = |at| Some(Duration::from_millis(number(info, at)?.into()));
    Some((ago(LAST_DATA_SENT_AT)?, ago(LAST_ACK_RECEIVED_AT)?))
}

fn round_trip_in(answer: &[u8]) -> Option<Duration> {
    let time = number(tcp_info(answer)?, ROUND_TRIP_AT)?;
    (time > 0).then(|| Duration::from_micros(time.into()))
}

fn tcp_info(answer: &[u8]) -> Option<&[u8]> {
    let mut attributes = answer.get(ATTRIBUTES_AT..)?;
    loop {
        let head = number(attributes, 0)?.to_ne_bytes();
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        if u16::from_ne_bytes([head[2], head[3]]) == u16::from(INET_DIAG_INFO) {
            return attributes.get(4..length);
        }
        // Attributes are padded to four bytes, and at least as long as their header.
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The address as the sixteen bytes of `inet_diag_sockid`, in network order.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&ip.octets());
            wide
        }
    }
}

/// An IPv4 address that a dual-stack socket shows as IPv6 is an IPv4 connection in the kernel's
/// table.
pub(crate) fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn data_that_a_live_peer_acknowledged_is_done() {
        let (mut client, _server) = pair();
        client.write_all(b"taken").unwrap();
        assert_eq!(delivery(&client, Duration::ZERO), Delivery::Acknowledged);
    }

    #[test]
    fn a_peer_that_reads_nothing_still_answers() {
        let (mut client, _server) = pair();
        client.set_nonblocking(true).unwrap();
        let much = vec![0; 64 << 10];
        while client.write(&much).is_ok() {}
        assert_eq!(delivery(&client, Duration::ZERO), Delivery::InFlight);
    }

    #[test]
    fn the_kernel_knows_the_round_trip_to_a_peer_from_the_start() {
        let (client, server) = pair();
        for socket in [&client, &server] {
            let time = round_trip(socket).unwrap();
            assert!(time < Duration::from_millis(100), "{time:?}");
        }
    }

    #[test]
    #[cfg(feature = "gateway")]
    fn the_addresses_of_this_machine_are_local() {
        for local in ["127.0.0.1:1", "127.9.9.9:1", "[::ffff:127.0.0.1]:1"] {
            assert!(is_local(local.parse().unwrap()), "{local}");
        }
        for other in ["192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1"] {
            assert!(!is_local(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn three_attempts_without_an_answer_for_long_are_unanswered() {
        let (recent, long) = (Duration::from_secs(1), Duration::from_secs(50));
        let (never, sent_first, sent_last) = (None, Some((long, long)), Some((recent, long)));
        for (timer, attempts, times, delivery) in [
            (0, 9, sent_last, Delivery::Acknowledged),
            (2, 9, sent_last, Delivery::Acknowledged),
            (IN_FLIGHT, 2, sent_last, Delivery::InFlight),
            (IN_FLIGHT, 9, never, Delivery::InFlight),
            (IN_FLIGHT, 9, sent_first, Delivery::InFlight),
            (IN_FLIGHT, 3, sent_last, Delivery::PeerSilent),
            (IN_FLIGHT, 3, Some((recent / 2, recent)), Delivery::InFlight),
            (WINDOW_CLOSED, 2, sent_first, Delivery::InFlight),
            (WINDOW_CLOSED, 3, Some((long, recent)), Delivery::InFlight),
            (WINDOW_CLOSED, 3, sent_first, Delivery::PeerSilent),
        ] {
            let entry = SocketEntry {
                uid: 0,
                inode: 1,
                state: 1,
                timer,
                attempts,
                times,
                round_trip: None,
            };
            assert_eq!(entry.delivery(long), delivery, "{entry:?}");
        }
    }

    #[test]
    fn a_truncated_answer_has_no_times() {
        let mut answer = vec![0; ATTRIBUTES_AT];
        assert_eq!(times(&answer), None);
        answer.extend(8_u16.to_ne_bytes());
        answer.extend(9_u16.to_ne_bytes());
        answer.extend([0; 4]);
        assert_eq!(times(&answer), None, "another attribute");
        answer.extend(70_u16.to_ne_bytes());
        answer.extend(2_u16.to_ne_bytes());
        answer.extend([0; 40]);
        assert_eq!(times(&answer), None, "shorter than its length");
        answer.extend([0; 40]);
        assert_eq!(times(&answer), Some((Duration::ZERO, Duration::ZERO)));
    }
}
