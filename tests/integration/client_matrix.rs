//! The clients that people use in sandboxes, as their users write them, through `run --embedded`
//! with the default variables, against an origin of the test. The clients are in `tests/clients`;
//! their newest versions are installed, as a sandbox would do.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::clients::{NAME, with_defaults};
use crate::support::{
    Finished, HttpsOrigin, NpmPackages, Python, Running, TempHome, TestCa, finish, finish_within,
    need_tool, node_of_the_registry, upstreamproxy,
};

/// What the origin serves at `/hello`: the same as every origin of the tests.
const HELLO: &str = HttpsOrigin::HELLO;
/// The time limit for a client that compiles, or uses its registry.
const LONG: Duration = Duration::from_secs(300);

/// An origin that speaks what the clients need, with a certificate of its own CA.
struct Origin {
    home: TempHome,
    _process: Running,
    port: u64,
    grpc_port: u64,
}

impl Origin {
    fn start(python: &Python) -> Self {
        let home = TempHome::new();
        let ca = TestCa::new("CA of the origin");
        let (certificate, key) = ca.issue(NAME);
        home.write("origin-ca.pem", &ca.pem, 0o644);
        let certificate = home.write("origin.pem", certificate, 0o644);
        let key = home.write("origin.key", key, 0o600);
        fs::create_dir(home.join("git")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/origin.py");
        let mut command = home.command(python.program("python"));
        command.arg(script).args([&certificate, &key]);
        let (process, ready) = Running::ready(command.arg(home.path()));
        Self {
            port: ready["port"].as_u64().unwrap(),
            grpc_port: ready["grpc"].as_u64().unwrap(),
            home,
            _process: process,
        }
    }

    fn base_url(&self) -> String {
        format!("https://{NAME}:{}", self.port)
    }

    fn grpc_authority(&self) -> String {
        format!("{NAME}:{}", self.grpc_port)
    }

    /// A command that runs `tool` behind the relay. The caller adds the tool's arguments.
    fn through(&self, tool: impl AsRef<OsStr>) -> Command {
        let mut command = upstreamproxy(&self.home);
        command.args(["run", "--embedded", "--intercept", NAME, "--upstream-ca"]);
        command.arg(self.home.join("origin-ca.pem"));
        for port in [self.port, self.grpc_port] {
            command.args(["--resolve", &format!("{NAME}:{port}:127.0.0.1")]);
        }
        command.arg("--").arg(tool);
        command
    }

    /// Runs every client that `script` lists.
    fn run_all(&self, interpreter: &Path, script: &Path) {
        let mut list = self.home.command(interpreter);
        let list = finish(list.arg(script).arg("list")).succeeded().text();
        assert!(list.lines().count() > 5, "{list}");
        for client in list.lines() {
            let mut command = self.through(interpreter);
            command.arg(script).arg(client);
            command.args([self.base_url(), self.grpc_authority()]);
            let finished = finish(&mut command).succeeded().assert_tunnelled();
            assert_eq!(finished.text(), format!("{client}: ok\n"));
            assert_no_loss(&finished);
        }
    }
}

/// Fails if the log reports a loss of data, although the client has all that it needs.
#[track_caller]
fn assert_no_loss(finished: &Finished) {
    let lost = finished
        .stderr
        .lines()
        .find(|line| line.contains("not delivered"));
    assert_eq!(lost, None, "{finished:#?}");
}

#[test]
fn python_clients_need_no_configuration() {
    let Some(python) = Python::with_clients() else {
        return;
    };
    let origin = Origin::start(python);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/clients.py");
    origin.run_all(&python.program("python"), &script);
    // The command line of AWS, and HTTPie.
    let object = origin.home.join("object");
    let mut aws = origin.through(python.program("aws"));
    aws.args(["s3api", "get-object", "--bucket", "bucket", "--key", "key"]);
    aws.args(["--endpoint-url", &origin.base_url()])
        .arg(&object);
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ] {
        aws.env(name, value);
    }
    finish(&mut aws).succeeded().assert_tunnelled();
    assert_eq!(fs::read_to_string(object).unwrap(), HELLO);
    let mut http = origin.through(python.program("http"));
    http.args(["--ignore-stdin", "--body"]);
    http.arg(format!("{}/hello", origin.base_url()));
    let fetched = finish(&mut http).succeeded().assert_tunnelled();
    assert_eq!(fetched.text(), HELLO);
}

#[test]
fn node_clients_need_no_configuration() {
    let (Some(python), Some(packages)) = (Python::with_clients(), NpmPackages::of_clients()) else {
        return;
    };
    let origin = Origin::start(python);
    // Those that read the proxy variables.
    for node in ["22", "24"].into_iter().filter_map(node_of_the_registry) {
        origin.run_all(&node, &packages.file("clients.mjs"));
    }
    // Other runtimes with an https client of their own.
    let url = format!("{}/hello", origin.base_url());
    let script = format!("process.stdout.write(await (await fetch('{url}')).text())");
    let bun = packages.file(&format!(
        "node_modules/@oven/bun-linux-{}/bin/bun",
        arch("x64", "aarch64")
    ));
    let deno = format!(
        "node_modules/@deno/linux-{}-glibc/deno",
        arch("x64", "arm64")
    );
    let deno_script = format!("Deno.stdout.write(await (await fetch('{url}')).bytes())");
    for (runtime, arguments) in [
        (bun, vec!["-e", &script]),
        (packages.file(&deno), vec!["eval", &deno_script]),
    ] {
        let mut command = origin.through(runtime);
        let fetched = finish(command.args(arguments))
            .succeeded()
            .assert_tunnelled();
        assert_eq!(fetched.text(), HELLO);
    }
}

fn arch<'a>(x86_64: &'a str, aarch64: &'a str) -> &'a str {
    if cfg!(target_arch = "aarch64") {
        aarch64
    } else {
        x86_64
    }
}

#[test]
fn git_clones_and_pushes_a_large_repository() {
    let Some(python) = Python::with_clients() else {
        return;
    };
    if !need_tool("git") {
        return;
    }
    let origin = Origin::start(python);
    let project = origin.home.join("project.git");
    let git = |arguments: &[&str]| {
        let mut command = origin.home.command("git");
        finish(command.args(arguments)).succeeded();
    };
    git(&["init", "--quiet", "--bare", project.to_str().unwrap()]);
    let copy = origin.home.join("copy");
    let copy = copy.to_str().unwrap();
    let url = format!("{}/git/project.git", origin.base_url());
    let remote = |arguments: &[&str]| {
        let mut command = origin.through("git");
        finish(command.args(arguments))
            .succeeded()
            .assert_tunnelled()
    };
    assert_no_loss(&remote(&["clone", "--quiet", &url, copy]));
    // It does not compress: as large as the 60 MB that a user would push.
    let noise: Vec<u8> = (0_u64..4_000_000)
        .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n << 7)).to_le_bytes())
        .collect();
    fs::write(Path::new(copy).join("noise"), noise).unwrap();
    let identity = ["-C", copy, "-c", "user.name=t", "-c", "user.email=t@t.test"];
    git(&[&identity[..], &["add", "noise"]].concat());
    git(&[&identity[..], &["commit", "--quiet", "--message=noise"]].concat());
    let pushed = remote(&["-C", copy, "push", "--quiet", "origin", "HEAD:main"]);
    assert!(pushed.tunnel_summary().1 > 10_000_000, "{pushed:#?}");
    let second = origin.home.join("second");
    let second = second.to_str().unwrap();
    remote(&["clone", "--quiet", "--branch", "main", &url, second]);
    assert_eq!(
        fs::metadata(Path::new(second).join("noise")).unwrap().len(),
        32_000_000
    );
}

#[test]
fn openssl_and_perls_http_tiny_need_no_configuration() {
    const TINY: &str = "use HTTP::Tiny; my $r = HTTP::Tiny->new(verify_SSL => 1)->get($ARGV[0]); \
        die $r->{content} unless $r->{success}; print $r->{content}";
    let Some(python) = Python::with_clients() else {
        return;
    };
    if !need_tool("openssl") || !need_tool("perl") {
        return;
    }
    let origin = Origin::start(python);
    let authority = format!("{NAME}:{}", origin.port);
    let script = format!(
        "printf 'GET /hello HTTP/1.0\\r\\nHost: {NAME}\\r\\n\\r\\n' | openssl s_client -quiet -ign_eof \
         -verify_return_error -proxy \"${{HTTPS_PROXY#http://}}\" -connect {authority} -servername {NAME}"
    );
    let fetched = finish(origin.through("sh").args(["-c", &script]));
    assert!(fetched.assert_tunnelled().text().ends_with(HELLO));
    let url = format!("{}/hello", origin.base_url());
    let fetched = finish(origin.through("perl").args(["-e", TINY, &url]));
    assert_eq!(fetched.succeeded().assert_tunnelled().text(), HELLO);
}

#[test]
fn go_needs_no_configuration() {
    const PROGRAM: &str = "package main\nimport (\"io\"; \"net/http\"; \"os\")\nfunc main() {\n\
        r, err := http.Get(os.Args[1])\nif err != nil { panic(err) }\nio.Copy(os.Stdout, r.Body)\n}\n";
    let Some(python) = Python::with_clients() else {
        return;
    };
    if !need_tool("go") {
        return;
    }
    let origin = Origin::start(python);
    let source = origin.home.write("main.go", PROGRAM, 0o644);
    let program = origin.home.join("program");
    let mut build = origin.home.command("go");
    build.args(["build", "-o"]).arg(&program).arg(source);
    finish_within(LONG, &mut build).succeeded();
    let url = format!("{}/hello", origin.base_url());
    let fetched = finish(origin.through(program).arg(url)).succeeded();
    assert_eq!(fetched.assert_tunnelled().text(), HELLO);
}

#[test]
fn package_managers_install_from_their_registries() {
    let (Some(python), Some(packages)) = (Python::with_clients(), NpmPackages::of_clients()) else {
        return;
    };
    let Some(node) = node_of_the_registry("22") else {
        return;
    };
    let script = |path: &str| packages.file(&format!("node_modules/{path}"));
    let bun = script(&format!(
        "@oven/bun-linux-{}/bin/bun",
        arch("x64", "aarch64")
    ));
    let node_tool = |path: &str, arguments: &[&str]| {
        let tool = [node.clone().into_os_string(), script(path).into_os_string()];
        (
            tool.to_vec(),
            arguments.iter().map(|&a| a.to_owned()).collect::<Vec<_>>(),
        )
    };
    let program = |path: PathBuf, arguments: &[&str]| {
        (
            vec![path.into_os_string()],
            arguments.iter().map(|&a| a.to_owned()).collect(),
        )
    };
    let uv = python.program("uv");
    for (name, (tool, arguments), installed) in [
        (
            "pnpm",
            node_tool("pnpm/bin/pnpm.cjs", &["add", "--store-dir=store", "is-odd"]),
            "node_modules/is-odd/package.json",
        ),
        (
            "yarn 1",
            node_tool("yarn/bin/yarn.js", &["add", "is-odd"]),
            "node_modules/is-odd/package.json",
        ),
        (
            "yarn 4",
            node_tool("@yarnpkg/cli-dist/bin/yarn.js", &["add", "is-odd"]),
            "node_modules/is-odd/package.json",
        ),
        (
            "bun",
            program(bun, &["add", "--no-cache", "is-odd"]),
            "node_modules/is-odd/package.json",
        ),
        (
            "uv",
            program(
                uv,
                &["pip", "install", "--no-cache", "--target=packages", "six"],
            ),
            "packages/six.py",
        ),
        (
            "pipx",
            program(
                python.program("pipx"),
                &["install", "--pip-args=--no-cache-dir", "cowsay"],
            ),
            "pipx/bin/cowsay",
        ),
    ] {
        let home = TempHome::new();
        let project = home.join("project");
        fs::create_dir(&project).unwrap();
        fs::write(
            project.join("package.json"),
            "{\"name\": \"project\", \"private\": true}",
        )
        .unwrap();
        fs::write(project.join("yarn.lock"), "").unwrap();
        let mut command = with_defaults(&home);
        command.args(tool).args(arguments).current_dir(&project);
        for (variable, value) in [
            ("YARN_ENABLE_GLOBAL_CACHE", "false"),
            ("YARN_NODE_LINKER", "node-modules"),
            ("YARN_ENABLE_IMMUTABLE_INSTALLS", "false"),
            ("YARN_ENABLE_TELEMETRY", "false"),
            ("VIRTUAL_ENV", ""),
        ] {
            command.env(variable, value);
        }
        // An empty cache.
        command.env("XDG_CACHE_HOME", project.join("cache"));
        command.env("PIPX_HOME", project.join("pipx"));
        command.env("PIPX_BIN_DIR", project.join("pipx/bin"));
        finish_within(LONG, &mut command)
            .succeeded()
            .assert_tunnelled();
        assert!(project.join(installed).exists(), "{name}");
    }
}
