//! Targets for input that is parsed as a whole: authorities and patterns, addresses, PEM, the
//! sessions file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use data_encoding::BASE64;

use crate::crypto::pem;
use crate::gateway::Sessions;
use crate::gateway::policy::Policy;
use crate::http::authority::{Authority, Host};
use crate::http::pattern::Pattern;

/// Authorities and patterns: the printed form parses to an equal value, and an authority as a
/// pattern matches only itself.
pub(super) fn authority(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let authority: Option<Authority> = text.parse().ok();
    if let Some(authority) = &authority {
        let printed = authority.to_string();
        assert_eq!(printed.parse().as_ref(), Ok(authority));
        assert!(
            printed.bytes().all(|byte| byte.is_ascii_graphic()),
            "{printed}"
        );
        assert!(authority.port > 0);
        let itself: Pattern = printed.parse().expect("an authority is a pattern");
        assert!(itself.matches(authority));
        let sub = Authority {
            host: match &authority.host {
                Host::Name(name) => Host::Name(format!("sub.{name}")),
                Host::Address(_) => Host::Name("sub".to_owned()),
            },
            port: authority.port,
        };
        assert!(!itself.matches(&sub));
        if let Ok(below) = format!("*.{printed}").parse::<Pattern>() {
            assert!(below.matches(&sub) && !below.matches(authority));
        }
        assert!(Pattern::any_on(authority.port).matches(authority));
    }
    if let Ok(pattern) = text.parse::<Pattern>()
        && let Some(authority) = &authority
    {
        assert!(
            pattern.matches(authority),
            "the same text does not match itself"
        );
    }
    let at_any_port: Result<Pattern, _> = text.parse();
    if let Ok(host) = Host::parse(text) {
        let here = Authority { host, port: 1 };
        assert!(at_any_port.is_ok_and(|pattern| pattern.matches(&here)));
    }
}

/// The policy: a decision for every address, never permission for one that the standard library
/// classifies as not public, and the same decision for every form of an IPv4 address.
pub(super) fn policy(bytes: &[u8]) {
    let Some((&raw, rest)) = bytes.split_first_chunk::<16>() else {
        return;
    };
    let strict = Policy::default();
    let v6 = Ipv6Addr::from(raw);
    let [.., a, b, c, d] = raw;
    let v4 = Ipv4Addr::new(a, b, c, d);
    let permits = |ip: IpAddr| strict.permits(ip).is_ok();
    let private = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast();
    if private || v4.is_unspecified() || v4.is_broadcast() || v4.is_documentation() {
        assert!(!permits(v4.into()), "{v4}");
    }
    let internal = v6.is_loopback() || v6.is_unspecified() || v6.is_multicast();
    if internal || v6.is_unique_local() || v6.is_unicast_link_local() {
        assert!(!permits(v6.into()), "{v6}");
    }
    if let Some(mapped) = v6.to_ipv4_mapped() {
        assert_eq!(permits(v6.into()), permits(mapped.into()), "{v6}");
    }
    let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    for translated in [
        v4.to_ipv6_mapped(),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
    ] {
        assert_eq!(
            permits(translated.into()),
            permits(v4.into()),
            "{translated}"
        );
    }
    assert!(!permits(v4.to_ipv6_compatible().into()));

    // A list: `choose` keeps the addresses that may be dialled, in their order, and never the
    // listener itself.
    let own = SocketAddr::new(v6.into(), 8443);
    let addresses: Vec<SocketAddr> = rest
        .chunks_exact(5)
        .map(|part| {
            SocketAddr::new(
                [part[0], part[1], part[2], part[3]].into(),
                u16::from(part[4]),
            )
        })
        .chain([own, SocketAddr::new(v4.into(), 443)])
        .collect();
    for allow_private in [false, true] {
        let own = Some(own);
        let policy = Policy { allow_private, own };
        let mut expected = addresses.clone();
        expected.retain(|address| policy.permits(address.ip()).is_ok() && Some(*address) != own);
        match policy.choose(addresses.clone()) {
            Ok(chosen) => assert_eq!(chosen, expected),
            Err(refusal) => assert!(expected.is_empty(), "{refusal}"),
        }
    }
}

/// PEM: strict and lenient parsing agree where both succeed; what was parsed can be merged, written
/// and parsed again.
pub(super) fn pem(bytes: &[u8]) {
    let (found, errors) = pem::readable_certificates(bytes);
    match pem::certificates(bytes) {
        Ok(all) => assert!(all == found && errors.is_empty()),
        Err(first) => assert_eq!(errors.first(), Some(&first)),
    }
    let lines = 1 + bytes.iter().filter(|byte| b"\r\n".contains(byte)).count();
    for error in errors {
        let text = error.to_string();
        let number = text.split(' ').find_map(|word| word.parse::<usize>().ok());
        assert!(
            number.is_some_and(|line| (1..=lines).contains(&line)),
            "{text}"
        );
    }
    let merged = pem::merge(&[found.clone(), found.clone()]);
    assert_eq!(pem::merge(&[merged.clone(), merged.clone()]), merged);
    assert!(found.iter().all(|certificate| merged.contains(certificate)));
    let text = pem::encode(&merged);
    assert_eq!(pem::certificates(text.as_bytes()).as_ref(), Ok(&merged));
    assert!(!pem::contains_private_key(text.as_bytes()));
    assert!(text.lines().all(|line| line.len() <= 64));
    // Two files that were joined without a newline between them.
    let joined = [text.trim_end(), text.as_str()].concat();
    let twice = [merged.clone(), merged].concat();
    assert_eq!(pem::certificates(joined.as_bytes()), Ok(twice));
}

/// The sessions file: every listed session is accepted with its own token, and an error contains no
/// text of the file. The corpus has the text `canary` where a secret would be.
pub(super) fn sessions(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Sessions::parse(text) {
        Ok(sessions) => {
            let lines = text.lines().map(str::trim_ascii);
            let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            for line in lines.clone() {
                let (id, token) = line
                    .split_once(|c: char| c.is_ascii_whitespace())
                    .expect("two words");
                let token = token.trim_ascii();
                let bearer = sessions.bearer(format!("Bearer {token}").as_bytes());
                let bearer = bearer.expect("its token is accepted");
                let basic = format!(
                    "Basic {}",
                    BASE64.encode(format!("{id}:{token}").as_bytes())
                );
                assert!(sessions.basic(basic.as_bytes(), &bearer));
                let wrong = format!("Bearer {token}x");
                let other = sessions.bearer(wrong.as_bytes());
                assert!(other.is_none() || text.contains(&format!("{token}x")));
            }
            // An id is not a secret, and may contain the text.
            let ids = lines.filter_map(|line| line.split_ascii_whitespace().next());
            let shown = format!("{sessions:?}").matches("canary").count();
            assert!(shown <= ids.map(|id| id.matches("canary").count()).sum());
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains("canary"), "{text}");
        }
    }
}
