//! When a session asks for proxying, and how a host cancels set-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Stage};

/// Whether the gate checks the two switches of the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// Both `CLAUDE_CODE_REMOTE` and `CCR_UPSTREAM_PROXY_ENABLED` must be truthy. The default.
    #[default]
    Auto,
    /// The switches are not checked; a base URL must be given.
    Always,
    /// The gate is closed, whatever the other settings are.
    Never,
}

/// Cancels set-up from another thread. Clones share the request.
///
/// Set-up checks it before each change (the bundle, the listener, the token file).
/// [`start`](crate::start) then returns [`Started::Disabled`](crate::Started::Disabled) with
/// [`ErrorKind::Cancelled`]. A running download is not interrupted: `start` returns at the latest
/// after [`Limits::ca_timeout`](super::Limits::ca_timeout).
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Cancels set-up. Changes that it has already made stay.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether set-up was cancelled.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// An error of `stage`, if set-up was cancelled.
    pub(crate) fn check(&self, stage: Stage) -> Result<(), Error> {
        if !self.is_requested() {
            return Ok(());
        }
        Err(Error::new(
            stage,
            ErrorKind::Cancelled,
            "set-up was called off",
            "",
        ))
    }
}
