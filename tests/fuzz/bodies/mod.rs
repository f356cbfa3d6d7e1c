//! What must hold for any bytes from outside, one function for each reader: the bodies of the fuzz targets in `tests/fuzz`.
//!
//! No part of the program: compiled for the unit tests, which put every file of the corpora through it, and with the feature
//! `fuzzing`. A body panics where a promise is broken, and that is all it does.

#![allow(clippy::missing_panics_doc)]

mod echo;
mod heads;
mod reference;
pub mod steps;
mod texts;
mod wire;

use std::fmt::Debug;

pub use echo::Echo;

/// A target: its name, which is also that of its corpus and of its program in `tests/fuzz`, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, in the order of the way of a byte.
pub const TARGETS: [Target; 13] = [
    ("request_head", heads::request_head),
    ("upgrade_request", heads::upgrade_request),
    ("upgrade_response", heads::upgrade_response),
    ("opening", heads::opening),
    ("answer", heads::answer),
    ("client_hello", heads::client_hello),
    ("frames", wire::frames),
    ("chunk", wire::chunk),
    ("messages", wire::messages),
    ("authority", texts::authority),
    ("policy", texts::policy),
    ("pem", texts::pem),
    ("sessions", texts::sessions),
];

/// How many ends are tried of bytes that are too long to try every one.
const CUTS: usize = 64;

/// What `read` says of `bytes`, having seen to it that the segmentation does not matter: the answer that it gives to some
/// first part is its answer for ever, however much more comes. `None` is a wish for more.
fn settled<T: Debug + PartialEq>(bytes: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let step = bytes.len() / CUTS + 1;
    let mut answer = None;
    for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
        let said = read(&bytes[..end]);
        if answer.is_some() {
            assert_eq!(said, answer, "another answer after {end} bytes");
        }
        answer = said;
    }
    answer
}

/// `bytes` in pieces whose lengths follow from `seed`: now single bytes, now long runs.
fn segments(bytes: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    let mut state = u32::from(seed);
    std::iter::from_fn(move || {
        // A linear congruential generator: all that is wanted is variety that can be had again.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let longest = [1, 3, 20, 500][(state >> 30) as usize];
        let len = (1 + (state >> 8) as usize % longest).min(rest.len());
        let (piece, behind) = rest.split_at(len);
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
    }

    fn names_in(folder: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let names = fs::read_dir(folder).unwrap().map(name);
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_target_holds_for_its_whole_corpus() {
        for (target, body) in TARGETS {
            let corpus = folder().join("corpus").join(target);
            let mut cases = 0;
            for name in names_in(&corpus) {
                let path = corpus.join(&name);
                // What a fuzzer found here lately is in a folder that is not committed.
                if path.is_file() {
                    cases += 1;
                    let bytes = fs::read(&path).unwrap();
                    let held = std::panic::catch_unwind(|| body(&bytes));
                    assert!(held.is_ok(), "{target} does not hold for {name}");
                }
            }
            assert!(cases > 3, "{target} has next to no corpus");
        }
    }

    #[test]
    fn every_corpus_and_every_program_has_its_target() {
        let mut targets: Vec<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let manifest = fs::read_to_string(folder().join("targets/Cargo.toml")).unwrap();
        for target in &targets {
            assert!(
                manifest.contains(&format!("name = \"{target}\"\n")),
                "{target}"
            );
        }
        targets.sort();
        assert_eq!(names_in(&folder().join("corpus")), targets);
    }

    #[test]
    fn an_answer_that_changes_is_seen() {
        let fickle = |bytes: &[u8]| (bytes.len() > 2).then_some(bytes.len());
        assert!(std::panic::catch_unwind(|| settled(b"abcd", fickle)).is_err());
        assert_eq!(
            settled(b"abcd", |bytes| (bytes.len() > 2).then_some(1)),
            Some(1)
        );
        assert_eq!(
            segments(b"abcdefgh", 7).collect::<Vec<_>>().concat(),
            b"abcdefgh"
        );
    }
}
