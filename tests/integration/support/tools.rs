//! The tools of the outside world that tests drive: found, or skipped with a line that says so; in CI never skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::{TempHome, finish_within};

/// How long two libraries may take to come from the index.
const INSTALL_PATIENCE: Duration = Duration::from_secs(300);

/// Whether `tool` is in the `PATH`. Says that the test is skipped if not; in CI that is a failure.
#[track_caller]
pub(crate) fn need_tool(tool: &str) -> bool {
    let found = found(tool);
    if !found {
        skip(&format!("{tool} is not installed"));
    }
    found
}

/// Says why a test is skipped; fails it in CI, where nothing is.
#[track_caller]
pub(crate) fn skip(why: &str) {
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!in_ci, "{why}, and nothing is skipped in CI");
    println!("skipped: {why}");
}

/// Says why a test is skipped where no package can mend it: a container that allows no namespaces, in CI too.
pub(crate) fn not_here(why: &str) {
    println!("skipped: {why}");
}

/// A Python of the tests' own (a virtual environment) with the libraries that peers and clients need.
pub(crate) struct Python {
    folder: PathBuf,
}

impl Python {
    /// The one environment of this test run, made by whichever test needs it first; `None`: skipped.
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

    /// The interpreter, or another program of the environment such as `pip`.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// One of the peers under `tests/peers`.
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
            folder: Path::new(env!("CARGO_TARGET_TMPDIR")).join("python"),
        };
        let requirements =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/requirements.txt");
        let wanted = fs::read(&requirements).map_err(|e| e.to_string())?;
        // What an earlier run installed, said there only once it was whole.
        let installed = python.folder.join("installed.txt");
        if fs::read(&installed).is_ok_and(|there| there == wanted) {
            return Ok(python);
        }
        if !found("python3") {
            return Err("python3 is not installed".to_owned());
        }
        // The machine's own environment on purpose: its roots and its index are what pip needs here.
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(&python.folder);
        let mut install = Command::new(python.program("python"));
        install
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(requirements);
        for command in [&mut venv, &mut install] {
            let done = finish_within(INSTALL_PATIENCE, command);
            if !done.status.success() {
                return Err(format!(
                    "{command:?} failed: {}{}",
                    done.text(),
                    done.stderr
                ));
            }
        }
        fs::write(installed, wanted).map_err(|e| e.to_string())?;
        Ok(python)
    }
}

fn found(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
}
