//! Shows memory, threads and descriptors of relay and gateway over time, and what remains in use
//! after very many tunnels and after long ones.
//!
//! Short by default; options set the durations. Every byte is checked on arrival. The run fails if
//! there were errors, or if a thread or a descriptor remains in use.

mod churn;
mod long;
mod plan;
mod watch;

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use socket2::SockRef;

use self::plan::{HELP, Invocation, Plan};
use self::watch::Watch;
use crate::path::Path;
use crate::pattern::TestPattern;
use crate::{Outcome, TIMEOUT};

/// The name of this subcommand.
pub(crate) const SUBCOMMAND: &str = "soak";

/// How long a thread may still run after its tunnel: the relay waits briefly for the client to
/// close.
const SETTLE_TIME: Duration = Duration::from_secs(5);

/// The path and the data that all loads share.
struct Context<'a> {
    path: &'a Path,
    pattern: &'a TestPattern,
    /// The target of the connection pairs.
    listener: &'a TcpListener,
}

/// Runs the subcommand with these arguments.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Outcome<()> {
    let plan = match Plan::read(arguments)? {
        Invocation::Help => return Ok(io::stdout().write_all(HELP.as_bytes())?),
        Invocation::Soak(plan) => plan,
    };
    let pattern = TestPattern::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    SockRef::from(&listener).set_read_timeout(Some(TIMEOUT))?;
    let name = if plan.tls { "wss" } else { "ws" };
    let path = Path::tunnel(name, plan.tls, listener.local_addr()?)?;
    let context = Context {
        path: &path,
        pattern: &pattern,
        listener: &listener,
    };
    let mut watch = Watch::new(&path.processes, plan.every);

    // Resources that are created once and kept belong to the baseline.
    churn::run(&context, plan.at_once, plan.at_once, &Watch::uncounted())?;
    std::thread::sleep(SETTLE_TIME);
    watch.rest("at rest");

    let mut results = Vec::new();
    results.push(watch.during("churn", |watch| {
        churn::run(&context, plan.tunnels, plan.at_once, watch)
    })?);
    results.push(watch.during("mixed", |watch| long::mixed(&context, &plan, watch))?);
    results.push(watch.during("silent", |watch| long::silent(&context, &plan, watch))?);
    results.push(watch.during("stalled", |_| long::stalled(&context))?);
    results.push(watch.during("small beside large", |_| long::latency(&context))?);
    results.push(watch.during("slow reader", |_| long::slow(&context, plan.mebibytes))?);
    let settled = watch.settles(Instant::now() + SETTLE_TIME);
    watch.rest("at rest again");

    let output = if plan.json {
        watch.json(&results)
    } else {
        watch.table(&results)
    };
    io::stdout().write_all(output.as_bytes())?;
    let errors = watch.errors();
    path.stop()?;
    if errors > 0 {
        return Err(format!("{errors} errors").into());
    }
    if !settled {
        return Err("threads or descriptors remain in use".into());
    }
    Ok(())
}
