//! The tunnel's single steps by themselves: mask, frame header, chunk codec, head parser.
//!
//! A figure by itself says little on a machine that others share; the ratio to a plain copy of as many bytes, taken in the same
//! breath, says what a step costs beside what cannot be saved. What a whole tunnel costs is `benches/tunnel`'s to say.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for readers, from counts far under 2^52"
)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use upstreamproxy::fuzzing::steps::{
    Sender, chunk_decode, chunk_header, chunk_start, frame, request_head, response_head,
};

const HELP: &str = "\
Measures the tunnel's single steps: mask, frame header, chunk codec, head parser.

Usage: cargo bench --features fuzzing --bench micro -- [options] [FILTER...]

  FILTER     only steps whose name holds one of these words
  --quick    a short look
  --json     one JSON document instead of the table
";

/// What is masked and copied at once: what a read brings on a busy connection, and what a quiet one brings.
const BULK: usize = 256 << 10;
const SMALL: usize = 1 << 10;

const REQUEST: &[u8] =
    b"CONNECT registry.example.com:443 HTTP/1.1\r\nHost: registry.example.com:443\r\n\
    User-Agent: a-package-manager/10.2.4 (linux; x64)\r\nProxy-Connection: keep-alive\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: upstreamproxy.v2\r\n\r\n";

/// One step.
struct Step<'a> {
    name: &'static str,
    /// Bytes that one call is about; 0 where the step is about none.
    bytes: usize,
    call: Box<dyn FnMut() + 'a>,
}

impl<'a> Step<'a> {
    fn new(name: &'static str, bytes: usize, call: impl FnMut() + 'a) -> Self {
        Self {
            name,
            bytes,
            call: Box::new(call),
        }
    }
}

/// What a step took.
struct Found {
    name: &'static str,
    bytes: usize,
    nanos: f64,
    /// By how much more than a copy of as many bytes.
    of_a_copy: Option<f64>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "micro bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let (mut json, mut filters) = (false, Vec::new());
    // Cargo says `--bench` when it benchmarks and nothing when it tests: then this is only to show that it works.
    let mut effort = QUICK;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--bench" => effort = FULL,
            "--quick" => {}
            "--json" => json = true,
            "--help" | "-h" => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            option if option.starts_with('-') => {
                return Err(format!("there is no option {option}; --help lists them").into());
            }
            word => filters.push(word.to_owned()),
        }
    }
    if std::env::args().any(|argument| argument == "--quick") {
        effort = QUICK;
    }
    let found = measure(&filters, &effort);
    if found.is_empty() {
        return Err("no step has such a name".into());
    }
    let output = if json {
        document(&found)
    } else {
        table(&found)
    };
    Ok(io::stdout().write_all(output.as_bytes())?)
}

/// How long a sample goes on, and how many there are.
struct Effort {
    sample: Duration,
    samples: usize,
}

const FULL: Effort = Effort {
    sample: Duration::from_millis(20),
    samples: 15,
};
const QUICK: Effort = Effort {
    sample: Duration::from_millis(2),
    samples: 5,
};

fn measure(filters: &[String], effort: &Effort) -> Vec<Found> {
    let noise: Vec<u8> = (0..BULK).map(|n| (n * 31 % 251) as u8).collect();
    let (mut place, mut other) = (noise.clone(), noise.clone());
    let (mut sender, mut masker, mut copier) =
        (Sender::default(), Sender::default(), Sender::default());
    let message = [&[0x0a, 0x80, 0x80, 0x10], &noise[..]].concat();
    let frames = [&[0x82, 0x7e, 0x04, 0x00], &noise[..SMALL]].concat();
    let steps = [
        Step::new("mask 256 KiB in place", BULK, || {
            masker.mask(black_box(&mut place));
        }),
        Step::new("mask 256 KiB on the way", BULK, || {
            copier.copy(black_box(&noise), black_box(&mut other));
        }),
        Step::new("frame header, written", 0, || {
            black_box(sender.header(black_box(BULK)));
        }),
        Step::new("frame of 1 KiB, read", SMALL, || {
            assert_eq!(frame(black_box(&frames)), SMALL);
        }),
        Step::new("chunk header, written", 0, || {
            black_box(chunk_header(black_box(BULK)));
        }),
        Step::new("chunk of 256 KiB, looked at", 0, || {
            assert_eq!(chunk_start(black_box(&message)), 4);
        }),
        Step::new("chunk of 256 KiB, decoded", 0, || {
            assert_eq!(chunk_decode(black_box(&message)), BULK);
        }),
        Step::new("request head", REQUEST.len(), || {
            assert_eq!(request_head(black_box(REQUEST)), REQUEST.len());
        }),
        Step::new("response head", RESPONSE.len(), || {
            assert_eq!(response_head(black_box(RESPONSE)), RESPONSE.len());
        }),
    ];
    let wanted =
        |step: &Step<'_>| filters.is_empty() || filters.iter().any(|word| step.name.contains(word));
    steps
        .into_iter()
        .filter(wanted)
        .map(|step| compared(step, effort))
        .collect()
}

/// The step beside a copy of as many bytes, sample by sample in turns.
fn compared(mut step: Step<'_>, effort: &Effort) -> Found {
    let from = vec![1_u8; step.bytes];
    let mut to = vec![0_u8; step.bytes];
    let mut copy = || black_box(&mut to).copy_from_slice(black_box(&from));
    let (calls, copies) = (calls(&mut step.call, effort), calls(&mut copy, effort));
    let (mut own, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..effort.samples {
        let nanos = time(&mut step.call, calls);
        own.push(nanos);
        ratios.push(nanos / time(&mut copy, copies));
    }
    Found {
        name: step.name,
        bytes: step.bytes,
        nanos: median(own),
        of_a_copy: (step.bytes > 0).then(|| median(ratios)),
    }
}

/// How many calls make a sample.
fn calls(call: &mut impl FnMut(), effort: &Effort) -> u32 {
    let mut calls = 1;
    loop {
        let began = Instant::now();
        (0..calls).for_each(|_| call());
        if began.elapsed() >= effort.sample || calls >= 1 << 24 {
            return calls;
        }
        calls *= 2;
    }
}

/// Nanoseconds for one of so many calls.
fn time(call: &mut impl FnMut(), calls: u32) -> f64 {
    let began = Instant::now();
    (0..calls).for_each(|_| call());
    began.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Found {
    fn nanos_per_byte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.nanos / self.bytes as f64)
    }
}

fn table(found: &[Found]) -> String {
    let mut out = format!(
        "{:<30}{:>12}{:>12}{:>12}{:>14}\n",
        "step", "ns a call", "ns a byte", "GiB/s", "x a copy"
    );
    for step in found {
        let or_dash = |value: Option<f64>, places: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.places$}"))
        };
        let rate = step
            .nanos_per_byte()
            .map(|nanos| 1e9 / nanos / f64::from(1 << 30));
        let _ = writeln!(
            out,
            "{:<30}{:>12.1}{:>12}{:>12}{:>14}",
            step.name,
            step.nanos,
            or_dash(step.nanos_per_byte(), 3),
            or_dash(rate, 2),
            or_dash(step.of_a_copy, 2),
        );
    }
    out
}

fn document(found: &[Found]) -> String {
    let steps: Vec<_> = found
        .iter()
        .map(|step| {
            json!({
                "step": step.name,
                "ns": step.nanos,
                "bytes": step.bytes,
                "ns_per_byte": step.nanos_per_byte(),
                "ratio_to_copy": step.of_a_copy,
            })
        })
        .collect();
    format!("{}\n", json!({ "steps": steps }))
}
