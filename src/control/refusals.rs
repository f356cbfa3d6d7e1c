//! Which rejections of a relay were logged as warnings: each pair of target and reason once.
//!
//! A tool may try a host that it cannot reach a thousand times. One warning helps, a thousand hide
//! it.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use crate::control::rejection::Rejection;

/// The most pairs of target and reason that are remembered. Clients choose the targets.
const LIMIT: usize = 1024;

/// The pairs of target and reason that were logged as warnings.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    hasher: RandomState,
    /// The hash of each pair.
    known: HashSet<u64>,
    /// How many rejections were not logged as warnings.
    repeated: u64,
}

impl Refusals {
    /// Whether the rejection should be a warning. One that the far end sent because of the
    /// credentials always should: nothing works until they are replaced. One because of a stop
    /// never should.
    pub(crate) fn is_new(&mut self, target: &str, rejection: &Rejection) -> bool {
        if rejection.of_credentials {
            return true;
        }
        if rejection.proxy_status == Some("proxy_internal_response") {
            return false;
        }
        let pair = (target, rejection.status, &rejection.what);
        let pair = self.hasher.hash_one(pair);
        let new = self.known.len() < LIMIT && self.known.insert(pair);
        self.repeated += u64::from(!new);
        new
    }

    /// How many rejections were not logged as warnings, and starts at 0 again.
    pub(crate) fn take_repeated(&mut self) -> u64 {
        std::mem::take(&mut self.repeated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::phase::Phase;

    #[test]
    fn each_pair_of_target_and_reason_is_new_once() {
        let mut refusals = Refusals::default();
        let refused = Rejection::new(502, Phase::Opening, "refused");
        let late = Rejection::new(504, Phase::Opening, "late");
        assert!(refusals.is_new("a:1", &refused));
        assert!(refusals.is_new("b:1", &refused));
        assert!(refusals.is_new("a:1", &late));
        assert!(!refusals.is_new("a:1", &refused));
        assert!(!refusals.is_new("a:1", &late));
        assert_eq!((refusals.take_repeated(), refusals.take_repeated()), (2, 0));
    }

    #[test]
    fn credentials_are_always_new_and_a_stop_never_is() {
        let mut refusals = Refusals::default();
        let credentials = Rejection::new(502, Phase::Upgrade, "token").of_credentials();
        let stop = Rejection::new(503, Phase::Head, "stop").proxy_status("proxy_internal_response");
        for _ in 0..2 {
            assert!(refusals.is_new("a:1", &credentials));
            assert!(!refusals.is_new("a:1", &stop));
        }
        assert_eq!(refusals.take_repeated(), 0);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut refusals = Refusals::default();
        let refused = Rejection::new(502, Phase::Opening, "refused");
        for port in 0..2 * LIMIT {
            let new = refusals.is_new(&format!("a:{port}"), &refused);
            assert_eq!(new, port < LIMIT);
        }
        assert_eq!(refusals.known.len(), LIMIT);
        assert_eq!(refusals.take_repeated(), LIMIT as u64);
    }
}
