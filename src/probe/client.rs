//! The client end of a tunnel: a CONNECT request to a relay's port, then bytes, with deadlines.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::control::deadline::Deadline;
use crate::control::phase::Phase;
use crate::crypto::secret::{Secret, basic};
use crate::http::authority::{Authority, Host};
use crate::http::head::{self, Fields};
use crate::http::response;
use crate::probe::problem::Problem;
use crate::tunnel::opening;

/// The largest response to CONNECT that is read: a head and a text.
const ANSWER_LIMIT: usize = 2 * head::HEAD_LIMIT;
/// How long the far end may take to close after we have closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A relay's port, and the credentials that it may require.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    /// The value of `Proxy-Authorization`.
    authorization: Option<Secret>,
}

impl Port {
    /// A port that requires no credentials.
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self {
            address,
            authorization: None,
        }
    }

    /// The port at `address`, with the credentials in its URL, if there are any.
    pub(crate) fn of_url(address: SocketAddr, url: &str) -> Self {
        let userinfo = url_parts(url).0.and_then(|text| text.split_once(':'));
        let authorization =
            userinfo.map(|(user, password)| Secret::from_zeroizing(basic(user, password)));
        Self {
            address,
            authorization,
        }
    }
}

/// Userinfo and authority of a proxy URL. The scheme may be missing.
pub(crate) fn url_parts(url: &str) -> (Option<&str>, &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let place = rest.split('/').next().unwrap_or_default();
    match place.rsplit_once('@') {
        Some((userinfo, authority)) => (Some(userinfo), authority),
        None => (None, place),
    }
}

/// An open tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) stream: TcpStream,
    /// What was received after the relay's response head.
    received: Vec<u8>,
}

impl Tunnel {
    /// A direct connection, for comparison with a tunnel.
    #[cfg(feature = "bench")]
    pub(crate) fn direct(address: SocketAddr, within: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, within)?;
        let received = Vec::new();
        Ok(Self { stream, received })
    }

    /// Requests a tunnel to `target` from the relay at `port`.
    pub(crate) fn open(port: &Port, target: &Authority, within: Duration) -> Result<Self, Problem> {
        let mut tunnel = Self::request(port, target, within).map_err(|error| {
            Problem::new(
                format!("the relay on {} does not answer: {error}", port.address),
                "check its log; if it hangs, restart it",
            )
        })?;
        let (status, policy, len) = match head::response(&tunnel.received) {
            Ok(Some((head, len))) => (head.status, names_opening(&head.fields), len),
            _ => {
                return Err(Problem::new(
                    format!("the response of {} is not HTTP", port.address),
                    "check which program listens on that port",
                ));
            }
        };
        tunnel.received.drain(..len);
        if is_success(status) {
            return Ok(tunnel);
        }
        let text = opening::plain_text(&tunnel.received);
        let (what, remedy) = response::parse_text(&text);
        let remedy = remedy.unwrap_or("see the relay's log");
        Err(Problem {
            policy: status == 403 && policy,
            ..Problem::new(
                format!("{target} was refused with {status}: {what}"),
                remedy,
            )
        })
    }

    /// Sends a CONNECT request and reads the response.
    fn request(port: &Port, target: &Authority, within: Duration) -> io::Result<Self> {
        let deadline = Deadline::after(within);
        let mut stream = TcpStream::connect_timeout(&port.address, within)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(within))?;
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        stream.write_all(head.as_bytes())?;
        if let Some(authorization) = &port.authorization {
            // In parts: a string that grows would leave copies of the secret behind.
            for part in ["Proxy-Authorization: ", authorization.expose(), "\r\n"] {
                stream.write_all(part.as_bytes())?;
            }
        }
        stream.write_all(b"\r\n")?;
        let received = Vec::new();
        let mut tunnel = Self { stream, received };
        // After a success the stream stays open; a refusal is read to its end.
        tunnel.receive(deadline, |received| match head::response(received) {
            Ok(Some((head, _))) if is_success(head.status) => true,
            Ok(_) => received.len() >= ANSWER_LIMIT,
            Err(_) => true,
        })?;
        if tunnel.received.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(tunnel)
    }

    /// Sends `bytes` in writes of these sizes, repeated as often as needed.
    pub(crate) fn send(
        &mut self,
        bytes: &[u8],
        sizes: &[usize],
        within: Duration,
    ) -> io::Result<()> {
        self.stream.set_write_timeout(Some(within))?;
        let (mut rest, mut sizes) = (bytes, sizes.iter().cycle());
        while !rest.is_empty() {
            let size = sizes.next().copied().unwrap_or(rest.len());
            let (piece, behind) = rest.split_at(size.clamp(1, rest.len()));
            self.stream.write_all(piece)?;
            rest = behind;
        }
        Ok(())
    }

    /// Reads until `enough` accepts what was received, or until the end of the stream.
    pub(crate) fn receive(
        &mut self,
        deadline: Deadline,
        mut enough: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<()> {
        while !enough(&self.received)
            && read_some(&mut self.stream, &mut self.received, deadline)? > 0
        {}
        Ok(())
    }

    /// What was received so far.
    pub(crate) fn received(&self) -> &[u8] {
        &self.received
    }

    /// Closes the tunnel cleanly, so that no log reports it as broken.
    pub(crate) fn end(mut self) {
        if self.stream.shutdown(Shutdown::Write).is_ok() {
            let deadline = Deadline::after(CLOSE_TIMEOUT);
            let _ = self.receive(deadline, |received| received.len() >= ANSWER_LIMIT);
        }
    }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// Whether `Proxy-Status` names the opening as the failed phase ([RFC
/// 9209](https://www.rfc-editor.org/rfc/rfc9209)): then the gateway refused, not the relay.
fn names_opening(fields: &Fields) -> bool {
    let details = format!("details=\"{}\"", Phase::Opening);
    fields.all("proxy-status").any(|value| {
        let mut parts = value.split(|&b| b == b';').map(<[u8]>::trim_ascii);
        parts.any(|part| part == details.as_bytes())
    })
}

/// Reads once and appends to `into`; 0 at the end of the stream.
fn read_some(stream: &mut TcpStream, into: &mut Vec<u8>, deadline: Deadline) -> io::Result<usize> {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    let mut piece = [0; 4096];
    loop {
        let left = deadline.remaining();
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::Error::new(TimedOut, "the deadline has passed"));
        }
        stream.set_read_timeout(left)?;
        match stream.read(&mut piece) {
            Ok(count) => {
                into.extend_from_slice(piece.get(..count).unwrap_or_default());
                return Ok(count);
            }
            // A read timeout. The deadline decides at the top of the loop.
            Err(error) if [WouldBlock, TimedOut, Interrupted].contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The address of a proxy URL's authority, if it is on this machine.
pub(crate) fn loopback(authority: &Authority) -> Option<SocketAddr> {
    let ip = match &authority.host {
        Host::Address(ip) if ip.is_loopback() => *ip,
        Host::Name(name) if name == "localhost" => Ipv4Addr::LOCALHOST.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, authority.port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A relay that reads one request and sends `answer`.
    fn relay(answer: &'static [u8]) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer).unwrap();
            String::from_utf8(request).unwrap()
        });
        (port, thread)
    }

    fn open(port: &Port) -> Result<Tunnel, Problem> {
        Tunnel::open(port, &"example.com:443".parse().unwrap(), PATIENCE)
    }

    #[test]
    fn a_tunnel_is_asked_for_by_a_connect_request_and_what_comes_behind_the_answer_is_kept() {
        let (address, thread) = relay(b"HTTP/1.1 200 Connection Established\r\n\r\nfirst");
        let mut tunnel = open(&Port::open(address)).unwrap();
        tunnel
            .receive(Deadline::after(PATIENCE), |received| received.len() >= 5)
            .unwrap();
        assert_eq!(tunnel.received(), b"first");
        let request = thread.join().unwrap();
        assert!(request.starts_with("CONNECT example.com:443 HTTP/1.1\r\n"));
        assert!(!request.contains("Authorization"), "{request}");
    }

    #[test]
    fn the_password_of_the_url_is_shown_and_stays_out_of_debug_output() {
        let (address, thread) = relay(b"HTTP/1.1 200 OK\r\n\r\n");
        let port = Port::of_url(address, "http://upstreamproxy:canary@127.0.0.1:1");
        assert!(!format!("{port:?}").contains("canary"));
        open(&port).unwrap().end();
        let request = thread.join().unwrap();
        let expected = "\r\nProxy-Authorization: Basic dXBzdHJlYW1wcm94eTpjYW5hcnk=\r\n";
        assert!(request.contains(expected), "{request}");
    }

    #[test]
    fn a_refusal_has_the_reason_and_the_remedy() {
        let (address, thread) =
            relay(b"HTTP/1.1 502 Bad Gateway\r\n\r\nit is down; wait a little\n");
        let problem = open(&Port::open(address)).unwrap_err();
        assert_eq!(
            problem.what,
            "example.com:443 was refused with 502: it is down"
        );
        assert_eq!(problem.remedy, "wait a little");
        thread.join().unwrap();
    }

    #[test]
    fn the_gateways_policy_is_distinguished_from_the_relays_rules() {
        for (details, policy) in [("opening", true), ("head", false)] {
            let answer = format!(
                "HTTP/1.1 403 Forbidden\r\nProxy-Status: upstreamproxy; error=x; details=\"{details}\"\r\n\r\nno"
            );
            let (address, thread) = relay(answer.leak().as_bytes());
            assert_eq!(open(&Port::open(address)).unwrap_err().policy, policy);
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_relay_that_sends_nothing_or_nonsense_is_a_problem() {
        for (answer, expected) in [
            (&b""[..], "does not answer"),
            (b"SSH-2.0-x\r\n", "not HTTP"),
        ] {
            let (address, thread) = relay(answer);
            let problem = open(&Port::open(address)).unwrap_err();
            assert!(problem.what.contains(expected), "{}", problem.what);
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_proxys_url_has_its_parts() {
        for (url, userinfo, authority) in [
            ("http://127.0.0.1:1", None, "127.0.0.1:1"),
            ("http://u:p@[::1]:8/", Some("u:p"), "[::1]:8"),
            ("localhost:3128", None, "localhost:3128"),
            ("", None, ""),
        ] {
            assert_eq!(url_parts(url), (userinfo, authority), "{url}");
        }
    }
}
