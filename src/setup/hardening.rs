//! Makes this process non-dumpable, before it reads the token.
//!
//! Effect: no debugger of this user can attach, only root can read `/proc/<pid>/mem` and
//! `/proc/<pid>/environ`, and a crash writes no core file with the token. It lasts until `exec`: a
//! child that runs another program is as dumpable as usual.
//!
//! No effect: against root or `CAP_SYS_PTRACE`, code inside this process, memory in swap, and a
//! debugger that was attached before. The whole process is affected, so a host that embeds the
//! library can turn it off. See [prctl(2), `PR_SET_DUMPABLE`].
//!
//! [prctl(2), `PR_SET_DUMPABLE`]: https://man7.org/linux/man-pages/man2/pr_set_dumpable.2const.html

use std::io;

/// Makes this process non-dumpable. [`start`](crate::start) calls it.
///
/// # Errors
/// An error of the kernel; `Unsupported` on other systems than Linux.
pub(crate) fn protect() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return Ok(rustix::process::set_dumpable_behavior(
        rustix::process::DumpableBehavior::NotDumpable,
    )?);
    #[cfg(not(target_os = "linux"))]
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

    /// The role of `acts_in_a_separate_process`.
    const ROLE: &str = "UPSTREAMPROXY_TEST_HARDENING_ROLE";

    /// `protect` affects the whole process, so each role runs in a separate process. Without a
    /// role this test does nothing.
    #[test]
    fn acts_in_a_separate_process() {
        match std::env::var(ROLE).as_deref() {
            Ok("crash protected") => {
                protect().expect("protect");
                crash();
            }
            // For manual use: without protection, to see the core file that the test above does not
            // find.
            Ok("crash bare") => crash(),
            Ok("run a program protected") => {
                protect().expect("protect");
                assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
                assert!(run_role("be the program").success());
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

    fn run_role(role: &str) -> ExitStatus {
        let directory = tempfile::tempdir().expect("a directory for the core file");
        Command::new(std::env::current_exe().expect("this test binary"))
            .arg("setup::hardening::tests::acts_in_a_separate_process")
            .arg("--exact")
            .env(ROLE, role)
            .current_dir(&directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the process")
    }

    #[test]
    fn a_protected_process_writes_no_core_file() {
        let protected = run_role("crash protected");
        // 6 is SIGABRT: the process reached the crash.
        assert_eq!(protected.signal(), Some(6));
        // `man 5 core`: where core files are written at all, an unprotected process leaves one
        // here.
        assert!(!protected.core_dumped());
    }

    #[test]
    fn a_program_that_a_protected_process_runs_is_dumpable() {
        assert!(run_role("run a program protected").success());
    }
}
