//! The program of every fuzz target: runs the body that has this program's name.

#![no_main]

use libfuzzer_sys::fuzz_target;
use upstreamproxy::fuzzing::TARGETS;

fuzz_target!(|bytes: &[u8]| {
    let (_, body) = TARGETS
        .iter()
        .find(|(name, _)| *name == env!("CARGO_BIN_NAME"))
        .expect("a target with the name of this program");
    body(bytes);
});
