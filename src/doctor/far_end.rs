//! The far end of the round trips: named by the user, or chosen.

use crate::http::authority::Authority;
use crate::probe::options::ProbeOptions;
use crate::probe::origin::Origin;
use crate::probe::prepared::Prepared;

/// The far end of the round trips.
pub(super) struct FarEnd {
    pub(super) authority: Authority,
    /// The user named it.
    pub(super) named: bool,
    /// It is the built-in origin, which echoes what it receives.
    pub(super) echoes: bool,
    /// It must speak TLS: it is on port 443, or it is the base URL's own https port.
    pub(super) speaks_tls: bool,
}

impl FarEnd {
    /// The target of the options, else the built-in origin, else the base URL's host.
    pub(super) fn find(
        options: &ProbeOptions,
        origin: Option<&Origin>,
        prepared: Option<&Prepared>,
    ) -> Option<Self> {
        let base = prepared.map(|prepared| &prepared.session.base);
        let authority = options
            .target
            .clone()
            .or_else(|| origin.map(Origin::authority))
            .or_else(|| base.map(|base| base.authority().clone()))?;
        let is_base = base.is_some_and(|base| base.secure() && *base.authority() == authority);
        Some(Self {
            named: options.target.is_some(),
            echoes: origin.is_some(),
            speaks_tls: authority.port == 443 || is_base,
            authority,
        })
    }

    /// Whether it does not have to answer a `ClientHello`.
    pub(super) fn may_be_silent(&self) -> bool {
        !self.echoes && !self.speaks_tls
    }
}
