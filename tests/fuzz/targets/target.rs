//! Every fuzz target: the body that has this program's name, out of the library's list.

#![no_main]

use libfuzzer_sys::fuzz_target;
use upstreamproxy::fuzzing::TARGETS;

fuzz_target!(|bytes: &[u8]| {
    let (_, body) = TARGETS
        .iter()
        .find(|(name, _)| *name == env!("CARGO_BIN_NAME"))
        .expect("the program has the name of a target");
    body(bytes);
});
