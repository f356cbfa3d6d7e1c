//! When a session asks for proxying, and how a host cancels set-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
/// Set-up checks it before each change (the bundle, the listener, the token file) and is then
/// Disabled, so that a host that stops during set-up leaves nothing half done.
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
}
