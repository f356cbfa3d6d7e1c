//! External tools that tests use. If a tool is missing, the test is skipped and prints why; in CI a
//! missing tool is a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::{TempHome, finish_within};

/// The time limit for installing the Python libraries.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

/// Whether `tool` is in the `PATH`. If not, the test is skipped; in CI it fails.
#[track_caller]
pub(crate) fn need_tool(tool: &str) -> bool {
    let found = found(tool);
    if !found {
        skip(&format!("{tool} is not installed"));
    }
    found
}

/// Prints why a test is skipped. Fails it in CI, where no test may be skipped.
#[track_caller]
pub(crate) fn skip(why: &str) {
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!in_ci, "{why}, and no test may be skipped in CI");
    println!("skipped: {why}");
}

/// Prints why a test is skipped if no installation can help, such as a container that does not
/// allow namespaces. Does not fail in CI.
pub(crate) fn skip_unsupported(why: &str) {
    println!("skipped: {why}");
}

/// A Python virtual environment with the libraries that the peers and clients need.
pub(crate) struct Python {
    directory: PathBuf,
}

impl Python {
    /// The environment of this test run. The first test that needs it creates it. Returns `None`,
    /// and the test is skipped, if that fails.
    #[track_caller]
    pub(crate) fn ready() -> Option<&'static Self> {
        static MADE: OnceLock<Result<Python, String>> = OnceLock::new();
        match MADE.get_or_init(Self::make) {
            Ok(python) => Some(python),
            Err(why) => {
                skip(why);
                None
            }
        }
    }

    /// The path of the interpreter, or of another program of the environment such as `pip`.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }

    /// A command that runs a script of `tests/peers`.
    pub(crate) fn peer(&self, home: &TempHome, script: &str) -> Command {
        let mut command = home.command(self.program("python"));
        command
            .arg(
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("tests/peers")
                    .join(script),
            )
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    fn make() -> Result<Self, String> {
        let python = Self {
            directory: Path::new(env!("CARGO_TARGET_TMPDIR")).join("python"),
        };
        let requirements =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/requirements.txt");
        let required = fs::read(&requirements).map_err(|e| e.to_string())?;
        // The requirements that an earlier run installed; written only after a complete
        // installation.
        let installed = python.directory.join("installed.txt");
        if fs::read(&installed).is_ok_and(|found| found == required) {
            return Ok(python);
        }
        if !found("python3") {
            return Err("python3 is not installed".to_owned());
        }
        // pip needs the machine's environment (CA certificates and package index), so it is not
        // cleaned.
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(&python.directory);
        let mut install = Command::new(python.program("python"));
        install
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(requirements);
        for command in [&mut venv, &mut install] {
            let done = finish_within(INSTALL_TIMEOUT, command);
            if !done.status.success() {
                return Err(format!(
                    "{command:?} failed: {}{}",
                    done.text(),
                    done.stderr
                ));
            }
        }
        fs::write(installed, required).map_err(|e| e.to_string())?;
        Ok(python)
    }
}

fn found(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
}
