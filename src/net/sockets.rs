//! What the kernel knows and does for a TCP socket by itself: its probes of a silent peer, and its own table of sockets, asked
//! over `sock_diag(7)` (Linux) for who owns one, and whether what was written to it gets acknowledged. Where netlink is not to be had, the answer is an error, and nothing is concluded from it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use socket2::{SockRef, TcpKeepalive};

/// How long the kernel may take to answer; it does so at once, unless the answer was lost for want of memory.
const PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

// The numbers of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const NLMSG_HEADER: usize = 16;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Where `idiag_timer` and `idiag_retrans` lie in an answer: the last two of the four bytes behind the header.
const TIMER_AT: usize = NLMSG_HEADER + 2;
/// Where `idiag_uid` and `idiag_inode` lie: behind the header, four bytes, the socket's id (48), three counters.
const UID_AT: usize = NLMSG_HEADER + 4 + 48 + 12;
const INODE_AT: usize = UID_AT + 4;
/// Where the attributes begin, and the one that was asked for: `struct tcp_info` of linux/tcp.h.
const ATTRIBUTES_AT: usize = INODE_AT + 4;
const INET_DIAG_INFO: u8 = 2;
/// Where in it lie the milliseconds since bytes were last sent, and since anything was last acknowledged.
const LAST_DATA_SENT_AT: usize = 44;
const LAST_ACK_RECEIVED_AT: usize = 56;
/// The values of `idiag_timer` that mean that bytes are on their way: sent, or waiting for a closed window to open.
/// (2 is the probing of a silent connection, 3 the wait after the end.)
const SENT: u8 = 1;
const WINDOW_CLOSED: u8 = 4;
/// As many tries in a row without an answer tell of a peer that is gone. One or two do not: a packet may be lost, and Linux
/// answers a look at its closed window only twice a second.
const TRIES: u8 = 3;

/// The way to the table; one question at a time.
#[derive(Debug)]
pub(crate) struct SocketTable(OwnedFd);

/// What the table says of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketEntry {
    /// Its owner.
    pub(crate) uid: u32,
    /// Zero for a socket that its process has closed: the kernel then names root, whoever it was.
    pub(crate) inode: u64,
    timer: u8,
    /// Retransmissions that did not get the bytes through, or looks at a closed window that were not answered.
    tries: u8,
    /// How long ago bytes were last sent, and something last acknowledged.
    times: Option<(Duration, Duration)>,
}

/// What became of the bytes that were written to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The peer has acknowledged all.
    Done,
    /// They are on their way, or wait for a peer that is alive and has no room.
    UnderWay,
    /// They were sent again and again, or the peer was asked for room again and again, and nothing came back for long.
    Unanswered,
}

impl SocketTable {
    /// Opens the way.
    ///
    /// # Errors
    /// This system has none.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(Self(socket))
    }

    /// The socket whose own address is `own` and whose peer is `peer`, if there is one.
    ///
    /// # Errors
    /// This system does not tell.
    pub(crate) fn ask(&self, own: SocketAddr, peer: SocketAddr) -> io::Result<Option<SocketEntry>> {
        ask(&self.0, own, peer)
    }
}

impl SocketEntry {
    fn delivery(self, long: Duration) -> Delivery {
        let tried = self.tries >= TRIES;
        let unanswered = match (self.timer, self.times) {
            // One that has no room for what it was sent drops it, and answers all the same.
            (SENT, Some((sent, answered))) => tried && sent < answered && answered >= long,
            (WINDOW_CLOSED, Some((_, answered))) => tried && answered >= long,
            (SENT | WINDOW_CLOSED, None) => false,
            _ => return Delivery::Done,
        };
        if unanswered {
            Delivery::Unanswered
        } else {
            Delivery::UnderWay
        }
    }
}

/// Has the kernel ask a silent peer for a sign of life after an `interval`, and give up on it before three; zero: not. What a
/// listening socket was told its connections inherit.
pub(crate) fn probe_every(socket: &impl AsFd, interval: Duration) {
    if interval.is_zero() {
        return;
    }
    // The kernel counts in whole seconds, and its timers may be late by an eighth: so it is asked more often than we
    // would ourselves, at 25 s after 25, 37, 49 and, without an answer, for the last time 61 s.
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new()
        .with_time(interval.max(second))
        .with_interval((interval / 2).max(second))
        .with_retries(3);
    // A socket that does not take it is over already, and says so when it is used.
    let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

/// What became of the bytes that were written to `socket`, when no answer for so `long` is too long. Where that cannot be
/// known they count as under way.
pub(crate) fn delivery(socket: &TcpStream, long: Duration) -> Delivery {
    let asked = || {
        let (own, peer) = (socket.local_addr()?, socket.peer_addr()?);
        SocketTable::open()?.ask(own, peer)
    };
    match asked() {
        Ok(Some(entry)) => entry.delivery(long),
        Ok(None) | Err(_) => Delivery::UnderWay,
    }
}

/// One question over netlink: the socket whose own address is `own` and whose peer is `peer`.
fn ask(kernel: &OwnedFd, own: SocketAddr, peer: SocketAddr) -> io::Result<Option<SocketEntry>> {
    let (own, peer) = (unmapped(own), unmapped(peer));
    let mut question = Vec::with_capacity(72);
    question.extend(72_u32.to_ne_bytes());
    question.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    question.extend(NLM_F_REQUEST.to_ne_bytes());
    // The port as the sequence number: an answer that came too late for an earlier question is told by it.
    let sequence = u32::from(own.port());
    question.extend(sequence.to_ne_bytes());
    question.extend(0_u32.to_ne_bytes());
    let family = if own.is_ipv4() { AF_INET } else { AF_INET6 };
    question.extend([family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    question.extend(u32::MAX.to_ne_bytes()); // in any state
    question.extend(own.port().to_be_bytes());
    question.extend(peer.port().to_be_bytes());
    question.extend(octets(own.ip()));
    question.extend(octets(peer.ip()));
    question.extend(0_u32.to_ne_bytes()); // on any interface
    question.extend([0xff; 8]); // without a cookie
    send(kernel, &question, SendFlags::empty())?;
    let mut answer = [0; 1024];
    loop {
        let len = match recv(kernel, &mut answer, RecvFlags::DONTWAIT) {
            Ok((len, _)) => len,
            // The kernel answers while it is asked, as a rule.
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(kernel, PollFlags::IN)];
                if poll(&mut fds, Some(&PATIENCE))? == 0 {
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
                timer: answer.get(TIMER_AT).copied().unwrap_or(0),
                tries: answer.get(TIMER_AT + 1).copied().unwrap_or(0),
                times: times(answer),
            })),
            (Some(NLMSG_ERROR), ..) => match number(answer, NLMSG_HEADER).map(u32::cast_signed) {
                Some(code) if code == -Errno::NOENT.raw_os_error() => Ok(None),
                Some(code) => Err(io::Error::from_raw_os_error(-code)),
                None => Err(io::ErrorKind::InvalidData.into()),
            },
            _ => Err(io::ErrorKind::InvalidData.into()),
        };
    }
}

/// How long ago bytes were last sent, and something last acknowledged.
fn times(answer: &[u8]) -> Option<(Duration, Duration)> {
    let mut attributes = answer.get(ATTRIBUTES_AT..)?;
    loop {
        let head = number(attributes, 0)?.to_ne_bytes();
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        if u16::from_ne_bytes([head[2], head[3]]) == u16::from(INET_DIAG_INFO) {
            let info = attributes.get(4..length)?;
            let ago = |at| Some(Duration::from_millis(number(info, at)?.into()));
            return Some((ago(LAST_DATA_SENT_AT)?, ago(LAST_ACK_RECEIVED_AT)?));
        }
        // Each is padded to four bytes, and at least its own head long.
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The address in the sixteen bytes of `inet_diag_sockid`, in network order.
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

/// An IPv4 address that a dual-stack socket shows as IPv6 is an IPv4 connection to the kernel.
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
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    #[test]
    fn what_a_living_peer_took_is_done() {
        let (mut ours, _theirs) = pair();
        ours.write_all(b"taken").unwrap();
        assert_eq!(delivery(&ours, Duration::ZERO), Delivery::Done);
    }

    #[test]
    fn a_peer_that_reads_nothing_is_no_peer_that_answers_nothing() {
        let (mut ours, _theirs) = pair();
        ours.set_nonblocking(true).unwrap();
        let much = vec![0; 64 << 10];
        while ours.write(&much).is_ok() {}
        assert_eq!(delivery(&ours, Duration::ZERO), Delivery::UnderWay);
    }

    #[test]
    fn what_was_tried_thrice_without_an_answer_for_long_is_unanswered() {
        let (recent, long) = (Duration::from_secs(1), Duration::from_secs(50));
        let (never, sent_first, sent_last) = (None, Some((long, long)), Some((recent, long)));
        for (timer, tries, times, delivery) in [
            (0, 9, sent_last, Delivery::Done),
            (2, 9, sent_last, Delivery::Done),
            (SENT, 2, sent_last, Delivery::UnderWay),
            (SENT, 9, never, Delivery::UnderWay),
            (SENT, 9, sent_first, Delivery::UnderWay),
            (SENT, 3, sent_last, Delivery::Unanswered),
            (SENT, 3, Some((recent / 2, recent)), Delivery::UnderWay),
            (WINDOW_CLOSED, 2, sent_first, Delivery::UnderWay),
            (WINDOW_CLOSED, 3, Some((long, recent)), Delivery::UnderWay),
            (WINDOW_CLOSED, 3, sent_first, Delivery::Unanswered),
        ] {
            let entry = SocketEntry {
                uid: 0,
                inode: 1,
                timer,
                tries,
                times,
            };
            assert_eq!(entry.delivery(long), delivery, "{entry:?}");
        }
    }

    #[test]
    fn an_answer_that_is_cut_short_says_nothing() {
        let mut answer = vec![0; ATTRIBUTES_AT];
        assert_eq!(times(&answer), None);
        answer.extend(8_u16.to_ne_bytes());
        answer.extend(9_u16.to_ne_bytes());
        answer.extend([0; 4]);
        assert_eq!(times(&answer), None, "another attribute");
        answer.extend(70_u16.to_ne_bytes());
        answer.extend(2_u16.to_ne_bytes());
        answer.extend([0; 40]);
        assert_eq!(times(&answer), None, "less than it says");
        answer.extend([0; 40]);
        assert_eq!(times(&answer), Some((Duration::ZERO, Duration::ZERO)));
    }
}
