//! Measures the single steps of a tunnel: mask, frame header, chunk codec, head parser.
//!
//! On a shared machine an absolute time says little. Therefore each step is also compared with a
//! plain copy of the same number of bytes, measured alternately with it. `benches/tunnel` measures
//! whole tunnels.

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
Measures the single steps of a tunnel: mask, frame header, chunk codec, head parser.

Usage: cargo bench --features fuzzing --bench micro -- [options] [FILTER...]

  FILTER     only steps whose name contains one of these words
  --quick    fewer and shorter samples
  --json     print one JSON document instead of the table
";

/// The sizes that are masked and decoded: a typical read on a busy connection, and on a quiet one.
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
    /// The number of bytes that one call processes; 0 if the time does not depend on a number of
    /// bytes.
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

/// The times of a step.
struct Timing {
    name: &'static str,
    bytes: usize,
    nanos: f64,
    /// The ratio to a copy of the same number of bytes.
    copy_ratio: Option<f64>,
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
    // `cargo bench` passes `--bench`, `cargo test` does not. A test run only checks that it works.
    let mut effort = QUICK;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--bench" => effort = FULL,
            "--quick" => {}
            "--json" => json = true,
            "--help" | "-h" => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            option if option.starts_with('-') => {
                return Err(format!("unknown option {option}; see --help").into());
            }
            word => filters.push(word.to_owned()),
        }
    }
    if std::env::args().any(|argument| argument == "--quick") {
        effort = QUICK;
    }
    let timings = measure(&filters, &effort);
    if timings.is_empty() {
        return Err("no step name contains one of the filters".into());
    }
    let output = if json {
        document(&timings)
    } else {
        table(&timings)
    };
    Ok(io::stdout().write_all(output.as_bytes())?)
}

/// The length of a sample, and the number of samples.
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

fn measure(filters: &[String], effort: &Effort) -> Vec<Timing> {
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
        Step::new("mask 256 KiB while copying", BULK, || {
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
        Step::new("chunk of 256 KiB, header read", 0, || {
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
    let is_selected =
        |step: &Step<'_>| filters.is_empty() || filters.iter().any(|word| step.name.contains(word));
    steps
        .into_iter()
        .filter(is_selected)
        .map(|step| compare(step, effort))
        .collect()
}

/// Measures the step and a copy of the same number of bytes, in alternate samples.
fn compare(mut step: Step<'_>, effort: &Effort) -> Timing {
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
    Timing {
        name: step.name,
        bytes: step.bytes,
        nanos: median(own),
        copy_ratio: (step.bytes > 0).then(|| median(ratios)),
    }
}

/// The number of calls in one sample.
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

/// Runs this number of calls and returns the nanoseconds per call.
fn time(call: &mut impl FnMut(), calls: u32) -> f64 {
    let began = Instant::now();
    (0..calls).for_each(|_| call());
    began.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Timing {
    fn nanos_per_byte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.nanos / self.bytes as f64)
    }
}

fn table(timings: &[Timing]) -> String {
    let mut out = format!(
        "{:<30}{:>12}{:>12}{:>12}{:>14}\n",
        "step", "ns per call", "ns per byte", "GiB/s", "x copy"
    );
    for step in timings {
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
            or_dash(step.copy_ratio, 2),
        );
    }
    out
}

fn document(timings: &[Timing]) -> String {
    let steps: Vec<_> = timings
        .iter()
        .map(|step| {
            json!({
                "step": step.name,
                "ns": step.nanos,
                "bytes": step.bytes,
                "ns_per_byte": step.nanos_per_byte(),
                "ratio_to_copy": step.copy_ratio,
            })
        })
        .collect();
    format!("{}\n", json!({ "steps": steps }))
}
