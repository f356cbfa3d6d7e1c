//! The bodies of the fuzz targets: one function per parser of bytes from outside, with the
//! properties that must hold.
//!
//! Not a part of the program: compiled for the unit tests, which pass every file of
//! `tests/fuzz/corpus` to its body, and with the feature `fuzzing`. A body only panics if a
//! property does not hold. `echo` and `steps` are for `tests/autobahn` and `benches/micro`, which
//! need private code of the library too.

#![allow(clippy::missing_panics_doc)]

mod echo;
mod heads;
mod reference;
pub mod steps;
mod texts;
mod wire;

use std::fmt::Debug;

pub use echo::Echo;

/// A target: its name, which is also the name of its corpus and of its program, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target: message heads, then the wire of a tunnel, then texts.
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

/// The number of prefixes to try where the input is too long to try each one.
const PREFIXES: usize = 64;

/// Returns the result of `read` for `bytes`, and asserts that the segmentation does not matter: a
/// result for a prefix stays the same for every longer prefix. `None` means that `read` needs more
/// bytes.
fn stable_result<T: Debug + PartialEq>(
    bytes: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let step = bytes.len() / PREFIXES + 1;
    let mut result = None;
    for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
        let next = read(&bytes[..end]);
        if result.is_some() {
            assert_eq!(next, result, "another result after {end} bytes");
        }
        result = next;
    }
    result
}

/// `bytes` in pieces of pseudorandom lengths from `seed`: from single bytes to long runs.
fn segments(bytes: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    let mut state = u32::from(seed);
    std::iter::from_fn(move || {
        // A linear congruential generator: varied lengths that can be reproduced.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let longest = [1, 3, 20, 500][(state >> 30) as usize];
        let len = (1 + (state >> 8) as usize % longest).min(rest.len());
        let (piece, after) = rest.split_at(len);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn fuzz_dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
    }

    fn names_in(dir: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let names = fs::read_dir(dir).unwrap().map(name);
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_target_holds_for_its_whole_corpus() {
        for (target, body) in TARGETS {
            let corpus = fuzz_dir().join("corpus").join(target);
            let mut cases = 0;
            for name in names_in(&corpus) {
                let path = corpus.join(&name);
                // The directory `new` has the inputs that a fuzzer found here; it is not committed.
                if path.is_file() {
                    cases += 1;
                    let bytes = fs::read(&path).unwrap();
                    let outcome = std::panic::catch_unwind(|| body(&bytes));
                    assert!(outcome.is_ok(), "{target} does not hold for {name}");
                }
            }
            assert!(cases > 3, "{target} has almost no corpus");
        }
    }

    #[test]
    fn every_corpus_and_every_program_has_its_target() {
        let mut targets: Vec<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        // The crate on crates.io has no programs: Cargo leaves out nested packages. It adds this
        // file.
        let is_packaged =
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml.orig")).exists();
        if !is_packaged {
            let manifest = fs::read_to_string(fuzz_dir().join("targets/Cargo.toml")).unwrap();
            for target in &targets {
                assert!(
                    manifest.contains(&format!("name = \"{target}\"\n")),
                    "{target}"
                );
            }
        }
        targets.sort();
        assert_eq!(names_in(&fuzz_dir().join("corpus")), targets);
    }

    #[test]
    fn a_result_that_changes_is_detected() {
        let unstable = |bytes: &[u8]| (bytes.len() > 2).then_some(bytes.len());
        assert!(std::panic::catch_unwind(|| stable_result(b"abcd", unstable)).is_err());
        assert_eq!(
            stable_result(b"abcd", |bytes| (bytes.len() > 2).then_some(1)),
            Some(1)
        );
        assert_eq!(
            segments(b"abcdefgh", 7).collect::<Vec<_>>().concat(),
            b"abcdefgh"
        );
    }
}
