//! The renewal of the session token while `serve` or `run` works: on SIGHUP, when a mounted secret
//! changes, and after the gateway has refused the token.
//!
//! It has no thread. The thread that waits for signals also waits for the events here.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select};

use crate::config::Config;
use crate::error::{Error, ErrorKind};
use crate::orchestrator::Handle;
use crate::setup::gate::{self, Gate};
use crate::setup::token::{self, LinkTarget};

use super::signals::Signal;

/// How often a mounted secret is compared with the one that was read. The kubelet replaces it about
/// once a minute.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The shortest time between two attempts after refusals: a gateway may refuse every tunnel.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Where the token is from, and when it is read again.
pub(crate) struct TokenWatch {
    /// `None`: no token is read, or the gateway is embedded and its token never changes.
    config: Option<Config>,
    /// The mounted secret that was read, and when it is compared next.
    link: Option<(LinkTarget, Instant)>,
    refusals: Receiver<()>,
    /// When the token is read again because it was refused.
    refused_at: Option<Instant>,
    /// The earliest time of the next attempt after a refusal.
    retry_at: Instant,
    /// The last failure to read a changed secret, which is reported once.
    reported: Option<String>,
}

/// An event for the caller of [`TokenWatch::next_event`].
pub(crate) enum Event {
    Signal(Signal),
    /// Of the channel of ticks.
    Tick,
}

impl TokenWatch {
    /// A watch of the token source that `config` names. Make it before set-up reads the token, so
    /// that no change is missed.
    pub(crate) fn new(config: &Config) -> Self {
        let now = Instant::now();
        // Behind a closed gate no file is examined.
        let reads =
            !config.uses_embedded_gateway() && matches!(gate::check(config), Ok(Gate::Open(_)));
        let config = reads.then(|| Config {
            // An inherited socket would stay open during the drain.
            socket: None,
            ..config.clone()
        });
        let link = config.as_ref().and_then(token::link_target);
        Self {
            config,
            link: link.map(|link| (link, now + POLL_INTERVAL)),
            refusals: never(),
            refused_at: None,
            retry_at: now,
            reported: None,
        }
    }

    /// Watches the refusals of the gateway.
    pub(crate) fn follow(&mut self, handle: &Handle) {
        if self.config.is_some() {
            self.refusals = handle.refusals();
        }
    }

    /// The next signal, as in [`next_event`](Self::next_event).
    pub(crate) fn next_signal(
        &mut self,
        signals: &Receiver<Signal>,
        handle: &Handle,
    ) -> Option<Signal> {
        match self.next_event(signals, &never(), handle)? {
            Event::Signal(signal) => Some(signal),
            Event::Tick => None,
        }
    }

    /// The next event for the caller. Until it occurs, the token is renewed when necessary. `None`:
    /// no signal can arrive.
    pub(crate) fn next_event(
        &mut self,
        signals: &Receiver<Signal>,
        ticks: &Receiver<Instant>,
        handle: &Handle,
    ) -> Option<Event> {
        loop {
            let due = [self.link.map(|(_, due)| due), self.refused_at];
            let due = due.into_iter().flatten().min();
            let timeout = due.map_or_else(never, at);
            select! {
                recv(signals) -> signal => return signal.ok().map(Event::Signal),
                recv(ticks) -> _ => return Some(Event::Tick),
                recv(self.refusals) -> refused => match refused {
                    Ok(()) => {
                        let at = self.retry_at.max(Instant::now());
                        self.refused_at = Some(at);
                    }
                    Err(_) => self.refusals = never(),
                },
                recv(timeout) -> _ => {}
            }
            self.renew_if_due(handle);
        }
    }

    /// Reads the token again because the operator requests it.
    pub(crate) fn reload(&mut self, handle: &Handle) {
        match self.renew(handle) {
            None => log::info!("SIGHUP has no effect: the embedded gateway needs no token"),
            Some(Ok(changed)) => {
                let same = if changed { "" } else { "; it is the same" };
                log::info!("the token was read again{same}");
            }
            Some(Err(error)) => log::warn!("the old token is kept: {error}"),
        }
    }

    fn renew_if_due(&mut self, handle: &Handle) {
        let now = Instant::now();
        if self.refused_at.is_some_and(|at| at <= now) {
            self.refused_at = None;
            self.retry_at = now + RETRY_INTERVAL;
            self.renew_after_refusal(handle);
        }
        if let Some((link, due)) = &mut self.link
            && *due <= now
        {
            *due = now + POLL_INTERVAL;
            let current = self.config.as_ref().and_then(token::link_target);
            if current.is_some_and(|current| current != *link) {
                self.renew_changed(handle);
            }
        }
    }

    fn renew_after_refusal(&mut self, handle: &Handle) {
        match self.renew(handle) {
            None => {}
            Some(Ok(true)) => {
                log::info!("the gateway refused the token; another one was read");
            }
            Some(Err(error)) if !is_expected(&error) => self.report(&error),
            Some(_) => log::debug!("the gateway refused the token, and there is no other one"),
        }
    }

    fn renew_changed(&mut self, handle: &Handle) {
        match self.renew(handle) {
            Some(Ok(true)) => log::info!("the token file has changed; the new token is used"),
            Some(Err(error)) => self.report(&error),
            _ => {}
        }
    }

    /// Reads the token, and uses it. Returns whether it is another one; `None`: there is no source.
    fn renew(&mut self, handle: &Handle) -> Option<Result<bool, Error>> {
        let config = self.config.as_ref()?;
        // Before the token: a change between the two is noticed at the next comparison.
        let link = token::link_target(config);
        let token = match token::read_again(config) {
            Ok(token) => token,
            Err(error) => return Some(Err(error)),
        };
        let changed = handle.use_token(token.secret());
        if let Err(error) = token.burn_again(config.keep_token) {
            log::warn!("burn: {error}; the relay uses the new token");
        }
        if let (Some((link, _)), Some(current)) = (&mut self.link, link) {
            *link = current;
        }
        self.reported = None;
        Some(Ok(changed))
    }

    /// Warns of a failure that repeats at every attempt.
    fn report(&mut self, error: &Error) {
        let text = error.to_string();
        if self.reported.as_ref() != Some(&text) {
            log::warn!("the old token is kept: {text}");
            self.reported = Some(text);
        }
    }
}

/// Whether there is simply no other token: the file was deleted after it was read, or the source
/// can be read only once.
fn is_expected(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::SwitchedOff)
}
