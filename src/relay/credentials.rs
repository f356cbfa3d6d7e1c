//! The session and the token that upgrades use now. A host may replace the token at any time.
//!
//! A dial takes the credentials once, so that its upgrade and its opening agree. The old token is
//! wiped when the last dial that uses it has ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::crypto::secret::{Credentials, Secret};

/// The current credentials of one relay.
#[derive(Debug)]
pub(crate) struct CurrentCredentials {
    current: Mutex<Arc<Credentials>>,
    refused: Sender<()>,
    #[cfg_attr(not(feature = "cli"), allow(dead_code))]
    refusals: Receiver<()>,
}

impl CurrentCredentials {
    pub(crate) fn new(credentials: Credentials) -> Self {
        // One message is enough: it says that something was refused since it was last received.
        let (refused, refusals) = bounded(1);
        Self {
            current: Mutex::new(Arc::new(credentials)),
            refused,
            refusals,
        }
    }

    /// What a new dial uses.
    pub(super) fn get(&self) -> Arc<Credentials> {
        Arc::clone(&self.lock())
    }

    /// New dials use `token`. Returns whether it is another one.
    pub(super) fn replace_token(&self, token: Secret) -> bool {
        let old = self.get();
        if old.token.matches(token.expose().as_bytes()) {
            return false;
        }
        let session_id = old.session_id.clone();
        *self.lock() = Arc::new(Credentials { session_id, token });
        true
    }

    /// Reports that the gateway has refused `used`, unless they were replaced since.
    pub(super) fn report_refused(&self, used: &Arc<Credentials>) {
        if Arc::ptr_eq(used, &self.lock()) {
            let _ = self.refused.try_send(());
        }
    }

    /// Receives a message after the gateway has refused the current credentials.
    #[cfg(feature = "cli")]
    pub(super) fn refusals(&self) -> Receiver<()> {
        self.refusals.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Credentials>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> CurrentCredentials {
        CurrentCredentials::new(Credentials {
            session_id: "s-1".to_owned(),
            token: Secret::new("first".to_owned()),
        })
    }

    #[test]
    fn the_old_token_ends_with_its_last_use() {
        let current = credentials();
        let used = current.get();
        let old = Arc::downgrade(&used);
        current.replace_token(Secret::new("second".to_owned()));
        assert_eq!(used.token.expose(), "first");
        let now = current.get();
        assert_eq!((&*now.session_id, now.token.expose()), ("s-1", "second"));
        drop(used);
        assert!(old.upgrade().is_none());
    }

    #[test]
    fn a_refusal_of_an_old_token_is_not_reported() {
        let current = credentials();
        let old = current.get();
        current.report_refused(&old);
        current.report_refused(&old);
        assert_eq!(current.refusals.try_iter().count(), 1);
        current.replace_token(Secret::new("second".to_owned()));
        current.report_refused(&old);
        assert_eq!(current.refusals.try_iter().count(), 0);
    }
}
