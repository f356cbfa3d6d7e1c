//! Runs a relay in front of a gateway inside this process, sends bytes through a tunnel, and shuts
//! down while another thread may lose patience: what a test harness or a demonstration does. It
//! needs no upstream and no network.
//!
//! ```sh
//! cargo run --example embedded_gateway
//! ```

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use upstreamproxy::{Config, start_embedded};

fn main() -> Result<(), Box<dyn Error>> {
    let relay = start_embedded(&Config::from_env()).into_result()?;
    println!("proxy: {}", relay.proxy_url());
    println!("CA bundle: {}", relay.ca_bundle().display());

    // A target that echoes.
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let authority = target.local_addr()?;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = target.accept()?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        stream.write_all(&received)
    });

    // A client, as any tool would do it.
    let mut client = TcpStream::connect(relay.local_addr())?;
    write!(
        client,
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
    )?;
    client.write_all(b"through the tunnel")?;
    client.shutdown(Shutdown::Write)?;
    let mut response = String::new();
    client.read_to_string(&mut response)?;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert!(response.ends_with("through the tunnel"), "{response}");
    echo.join().map_err(|_| "the target panicked")??;

    // From any thread, a request like this ends a shutdown that takes too long.
    let abort = relay.abort();
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(5));
        abort.request();
    });
    let report = relay.shutdown(Duration::from_secs(10));
    let stats = report.stats;
    println!(
        "{} tunnel, {} bytes up, {} bytes down",
        stats.tunnels, stats.bytes_up, stats.bytes_down
    );
    Ok(())
}
