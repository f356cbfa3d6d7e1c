//! A listening socket that a service manager has opened and passes to this process
//! (`sd_listen_fds(3)`).

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_protocol, socket_type};
use rustix::net::{AddressFamily, SocketType, ipproto};

use crate::config::{Config, Environment, SettingError, Source};
use crate::sys::inherited;

/// The number of the first descriptor that is passed.
const FIRST: RawFd = 3;
/// The variable that names what is passed.
const VARIABLE: &str = "LISTEN_FDS";

/// The socket that was passed to this process, and its address, if there is one.
///
/// # Errors
/// Several were passed, or one that cannot be listened on: the rest of a sentence that begins with
/// the variable, and what to do.
pub(crate) fn take(
    environment: &Environment,
) -> Result<Option<(TcpListener, SocketAddr)>, SettingError> {
    let unusable = |problem: String| SettingError {
        setting: "listen",
        name: VARIABLE.to_owned(),
        problem,
    };
    // The variables of another process were inherited by mistake.
    let own = std::process::id().to_string();
    if environment.text("LISTEN_PID") != Some(&own) {
        return Ok(None);
    }
    let names = environment.text("LISTEN_FDNAMES").unwrap_or("unnamed");
    match environment.text(VARIABLE) {
        None | Some("0") => Ok(None),
        Some("1") => {
            let descriptor = inherited::take(FIRST).map_err(|error| {
                unusable(format!(
                    "passes descriptor {FIRST}, which cannot be used: {error}"
                ))
            })?;
            listener(descriptor).map(Some).map_err(|kind| {
                unusable(format!(
                    "passes {kind} ({names}): name one TCP address with ListenStream= in the socket \
                     unit, with Accept=no"
                ))
            })
        }
        Some(several) => Err(unusable(format!(
            "passes {} sockets ({names}): name one address with ListenStream= in the socket unit",
            several.escape_debug()
        ))),
    }
}

/// The descriptor as a listening TCP socket, or what it is instead.
fn listener(descriptor: OwnedFd) -> Result<(TcpListener, SocketAddr), &'static str> {
    let Ok(kind) = socket_type(&descriptor) else {
        return Err("a descriptor that is no socket");
    };
    let domain = socket_domain(&descriptor);
    if !matches!(domain, Ok(AddressFamily::INET | AddressFamily::INET6)) {
        return Err("a socket that has no IP address");
    }
    if kind != SocketType::STREAM || socket_protocol(&descriptor) != Ok(Some(ipproto::TCP)) {
        return Err("a socket that is not TCP");
    }
    if socket_acceptconn(&descriptor) != Ok(true) {
        return Err("a socket that does not listen");
    }
    let socket = TcpListener::from(descriptor);
    match socket.local_addr() {
        Ok(address) => Ok((socket, address)),
        Err(_) => Err("a socket without an address"),
    }
}

/// Makes the relay of `config` listen on the socket that was passed, if there is one. If it cannot
/// be used, the gate is Disabled.
pub(crate) fn apply_to(config: &mut Config) {
    let source = Source::Variable(VARIABLE.to_owned());
    let result = match take(&config.inherited) {
        Ok(None) => return,
        Ok(Some((socket, address))) => {
            config.listen = address;
            config.socket = Some(Arc::new(socket));
            Ok(())
        }
        Err(error) => Err(error),
    };
    config.record("listen", source, result);
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_a_listening_tcp_socket_is_taken() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let connected = TcpStream::connect(address).unwrap();
        assert_eq!(listener(tcp.into()).unwrap().1, address);
        let directory = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(directory.path().join("s")).unwrap();
        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        for (descriptor, kind) in [
            (OwnedFd::from(connected), "does not listen"),
            (datagram.into(), "is not TCP"),
            (unix.into(), "has no IP address"),
            (pipe.into(), "is no socket"),
        ] {
            let error = listener(descriptor).unwrap_err();
            assert!(error.ends_with(kind), "{error}");
        }
    }

    #[test]
    fn the_sockets_of_another_process_and_several_sockets_are_not_taken() {
        let own = std::process::id().to_string();
        let take = |variables: &[(&str, &str)]| take(&variables.iter().copied().collect());
        assert!(take(&[("LISTEN_FDS", "1")]).unwrap().is_none());
        assert!(
            take(&[("LISTEN_FDS", "1"), ("LISTEN_PID", "1")])
                .unwrap()
                .is_none()
        );
        assert!(
            take(&[("LISTEN_FDS", "0"), ("LISTEN_PID", &own)])
                .unwrap()
                .is_none()
        );
        let error = take(&[
            ("LISTEN_FDS", "2"),
            ("LISTEN_PID", &own),
            ("LISTEN_FDNAMES", "a:b"),
        ]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("LISTEN_FDS passes 2 sockets (a:b): "),
            "{error}"
        );
    }
}
