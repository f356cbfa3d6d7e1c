//! The shares of parties in a limited resource: the tunnels of a gateway, or memory for messages.
//!
//! A party may take more only while what it then holds is at most twice what was left. So one party
//! alone gets two thirds, several greedy ones get equal amounts, and something is left for the next
//! party. Switches share their packet memory by this rule ("dynamic thresholds", Choudhury and
//! Hahne, 1998).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many times what is left a party may hold.
const FACTOR: usize = 2;

/// A limited resource. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Shares(Arc<Resource>);

#[derive(Debug)]
struct Resource {
    limit: usize,
    state: Mutex<Holdings>,
}

#[derive(Debug, Default)]
struct Holdings {
    used: usize,
    /// What each party holds; no entry is zero.
    of_party: HashMap<u64, usize>,
}

/// What one user of the resource holds. Dropping it gives it back.
#[must_use = "dropping it gives it back"]
#[derive(Debug)]
pub(crate) struct Share {
    shares: Shares,
    party: Option<u64>,
    amount: usize,
}

impl Shares {
    /// A resource of which `limit` can be held.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Arc::new(Resource {
            limit,
            state: Mutex::default(),
        }))
    }

    /// A share for `party` with nothing in it; `None`: no one competes with it, and it may take
    /// all.
    pub(crate) fn empty(&self, party: Option<u64>) -> Share {
        Share {
            shares: self.clone(),
            party,
            amount: 0,
        }
    }

    /// Takes `amount` for `party`. `None`: that is more than its share, or than is left.
    pub(crate) fn take(&self, party: Option<u64>, amount: usize) -> Option<Share> {
        let mut share = self.empty(party);
        share.grow(amount).then_some(share)
    }

    /// How much no one holds.
    pub(crate) fn left(&self) -> usize {
        self.0.limit.saturating_sub(self.lock().used)
    }

    fn lock(&self) -> MutexGuard<'_, Holdings> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// How much it holds.
    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    /// Takes `amount` more. `false`: that is more than the party's share, or than is left.
    pub(crate) fn grow(&mut self, amount: usize) -> bool {
        if amount == 0 {
            return true;
        }
        let mut state = self.shares.lock();
        let left = self.shares.0.limit.saturating_sub(state.used);
        if amount > left {
            return false;
        }
        if let Some(party) = self.party {
            let held = state.of_party.get(&party).copied().unwrap_or(0);
            if held + amount > FACTOR * left {
                return false;
            }
            state.of_party.insert(party, held + amount);
        }
        state.used += amount;
        self.amount += amount;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut state = self.shares.lock();
        state.used -= self.amount;
        if let Some(party) = self.party
            && let Some(held) = state.of_party.get_mut(&party)
        {
            *held -= self.amount;
            if *held == 0 {
                state.of_party.remove(&party);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one at a time until the share is used up.
    fn take_all(shares: &Shares, party: Option<u64>) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(party, 1)).collect()
    }

    #[test]
    fn one_greedy_party_leaves_a_third_for_the_others() {
        let shares = Shares::new(64);
        let greedy = take_all(&shares, Some(1));
        assert_eq!(greedy.len(), 43);
        let second = take_all(&shares, Some(2));
        assert_eq!(second.len(), 14);
        assert!(shares.take(Some(3), 1).is_some());
        drop(greedy);
        assert!(shares.take(Some(1), 30).is_some());
    }

    #[test]
    fn any_number_of_greedy_parties_leaves_something_for_the_next() {
        for parties in 1..20 {
            let shares = Shares::new(2 * parties + 1);
            let mut held = Vec::new();
            // They take turns, which is the worst case for the next one.
            loop {
                let before = held.len();
                held.extend((0..parties as u64).filter_map(|party| shares.take(Some(party), 1)));
                if held.len() == before {
                    break;
                }
            }
            assert!(shares.take(Some(99), 1).is_some(), "{parties}");
        }
    }

    #[test]
    fn a_resource_of_one_or_two_can_be_used_up() {
        for limit in [1, 2] {
            assert_eq!(take_all(&Shares::new(limit), Some(1)).len(), limit);
        }
        assert_eq!(take_all(&Shares::new(3), Some(1)).len(), 2);
    }

    #[test]
    fn a_party_without_competitors_may_take_all_and_no_more() {
        let shares = Shares::new(10);
        let mut all = take_all(&shares, None);
        assert_eq!(all.len(), 10);
        assert!(shares.take(Some(1), 1).is_none());
        assert!(!all[0].grow(1));
        assert!(all[0].grow(0));
    }

    #[test]
    fn what_is_dropped_is_free_again() {
        let shares = Shares::new(100);
        for _ in 0..1000 {
            let mut share = shares.take(Some(7), 10).unwrap();
            assert!(share.grow(20));
            assert!(!share.grow(100));
        }
        let state = shares.lock();
        assert_eq!((state.used, state.of_party.len()), (0, 0));
    }
}
