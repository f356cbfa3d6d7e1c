//! The lifecycle looked at without being lived: what `doctor` walks, step by step, with nothing written, burnt or changed
//! (`manual/operations.md`, In trouble).
//!
//! A step that cannot be walked because of an earlier one is skipped and says so, so that every diagnosis has every step.
//! What is found is a value; nothing is printed here.

pub(crate) mod check;
pub(crate) mod client;
mod hello;
pub(crate) mod origin;
mod path;
pub(crate) mod round_trip;
pub(crate) mod stages;
mod variables;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use check::Step;
pub(crate) use check::{Check, Fact, Verdict};
pub(crate) use stages::check;

use crate::config::Config;
use crate::http::authority::Authority;
use check::Opened;
use client::Port;
use origin::Origin;
use round_trip::OwnRelay;
use stages::Seen;

/// A `serve` that is running, as its state file tells of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RunningServe {
    /// Its process.
    pub pid: u32,
    /// Where its relay listens.
    pub relay: SocketAddr,
    /// Its URL, perhaps with a password.
    pub proxy: String,
    /// Its merged bundle.
    pub ca_bundle: PathBuf,
    /// Its settings file for wget, if it has one.
    pub wgetrc: Option<PathBuf>,
}

impl std::fmt::Debug for RunningServe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Living")
            .field("pid", &self.pid)
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}

/// What a diagnosis is about, besides the settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct DoctorOptions {
    /// The far end of the round trip; `None`: the base URL's host, or an origin of our own.
    pub target: Option<Authority>,
    /// With no target named, the round trip goes to an origin inside this process: for a gateway inside it too.
    pub own_origin: bool,
    /// The `serve` beside which this is asked: the token is with it, and the round trip goes through its port.
    pub living: Option<RunningServe>,
}

/// Walks every step, and tells of each when it is known. Writes, burns and changes nothing.
///
/// Every wait is bounded by [`Config::limits`]. [`Config::cancel`] ends it before the next group of steps.
pub(crate) fn diagnose(config: &Config, about: &DoctorOptions, tell: &mut dyn FnMut(Check)) {
    let living = about.living.as_ref();
    let cancelled = || config.cancel.is_requested();
    let seen = stages::walk(config, living, tell);
    if cancelled() {
        return;
    }
    let origin = match about.target {
        None if about.own_origin => Origin::start().ok(),
        _ => None,
    };
    let far_end = FarEnd::find(about, origin.as_ref(), &seen);
    let opened = path::walk(config, &seen, far_end.as_ref(), living.is_some(), tell);
    if cancelled() {
        return;
    }
    round_trips(config, living, &seen, opened, far_end.as_ref(), tell);
    if !cancelled() {
        variables::walk(config, living, tell);
    }
}

/// The far end of the round trips.
struct FarEnd {
    authority: Authority,
    /// Somebody asked for it.
    named: bool,
    /// It is our own origin, which sends back what it gets.
    echoes: bool,
    /// It must answer TLS: port 443, or the base URL's own.
    speaks_tls: bool,
}

impl FarEnd {
    /// The one that was asked for, else our own origin, else the base URL's host.
    fn find(about: &DoctorOptions, origin: Option<&Origin>, seen: &Seen) -> Option<Self> {
        let base = seen.session.as_ref().map(|session| &session.base);
        let authority = about
            .target
            .clone()
            .or_else(|| origin.map(Origin::authority))
            .or_else(|| base.map(|base| base.authority().clone()))?;
        let is_base = base.is_some_and(|base| base.secure() && *base.authority() == authority);
        Some(Self {
            named: about.target.is_some(),
            echoes: origin.is_some(),
            speaks_tls: authority.port == 443 || is_base,
            authority,
        })
    }
}

/// Through the living relay's port, else through one of our own.
fn round_trips(
    config: &Config,
    living: Option<&RunningServe>,
    seen: &Seen,
    opened: Opened,
    far_end: Option<&FarEnd>,
    tell: &mut dyn FnMut(Check),
) {
    let Some(far_end) = far_end else {
        return round_trip::skip("the gate is closed, and no --target is named", tell);
    };
    if let Some(living) = living {
        let port = Port::of_url(living.relay, &living.proxy);
        return round_trip::walk(&port, far_end, &config.limits, tell);
    }
    match opened {
        Opened::Yes => {}
        Opened::Forbidden => return round_trip::skip(round_trip::FORBIDDEN, tell),
        Opened::No => return round_trip::skip("no tunnel could be opened, see above", tell),
    }
    match OwnRelay::start(config, seen) {
        Ok(Some(relay)) => round_trip::walk(&relay.port(), far_end, &config.limits, tell),
        Ok(None) => round_trip::skip("there is no token to show, see token", tell),
        Err(error) => {
            tell(Check::wrong(Step::RoundTrip, error.into()));
            for step in [Step::PostQuantumHello, Step::EchHello] {
                tell(Check::skipped(step, "the round trip failed"));
            }
        }
    }
}
