//! Keeps other processes of the same user out of our memory, before the token is in it.
//!
//! What it buys: no debugger attaches to us, nobody but root reads `/proc/<pid>/mem` or `/proc/<pid>/environ`, and a crash
//! leaves no core file with the token inside. It lasts until we call `exec`: children that run a program of their own are as
//! dumpable as they would have been without us.
//!
//! What it does not buy: nothing against root or `CAP_SYS_PTRACE`, nothing against code inside this process, nothing against
//! memory going to swap, and nothing against whoever was attached before. It lasts for the whole process, which is why a host
//! that embeds the library may decline it. See [prctl(2), `PR_SET_DUMPABLE`].
//!
//! [prctl(2), `PR_SET_DUMPABLE`]: https://man7.org/linux/man-pages/man2/pr_set_dumpable.2const.html

use std::io;

/// Makes this process non-dumpable, before there is a secret in it. [`start`](crate::start) does it by itself.
///
/// # Errors
/// What the kernel says; on other systems than Linux `Unsupported`.
#[cfg(target_os = "linux")]
pub(crate) fn protect() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};

    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Makes this process non-dumpable.
///
/// # Errors
/// `Unsupported`: there is no such switch on this system.
#[cfg(not(target_os = "linux"))]
pub fn protect() -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "not available here",
    ))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus, Stdio};

    use rustix::process::{
        DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, setrlimit,
    };

    /// Tells `acts_in_a_process_of_its_own` what to do there.
    const ROLE: &str = "UPSTREAMPROXY_TEST_HARDENING_ROLE";

    /// What `protect` does lasts for a whole process, so each role is played in one of its own; as a test this does nothing.
    #[test]
    fn acts_in_a_process_of_its_own() {
        match std::env::var(ROLE).as_deref() {
            Ok("crash protected") => {
                protect().expect("protect");
                crash();
            }
            // By hand: the same without protection, to see the core that the test above does not find.
            Ok("crash bare") => crash(),
            Ok("run a program protected") => {
                protect().expect("protect");
                assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
                assert!(play("be the program").success());
            }
            Ok("be the program") => {
                assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::Dumpable));
            }
            _ => {}
        }
    }

    fn crash() {
        let maximum = getrlimit(Resource::Core).maximum;
        let core = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(Resource::Core, core).expect("a core limit up to the hard one");
        std::process::abort();
    }

    fn play(role: &str) -> ExitStatus {
        let folder = tempfile::tempdir().expect("a folder for the core");
        Command::new(std::env::current_exe().expect("this test binary"))
            .arg("setup::hardening::tests::acts_in_a_process_of_its_own")
            .arg("--exact")
            .env(ROLE, role)
            .current_dir(&folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the process")
    }

    #[test]
    fn a_protected_process_leaves_no_core() {
        let protected = play("crash protected");
        // 6 is SIGABRT: it got as far as the crash.
        assert_eq!(protected.signal(), Some(6));
        // `man 5 core`: where cores are written at all, a process that does not protect itself leaves one here.
        assert!(!protected.core_dumped());
    }

    #[test]
    fn a_program_that_a_protected_process_runs_is_as_dumpable_as_ever() {
        assert!(play("run a program protected").success());
    }
}
