//! Tools that need a file beside the CA bundle: a settings file, a trust store, or the upstream's
//! CA alone.

use std::fs;
use std::path::Path;

use crate::clients::{NAME, assert_fetches_hello, through_embedded};
use crate::support::{
    HttpsOrigin, ScriptedServer, TempHome, binary, finish, need_tool, skip, temporary_directory,
    upstreamproxy,
};

/// A flat repository of apt: its index, without a signature.
const PACKAGES: &str = "Package: hello-from-the-test\nVersion: 1\nArchitecture: all\n\
    Maintainer: t <t@t.test>\nFilename: ./x.deb\nSize: 1\n\
    SHA256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n\
    Description: t\n\n";

/// The options that let apt use `sources` and directories of its own.
fn apt_update(directory: &Path, url: &str) -> Vec<String> {
    let shown = directory.display();
    for name in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    let sources = directory.join("sources.list");
    fs::write(sources, format!("deb [trusted=yes] {url} ./\n")).unwrap();
    let options = [
        format!("Dir::Etc::sourcelist={shown}/sources.list"),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::lists={shown}/lists"),
        format!("Dir::Cache={shown}/cache"),
        "Acquire::Languages=none".to_owned(),
        "Acquire::GzipIndexes=false".to_owned(),
    ];
    let options = options
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option]);
    ["apt-get", "update", "-qq"]
        .map(str::to_owned)
        .into_iter()
        .chain(options)
        .collect()
}

#[track_caller]
fn assert_apt_has_the_index(directory: &Path) {
    let lists = fs::read_dir(directory.join("lists")).unwrap();
    let mut indexes = lists.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    assert!(indexes.any(|text| text.contains("hello-from-the-test")));
}

#[test]
fn apt_updates_from_https() {
    if !need_tool("apt-get") {
        return;
    }
    let (home, origin, apt) = (
        TempHome::new(),
        HttpsOrigin::start(NAME),
        temporary_directory(),
    );
    fs::create_dir(origin.directory().join("repository")).unwrap();
    fs::write(origin.directory().join("repository/Packages"), PACKAGES).unwrap();
    let command = apt_update(apt.path(), &origin.url("/repository"));
    finish(through_embedded(&home, &origin).args(command))
        .succeeded()
        .assert_tunnelled();
    assert_apt_has_the_index(apt.path());
}

#[test]
fn apt_updates_from_plain_http() {
    use std::io::{BufRead, BufReader, Write};
    if !need_tool("apt-get") {
        return;
    }
    let (home, apt) = (TempHome::new(), temporary_directory());
    let origin = ScriptedServer::start(|stream| {
        let mut reader = BufReader::new(stream);
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head)? == 0 {
                    return Ok(());
                }
            }
            let (status, body) = if head.starts_with("GET /repository/./Packages ") {
                ("200 OK", PACKAGES)
            } else {
                ("404 Not Found", "")
            };
            let length = body.len();
            let reply = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
            reader.get_mut().write_all(reply.as_bytes())?;
        }
    });
    let authority = format!("{NAME}:{}", origin.port());
    let command = apt_update(apt.path(), &format!("http://{authority}/repository"));
    let resolve = format!("{authority}:127.0.0.1");
    let options = ["run", "--embedded", "--resolve", &resolve, "--"];
    finish(upstreamproxy(&home).args(options).args(command))
        .succeeded()
        .assert_tunnelled();
    assert_apt_has_the_index(apt.path());
}

#[test]
fn mercurial_reads_changesets_over_https_and_keeps_the_settings_of_the_user() {
    if !need_tool("hg") {
        return;
    }
    let (home, origin, work) = (
        TempHome::new(),
        HttpsOrigin::start(NAME),
        temporary_directory(),
    );
    home.write(".hgrc", "[ui]\nusername = the user\n", 0o644);
    let hg = |arguments: &[&str]| {
        let mut command = home.command("hg");
        finish(command.current_dir(work.path()).args(arguments)).succeeded();
    };
    let bundle = origin.directory().join("bundle.hg");
    hg(&["init", "source"]);
    fs::write(work.path().join("source/file"), "text\n").unwrap();
    hg(&[
        "--cwd",
        "source",
        "commit",
        "--addremove",
        "--quiet",
        "--message",
        "first",
    ]);
    hg(&[
        "--cwd",
        "source",
        "bundle",
        "--quiet",
        "--all",
        bundle.to_str().unwrap(),
    ]);
    hg(&["init", "copy"]);
    let script =
        "hg unbundle --quiet \"$1\" && hg log --template '{desc} ' && hg config ui.username";
    let read = finish(
        through_embedded(&home, &origin)
            .args(["sh", "-c", script, "sh"])
            .arg(origin.url("/bundle.hg"))
            .current_dir(work.path().join("copy")),
    );
    let read = read.succeeded().assert_tunnelled();
    assert_eq!(read.text(), "first the user\n");
}

#[test]
fn php_curl_fetches() {
    const SCRIPT: &str = "$c = curl_init($argv[1]); curl_exec($c) or exit(1);";
    if need_tool("php") {
        assert_fetches_hello("php".as_ref(), &["-r", SCRIPT, "--"]);
    }
}

#[test]
fn perl_lwp_fetches() {
    const SCRIPT: &str = "my $r = LWP::UserAgent->new->get($ARGV[0]); \
        $r->is_success or die $r->status_line; print $r->content";
    const MODULES: [&str; 2] = ["-MLWP::UserAgent", "-MLWP::Protocol::https"];
    if !need_tool("perl") {
        return;
    }
    let home = TempHome::new();
    let modules = finish(home.command("perl").args(MODULES).args(["-e", "1"]));
    if !modules.status.success() {
        return skip("LWP::Protocol::https is not installed");
    }
    assert_fetches_hello("perl".as_ref(), &[&MODULES[..], &["-e", SCRIPT]].concat());
}

#[test]
fn the_jvm_fetches_with_both_of_its_clients() {
    const PROGRAM: &str = r"
        import java.net.*;
        import java.net.http.*;
        public class Fetch {
            public static void main(String[] arguments) throws Exception {
                URI uri = URI.create(arguments[0]);
                HttpRequest request = HttpRequest.newBuilder(uri).build();
                var body = HttpResponse.BodyHandlers.ofString();
                System.out.print(HttpClient.newHttpClient().send(request, body).body());
                var stream = uri.toURL().openConnection().getInputStream();
                System.out.print(new String(stream.readAllBytes()));
            }
        }";
    if !need_tool("javac") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let program = home.write("Fetch.java", PROGRAM, 0o644);
    let fetched = finish(
        through_embedded(&home, &origin)
            .arg("java")
            .arg(program)
            .arg(origin.url("/hello")),
    );
    let fetched = fetched.succeeded().assert_tunnelled();
    assert_eq!(fetched.text(), HttpsOrigin::HELLO.repeat(2));
    assert!(
        fetched.stderr.contains(": 2 tunnels,"),
        "{}",
        fetched.stderr
    );
}

#[test]
fn keytool_reads_every_certificate_of_the_bundle() {
    const SCRIPT: &str = "grep -c 'BEGIN CERTIFICATE' $SSL_CERT_FILE; \
        keytool -list -keystore $SSL_CERT_FILE.p12 -storepass changeit | grep -c trustedCertEntry; \
        keytool -list -keystore $SSL_CERT_FILE.p12 </dev/null 2>/dev/null | grep -c trustedCertEntry";
    if !need_tool("keytool") {
        return;
    }
    let home = TempHome::new();
    let run = ["run", "--embedded", "--", "sh", "-c", SCRIPT];
    let counts = finish(upstreamproxy(&home).args(run)).succeeded().text();
    let counts: Vec<usize> = counts.lines().map(|line| line.parse().unwrap()).collect();
    let [bundle, with_password, without] = counts[..] else {
        panic!("{counts:?}");
    };
    assert!(bundle > 1, "public roots and the upstream's CA");
    assert_eq!((with_password, without), (bundle, bundle));
}

/// Runs the command of the manual.
#[test]
fn an_nss_database_takes_the_ca_of_the_upstream() {
    const MANUAL: &str = include_str!("../../src/manual/operations.md");
    if !need_tool("certutil") {
        return;
    }
    let home = TempHome::new();
    let block = MANUAL.split_once("<!-- nss -->").unwrap().1;
    let block = block.split("```sh\n").nth(1).unwrap();
    let commands = block.split("```").next().unwrap();
    let script = format!(
        "set -e\nupstreamproxy() {{ \"$0\" \"$@\"; }}\n{commands}\n\
        certutil -d sql:$HOME/.pki/nssdb -L -n upstreamproxy"
    );
    let run = ["run", "--embedded", "--", "sh", "-c", &script, binary()];
    let shown = finish(upstreamproxy(&home).args(run).current_dir(home.path()));
    let shown = shown.succeeded().text();
    assert!(
        shown.contains("CN=upstreamproxy interception CA"),
        "{shown}"
    );
}

#[test]
fn every_child_can_read_the_files_beside_the_bundle_whatever_the_umask_is() {
    let home = TempHome::new();
    let origin = HttpsOrigin::start(NAME);
    let script = "umask 0777 && exec \"$0\" \"$@\"";
    let mut command = home.command("sh");
    command.args(["-c", script]).arg(crate::support::binary());
    command
        .args(["run", "--embedded", "--upstream-ca"])
        .arg(origin.ca_file());
    let list = "find \"$SSL_CERT_FILE\"* ! -name '*.lock' -printf '%y %m %f\\n'";
    let listed = finish(command.args(["--", "sh", "-c", list]))
        .succeeded()
        .text();
    assert!(listed.lines().count() > 3, "{listed}");
    for line in listed.lines() {
        let expected = if line.starts_with('d') {
            "d 755 "
        } else {
            "f 644 "
        };
        assert!(line.starts_with(expected), "{listed}");
    }
}
