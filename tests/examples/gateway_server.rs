//! A gateway with one session, and a relay that uses it with a token of its own: both ends of the
//! system in a program.
//!
//! ```sh
//! cargo run --example gateway_server
//! ```

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use upstreamproxy::config::When;
use upstreamproxy::gateway::{GatewayConfig, Sessions};
use upstreamproxy::{Config, ErrorKind, start, start_gateway};

fn main() -> Result<(), Box<dyn Error>> {
    let token = "a-token-for-this-example-only";
    let sessions = Sessions::parse(&format!("session-1 {token}\n"))?;
    let settings = GatewayConfig::new(sessions).listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let gateway = start_gateway(settings)?;
    println!("gateway: {}", gateway.base_url());

    let directory =
        std::env::temp_dir().join(format!("upstreamproxy-example-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let token_file = directory.join("token");
    fs::write(&token_file, token)?;
    let config = Config::from_env()
        .when(When::Always)
        .base_url(gateway.base_url().parse()?)
        .session_id("session-1".parse()?)
        .token_file(&token_file)
        .ca_bundle(directory.join("ca-bundle.crt"));
    let relay = start(&config).into_result()?;
    println!("relay: {}", relay.proxy_url());
    assert!(!token_file.exists(), "the token is only in memory now");

    // A second start finds no token: a host can match on the kind.
    let again = start(&config)
        .into_result()
        .expect_err("the token is deleted");
    assert_eq!(again.error().kind(), ErrorKind::NotFound);
    println!("second start: {again}");

    // Sessions can be replaced while the gateway runs. Open tunnels continue.
    gateway.replace_sessions(Sessions::parse(
        "session-2 another-token-for-this-example\n",
    )?);

    relay.shutdown(Duration::from_secs(1));
    let report = gateway.shutdown(Duration::from_secs(1));
    println!("gateway: {} tunnels", report.stats.tunnels);
    fs::remove_dir_all(&directory)?;
    Ok(())
}
