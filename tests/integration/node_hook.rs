//! `--node-hook`: Node programs whose HTTP client reads no proxy variable.
//!
//! The matrix runs with the installed Node and with four from the registry; those that cannot be
//! installed are named and skipped. The origin's certificate is valid only for the gateway: the
//! clients see one of the interception CA.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    CannedServer, Finished, NpmPackages, Running, TempHome, TestCa, finish, need_tool,
    node_of_the_registry, temporary_directory, upstreamproxy,
};

/// The versions from the registry. Node 18 has no happy eyeballs, whose code later versions share
/// with the hook.
const VERSIONS: [&str; 4] = ["18", "20", "22", "24"];

/// Clients of Node itself.
const BUILT_IN: [&str; 9] = [
    "http-get",
    "https-get",
    "https-post",
    "https-agent",
    "fetch",
    "fetch-http",
    "http2",
    "worker",
    "module",
];
/// Clients of `tests/peers/package.json`.
const PACKAGES: [&str; 7] = [
    "undici",
    "got",
    "ws",
    "ws-http",
    "superagent",
    "aws",
    "axios",
];

fn peer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/peers")
        .join(name)
}

/// An origin in Node, over http and https.
struct Origin {
    home: TempHome,
    plain: u64,
    secure: u64,
    _process: Running,
}

impl Origin {
    fn start() -> Self {
        let (home, ca) = (TempHome::new(), TestCa::new("upstreamproxy test root"));
        let (certificate, key) = ca.issue("*.origin.test");
        let certificate = home.write("origin.pem", certificate, 0o644);
        let key = home.write("origin.key", key, 0o600);
        home.write("ca.pem", &ca.pem, 0o644);
        let mut node = home.command("node");
        node.arg(peer("node_origin.js")).arg(certificate).arg(key);
        let (process, ready) = Running::ready(&mut node);
        Self {
            home,
            plain: ready["plain"].as_u64().unwrap(),
            secure: ready["secure"].as_u64().unwrap(),
            _process: process,
        }
    }

    /// A `run --embedded` command that resolves `NAME.origin.test` for these names.
    fn embedded(&self, names: &[&str]) -> Command {
        let mut command = upstreamproxy(&self.home);
        command.args(["run", "--embedded", "--intercept", "*.origin.test"]);
        command.arg("--upstream-ca").arg(self.home.join("ca.pem"));
        for name in names {
            for port in [self.plain, self.secure] {
                let address = format!("{name}.origin.test:{port}:127.0.0.1");
                command.args(["--resolve", &address]);
            }
        }
        command
    }

    /// Runs the clients in `node`.
    fn run(&self, mut command: Command, node: &Path, packages: &Path, names: &[&str]) -> Finished {
        command.arg("--").arg(node).arg(peer("node_clients.js"));
        command.arg(packages);
        command.args([self.plain, self.secure].map(|port| port.to_string()));
        finish(command.args(names))
    }
}

/// Fails unless each client succeeded and the relay logged a tunnel to its own host.
#[track_caller]
fn assert_all_tunnelled(finished: &Finished, names: &[&str]) {
    let text = finished.text();
    for name in names {
        let line = format!("{name}: ok");
        assert!(text.lines().any(|found| found == line), "{finished:#?}");
        let tunnel = format!("relay: {name}.origin.test:");
        assert!(finished.stderr.contains(&tunnel), "{finished:#?}");
    }
}

#[test]
fn every_client_of_every_node_uses_the_tunnel() {
    if !need_tool("npm") || !need_tool("node") {
        return;
    }
    let Some(packages) = NpmPackages::of_peers() else {
        return;
    };
    let names = [&BUILT_IN[..], &PACKAGES[..]].concat();
    let origin = Origin::start();
    let mut nodes = vec![PathBuf::from("node")];
    nodes.extend(VERSIONS.into_iter().filter_map(node_of_the_registry));
    for node in nodes {
        let mut command = origin.embedded(&names);
        // Without Node's own support, which 22 and 24 have for http, https and fetch.
        command.args(["--node-hook", "--omit-variable", "NODE_USE_ENV_PROXY"]);
        let finished = origin
            .run(command, &node, packages.directory(), &names)
            .succeeded();
        assert_all_tunnelled(&finished, &names);
    }
}

#[test]
fn the_hook_works_beside_node_s_own_support_with_a_credential_and_in_a_nested_run() {
    if !need_tool("node") {
        return;
    }
    let origin = Origin::start();
    let nowhere = origin.home.path();
    let mut command = origin.embedded(&BUILT_IN);
    command.args(["--node-hook", "--listen-credential"]);
    let finished = origin.run(command, "node".as_ref(), nowhere, &BUILT_IN);
    assert_all_tunnelled(&finished.succeeded(), &BUILT_IN);

    let name = &["https-get"];
    let mut outer = origin.embedded(name);
    outer
        .args(["--node-hook", "--", "sh", "-c"])
        .arg("\"$0\" \"$@\" && printf %s \"$NODE_OPTIONS\" | grep -c -- --require")
        .arg(crate::support::binary())
        .args(["run", "--when", "never"])
        .env("NODE_OPTIONS", "--no-warnings");
    let finished = origin.run(outer, "node".as_ref(), nowhere, name);
    assert_all_tunnelled(&finished, name);
    assert!(finished.text().ends_with("\n1\n"), "{finished:#?}");
}

#[test]
fn a_path_with_spaces_and_inherited_options_reach_node() {
    if !need_tool("node") {
        return;
    }
    let origin = Origin::start();
    let name = &["https-get"];
    let mut command = origin.embedded(name);
    command
        .arg("--ca-bundle")
        .arg(origin.home.join("a \"b\" \\c/bundle.crt"))
        .arg("--node-hook")
        .env("NODE_OPTIONS", "--title=\"the title\"");
    fs::create_dir(origin.home.join("a \"b\" \\c")).unwrap();
    let finished = origin.run(command, "node".as_ref(), origin.home.path(), name);
    assert_all_tunnelled(&finished.succeeded(), name);
}

#[test]
fn other_connections_stay_direct() {
    // A custom lookup leads every name to this machine: a connection through the tunnel would fail.
    const SCRIPT: &str = r"
        const http = require('http'), net = require('net');
        const [port, socketPath] = process.argv.slice(1);
        const lookup = (host, options, done) =>
          options.all ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4);
        const body = (options) => new Promise((resolve, reject) => {
          http.get(options, (response) => {
            response.setEncoding('utf8').on('data', resolve);
          }).on('error', reject);
        });
        (async () => {
          const found = [];
          // This machine, an exception of NO_PROXY, a socket of the file system.
          found.push(await body({ host: '127.0.0.1', port }));
          found.push(await body({ host: 'a.direct.test', port, lookup }));
          found.push(await body({ socketPath, host: 'proxied.test' }));
          // A proxy of the program: the whole URL, and CONNECT.
          found.push(await body({ host: 'proxy.test', port, path: 'http://a.test/', lookup }));
          found.push(await new Promise((resolve, reject) => {
            const request = http.request({ method: 'CONNECT', host: 'proxy.test', port, path: 'a.test:1', agent: false, lookup });
            request.on('connect', (response) => resolve(`${response.statusCode}`)).on('error', reject).end();
          }));
          // Another protocol than HTTP.
          found.push(await new Promise((resolve, reject) => {
            const socket = net.connect({ host: 'database.test', port, lookup });
            socket.on('error', reject).on('connect', () => { resolve('connected'); socket.destroy(); });
          }));
          console.log(found.join(' '));
        })();";
    if !need_tool("node") {
        return;
    }
    let (home, directory) = (TempHome::new(), temporary_directory());
    let server = CannedServer::answering("200 OK", b"direct");
    let socket = directory.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ndirect")
            .unwrap();
    });
    let port = server.port().to_string();
    let mut command = upstreamproxy(&home);
    command
        .args(["run", "--embedded", "--node-hook", "--omit-variable"])
        .args(["NODE_USE_ENV_PROXY", "--", "node", "-e", SCRIPT, &port])
        .arg(&socket)
        .env("NO_PROXY", ".direct.test");
    let finished = finish(&mut command).succeeded();
    let expected = "direct direct direct direct 200 connected\n";
    assert_eq!(finished.text(), expected, "{finished:#?}");
    assert!(finished.stderr.contains(": 0 tunnels,"), "{finished:#?}");
}

#[test]
fn a_refused_tunnel_gives_an_error_with_status_and_reason() {
    const SCRIPT: &str = "require('https').get('https://absent.invalid/')\
        .on('error', (e) => console.log(e.code, e.statusCode, e.message))";
    if !need_tool("node") {
        return;
    }
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    command.args(["run", "--embedded", "--node-hook"]);
    command.args(["--omit-variable", "NODE_USE_ENV_PROXY"]);
    let shown = finish(command.args(["--", "node", "-e", SCRIPT]));
    let shown = shown.succeeded().text();
    assert!(
        shown.starts_with("ERR_PROXY_TUNNEL 502 upstreamproxy: the proxy 127.0.0.1:"),
        "{shown}"
    );
    let reason = " opened no tunnel to absent.invalid:443: 502: absent.invalid: the target's name was not found; ";
    assert!(shown.contains(reason), "{shown}");
}

#[test]
fn a_failure_inside_the_hook_leaves_the_connection_direct() {
    const SCRIPT: &str = r"
        const lookup = (host, options, done) =>
          options.all ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4);
        require('http').get({ host: 'plain.test', port: process.argv[1], lookup },
          (response) => response.pipe(process.stdout));";
    // They run before the hook: no variable, no loading, no change of the socket in use.
    const BREAKERS: [&str; 3] = [
        "for (const name of Object.keys(process.env)) if (/proxy$/i.test(name)) delete process.env[name]",
        "Object.getOwnPropertySymbols = () => { throw new Error('broken'); }",
        "const define = Object.defineProperty; Object.defineProperty = (object, name, what) => { \
         if (name === 'remotePort') throw new Error('broken'); return define(object, name, what); }",
    ];
    if !need_tool("node") {
        return;
    }
    let (home, server) = (
        TempHome::new(),
        CannedServer::answering("200 OK", b"direct"),
    );
    let port = server.port().to_string();
    for breaker in BREAKERS {
        let file = home.write("breaker.cjs", breaker, 0o644);
        let mut command = upstreamproxy(&home);
        command
            .args(["run", "--embedded", "--node-hook", "--resolve"])
            .arg(format!("plain.test:{port}:127.0.0.1"))
            .args(["--omit-variable", "NODE_USE_ENV_PROXY"])
            .args(["--", "node", "-e", SCRIPT, &port])
            .env("NODE_OPTIONS", format!("--require={}", file.display()));
        let finished = finish(&mut command).succeeded();
        assert_eq!(finished.text(), "direct", "{breaker}: {finished:#?}");
    }
}
