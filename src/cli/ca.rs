//! `ca`: print the upstream's CA certificates, for trust stores that need them alone.

use std::path::Path;

use rustls_pki_types::CertificateDer;

use crate::config::{Config, Source};
use crate::crypto::pem;
use crate::error::Error;
use crate::net::resolver::Resolver;
use crate::setup::child_env;
use crate::setup::download::download;
use crate::setup::gate::base_url;
use crate::setup::roots::{base_roots, connection_roots, roots_in};
use crate::setup::tool_files::ToolFile;

use super::exit_status::ExitStatus;
use super::output::{eprint_line, fail, print};
use super::state;

/// Prints the certificates of the relay of this shell, of the running `serve`, or of the configured
/// upstream. `--base-url` selects the upstream.
pub(crate) fn run(config: &Config) -> ExitStatus {
    let found = if config.source("base-url") == Some(&Source::Flag) {
        None
    } else {
        of_a_relay(config)
    };
    let (certificates, source) = match found {
        Some(found) => found,
        None if !is_configured(config) => {
            let error = "there is no upstream: this shell has no variables of `run` or `env`, no \
                         serve is running under this HOME, and no base URL is given; start \
                         `upstreamproxy serve`, or set base-url (--base-url)";
            return fail(error, ExitStatus::FAILED);
        }
        None => match downloaded(config) {
            Ok(found) => found,
            Err(error) => return fail(&error.to_string(), ExitStatus::FAILED),
        },
    };
    eprint_line(&format!("the CA certificates {source}"));
    print(pem::encode(&certificates).as_bytes());
    ExitStatus::SUCCESS
}

/// Certificates, and where they are from: the rest of a sentence.
type Found = (Vec<CertificateDer<'static>>, String);

/// The file beside the CA bundle of this shell's variables, or of the running `serve`.
fn of_a_relay(config: &Config) -> Option<Found> {
    let inherited = &config.inherited;
    let of_this_shell = child_env::earlier(inherited).map(|it| (it, "of this shell's variables"));
    let serve = || {
        let running = state::running(&inherited.home()?)?;
        Some((running.child_env, "of the running serve"))
    };
    let mut all = of_this_shell.into_iter().chain(serve());
    all.find_map(|(child_env, whose)| {
        let file = child_env.file(ToolFile::UpstreamCa)?;
        let certificates = certificates_in(&file)?;
        Some((certificates, format!("{whose}, {}", file.display())))
    })
}

fn certificates_in(file: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let found = roots_in(file);
    found
        .inspect_err(|error| log::warn!("{} cannot be used: {error}", file.display()))
        .ok()
}

/// Whether the settings name an upstream, or the session asks for proxying.
fn is_configured(config: &Config) -> bool {
    config.base_url.is_some() || (config.remote && config.enabled)
}

fn downloaded(config: &Config) -> Result<Found, Error> {
    let base = base_url(config)?;
    let roots = connection_roots(config, &base_roots(config)?)?;
    let certificates = download(config, &base, &Resolver::new(), &roots)?;
    Ok((certificates, format!("of {}", base.ca_cert_url())))
}
