//! Checks the five stages of the lifecycle without executing them.

use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustls_pki_types::CertificateDer;

use super::check::{Check, Step};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Stage};
use crate::net::resolver::Resolver;
use crate::orchestrator::bind;
use crate::probe::options::RunningServe;
use crate::probe::prepared::{Prepared, read_token, session, trusted};
use crate::probe::problem::Problem;
use crate::setup::capacity::{self, Capacity};
use crate::setup::gate::Session;
use crate::setup::token::TokenSource;
use crate::setup::{bundle, ca, download, roots};

/// Checks every stage. Beside a running `serve` the token is already deleted, and its relay is
/// checked. Returns what was read; `None` if the gate is closed.
pub(super) fn check_all(
    config: &Config,
    running: Option<&RunningServe>,
    report: &mut dyn FnMut(Check),
) -> Option<Prepared> {
    let session = match session(config) {
        Ok(session) => session,
        Err(error) => {
            report(Check::wrong(Step::Gate, error));
            for step in [Step::Token, Step::Ca, Step::Relay, Step::Burn] {
                report(Check::skipped(step, "the gate is closed"));
            }
            return None;
        }
    };
    let parent = config.parent_for(session.base.authority());
    let through = parent.map_or(String::new(), |parent| {
        format!(", through the parent proxy {parent}")
    });
    let opened = format!("session {} at {}{through}", session.id, session.base);
    report(Check::ok(Step::Gate, opened));

    let source = TokenSource::of(config).to_string();
    let deleted = running.map(|running| {
        let pid = running.pid;
        format!("deleted: the serve with process ID {pid} has read it")
    });
    let (token, found) = match &deleted {
        Some(deleted) => (None, Ok(deleted.clone())),
        None => match read_token(config) {
            Ok(token) => (Some(token), Ok(format!("{source} can be read"))),
            Err(error) => (None, Err(error)),
        },
    };
    report(Check::of(Step::Token, found));

    let since = Instant::now();
    let roots = trusted(config);
    let merged = match &roots {
        Ok(roots) => merged(config, &session, roots, running),
        Err(error) => Err(error.clone()),
    };
    let merged = merged.unwrap_or_else(|error| Check::wrong(Step::Ca, error));
    report(merged.after(since.elapsed()));

    report(if let Some(running) = running {
        Check::of(Step::Relay, listens(config, running))
    } else {
        can_listen(config).unwrap_or_else(|error| Check::wrong(Step::Relay, error))
    });

    report(match (deleted, &token) {
        (Some(deleted), _) => Check::ok(Step::Burn, deleted),
        (None, Some(token)) => Check::of(Step::Burn, token.can_burn(config.keep_token)),
        (None, None) => Check::skipped(Step::Burn, "there is no token file, see token"),
    });
    Some(Prepared {
        session,
        token: token.map(|token| token.secret()),
        roots: roots.ok(),
    })
}

/// The check of what the bundle would contain.
fn merged(
    config: &Config,
    session: &Session,
    trusted: &[CertificateDer<'static>],
    running: Option<&RunningServe>,
) -> Result<Check, Error> {
    let place = bundle::place(config)?;
    let base_roots = roots::base_roots(config)?;
    let downloaded = download::download(config, &session.base, &Resolver::new(), trusted)?;
    if let Some(running) = running {
        has_all(running, &downloaded)?;
    }
    can_write(&place)?;
    let (base, upstream) = (base_roots.len(), downloaded.len());
    let all = ca::merge(config, base_roots, downloaded).len();
    let place = place.display();
    let detail = format!("{base} base roots, {upstream} from the upstream, {all} in {place}");
    Ok(Check::ok(Step::Ca, detail)
        .fact("base_roots", base)
        .fact("upstream_roots", upstream)
        .fact("bundle_roots", all))
}

/// Whether the bundle of the running `serve` has the certificates that the upstream serves now.
fn has_all(running: &RunningServe, served: &[CertificateDer<'static>]) -> Result<(), Error> {
    let bundle = &running.child_env.bundle;
    let inside = roots::roots_in(bundle).unwrap_or_default();
    if served
        .iter()
        .all(|certificate| inside.contains(certificate))
    {
        return Ok(());
    }
    Err(Error::new(
        Stage::Ca,
        ErrorKind::InvalidData,
        format!(
            "the CA bundle {} of the serve with process ID {} lacks a CA certificate that the \
             upstream serves now: tools reject the certificates of intercepted hosts",
            bundle.display(),
            running.pid
        ),
        "restart that serve with a fresh token, and let the gateway keep its CA with ca-cert (--ca-cert) and ca-key (--ca-key)",
    ))
}

/// Whether this user may write the bundle to `place`: into its directory, or into the parent in
/// which the directory would be created. Nothing is written.
fn can_write(place: &Path) -> Result<(), Error> {
    let directory = place.parent().unwrap_or(Path::new("/"));
    let there = if directory.exists() {
        directory
    } else {
        directory.parent().unwrap_or(directory)
    };
    let may = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, there, may, AtFlags::EACCESS).map_err(|errno| {
        let there = there.display();
        Error::new(
            Stage::Ca,
            ErrorKind::Io,
            format!("this user cannot write the CA bundle to the directory {there}: {errno}"),
            "make it writable, or set another path with ca-bundle (--ca-bundle)",
        )
    })
}

/// The check of the relay's address and of the number of tunnels.
fn can_listen(config: &Config) -> Result<Check, Error> {
    bind(config)?;
    let embedded = config.uses_embedded_gateway();
    let Capacity { tunnels, reason } =
        capacity::of_this_process(config.limits.max_tunnels, embedded);
    let detail = format!(
        "{} can be bound; at most {tunnels} tunnels ({reason})",
        config.listen
    );
    Ok(Check::ok(Step::Relay, detail).fact("max_tunnels", tunnels))
}

/// Whether the running `serve` accepts connections.
fn listens(config: &Config, running: &RunningServe) -> Result<String, Problem> {
    let RunningServe { pid, relay, .. } = running;
    TcpStream::connect_timeout(relay, config.limits.connect_timeout)
        .map(|_| format!("the serve with process ID {pid} listens on {relay}"))
        .map_err(|error| {
            Problem::new(
                format!("the serve with process ID {pid} does not answer on {relay}: {error}"),
                "check its log, and restart it with a fresh token",
            )
        })
}
