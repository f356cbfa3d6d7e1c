//! What is left after very many tunnels, and after long ones: memory, threads and descriptors of relay and gateway over time.
//!
//! Short by default, as long as wanted by options. Every byte is checked on arrival; whatever did not go as it should is
//! counted, and a run with such counts, or one that leaves a thread or a descriptor behind, fails.

mod churn;
mod long;
mod plan;
mod watch;

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use socket2::SockRef;

use self::plan::{Asked, HELP, Plan};
use self::watch::Watch;
use crate::path::Path;
use crate::pattern::Pattern;
use crate::{Outcome, PATIENCE};

/// The first word that asks for all this.
pub(crate) const WORD: &str = "soak";

/// How long after the last tunnel its thread may live: the relay waits a moment for the client to hang up.
const TO_REST: Duration = Duration::from_secs(5);

/// What the loads share.
struct Ground<'a> {
    path: &'a Path,
    pattern: &'a Pattern,
    /// Where pairs of ends are made.
    listener: &'a TcpListener,
}

/// Runs as the arguments say.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Outcome<()> {
    let plan = match Plan::read(arguments)? {
        Asked::Help => return Ok(io::stdout().write_all(HELP.as_bytes())?),
        Asked::Soak(plan) => plan,
    };
    let pattern = Pattern::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
    let name = if plan.tls { "wss" } else { "ws" };
    let path = Path::tunnel(name, plan.tls, listener.local_addr()?)?;
    let ground = Ground {
        path: &path,
        pattern: &pattern,
        listener: &listener,
    };
    let mut watch = Watch::new(&path.processes, plan.every);

    // What is made once and kept belongs to the baseline.
    churn::run(&ground, plan.at_once, plan.at_once, &Watch::unseen())?;
    std::thread::sleep(TO_REST);
    watch.rest("at rest");

    let mut said = Vec::new();
    said.push(watch.during("churn", |watch| {
        churn::run(&ground, plan.tunnels, plan.at_once, watch)
    })?);
    said.push(watch.during("mixed", |watch| long::mixed(&ground, &plan, watch))?);
    said.push(watch.during("silent", |watch| long::silent(&ground, &plan, watch))?);
    said.push(watch.during("stalled", |_| long::stalled(&ground))?);
    said.push(watch.during("small beside large", |_| long::latency(&ground))?);
    said.push(watch.during("slow reader", |_| long::slow(&ground, plan.mebibytes))?);
    let settled = watch.settles(Instant::now() + TO_REST);
    watch.rest("at rest again");

    let output = if plan.json {
        watch.json(&said)
    } else {
        watch.table(&said)
    };
    io::stdout().write_all(output.as_bytes())?;
    let errors = watch.errors();
    path.stop()?;
    if errors > 0 {
        return Err(format!("{errors} things did not go as they should").into());
    }
    if !settled {
        return Err("threads or descriptors are left behind".into());
    }
    Ok(())
}
