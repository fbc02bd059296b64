//! What the program says and returns before it serves: everything that is wrong at once, one line each,
//! with the documented exit codes.

mod support;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use concilium_rpc::certificates::Authority;
use concilium_rpc::identity::{Identity, Role};
use concilium_server::ServerConfig;
use concilium_server::config::keys::{SERVER_KEYS, TASK_FILE_KEYS, TASK_KEYS};
use support::{World, task_file};

/// How long the program may take to refuse. It takes a fraction of it on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the program wrote and returned.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// The lines about errors, which must be all that standard error holds.
    #[track_caller]
    fn errors(&self) -> Vec<&str> {
        let lines = self.stderr.lines();
        lines.map(|line| line.strip_prefix("error: ").unwrap_or_else(|| panic!("{}", self.stderr))).collect()
    }
}

/// A folder with the configuration of a server that could start.
struct Home {
    folder: tempfile::TempDir,
    authority: Authority,
    text: String,
}

impl Home {
    fn new() -> Home {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::create().expect("an authority");
        // Below the ports that systems give to outgoing connections, which could take one meanwhile. All
        // are held until all are known.
        let free = |_| loop {
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", rand::random_range(10_000..32_000))) {
                return listener;
            }
        };
        let listeners = [0; 3].map(free);
        let [listen, peer, web] = listeners.map(|listener| listener.local_addr().expect("an address"));
        let text = format!(
            "listen = \"{listen}\"\npeer_listen = \"{peer}\"\n\
             peers = [\"{peer}\", \"127.0.0.1:2\", \"127.0.0.1:3\"]\n\
             data_directory = \"data\"\ntasks_file = \"tasks.toml\"\n\n\
             [tls]\nca = \"ca.pem\"\ncertificate = \"server-0.pem\"\nkey = \"server-0.key\"\n\n\
             [identities]\nowners = [\"*\"]\nclients = [\"*\"]\noperators = [\"olga\"]\n\n\
             [web]\nlisten = \"{web}\"\n"
        );
        let home = Home { folder, authority, text };
        home.issue(Role::Server, "server-0", 90);
        home.issue(Role::Client, "alice", 90);
        fs::write(home.path("tasks.toml"), task_file("votes", "10")).expect("the folder is writable");
        home.write(&home.text);
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self, role: Role, name: &str, days: u32) {
        let identity = Identity::new(role, name).expect("a name");
        let issued = self.authority.issue(&identity, &[], days).expect("issued");
        issued.save(self.folder.path()).expect("saved");
    }

    fn write(&self, text: &str) {
        fs::write(self.path("server.toml"), text).expect("the folder is writable");
    }

    /// The value of an address key.
    fn address(&self, key: &str) -> String {
        let line = self.text.lines().find(|line| line.starts_with(&format!("{key} = ")));
        line.expect("the key is there").split('"').nth(1).expect("a text").to_owned()
    }

    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
        run(&self.path("server.toml"), arguments, variables)
    }
}

/// Runs the program to its end. One that starts to serve instead of ending is a failure.
fn run(config: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_concilium-server"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONCILIUM_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(arguments).arg("--config").arg(config).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let output = [Box::new(child.stdout.take().expect("a pipe")) as Box<dyn Read + Send>]
        .into_iter()
        .chain([Box::new(child.stderr.take().expect("a pipe")) as Box<dyn Read + Send>]);
    // Read on threads, so that a program that says much does not wait for this one.
    let mut readers = output
        .map(|mut pipe| {
            std::thread::spawn(move || {
                let mut text = String::new();
                pipe.read_to_string(&mut text).expect("the program writes text");
                text
            })
        })
        .collect::<Vec<_>>()
        .into_iter();
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a process can be waited for") {
            break Some(status);
        }
        if begin.elapsed() > PATIENCE {
            child.kill().expect("a process can be ended");
            child.wait().expect("a process can be waited for");
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = || readers.next().expect("two pipes").join().expect("the reader ends");
    let (stdout, stderr) = (text(), text());
    let Some(status) = status else { panic!("the program does not end\n{stdout}\n{stderr}") };
    Outcome { code: status.code(), stdout, stderr }
}

#[test]
fn each_fault_is_one_line_with_the_documented_exit_code() {
    let home = Home::new();
    let taken = TcpListener::bind(home.address("listen")).expect("the port is free");
    let outcome = home.run(&[], &[]);
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    let [line] = outcome.errors()[..] else { panic!("{}", outcome.stderr) };
    assert!(line.contains("`listen`") && line.contains("another program listens"), "{line}");
    assert!(line.contains("server.toml:1:") && line.contains(&home.address("listen")), "{line}");
    drop(taken);

    // Permissions do not bind root, but nobody can make a folder below a file.
    fs::write(home.path("file"), "").expect("the folder is writable");
    home.write(&home.text.replace("\"data\"", "\"file/data\""));
    let outcome = home.run(&[], &[]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let [line] = outcome.errors()[..] else { panic!("{}", outcome.stderr) };
    assert!(line.contains("`data_directory`") && line.contains("can't be written to"), "{line}");

    for (from, to, parts) in [
        ("server-0.pem", "client-alice.pem", &["`tls.key`", "does not belong", "client-alice.pem"][..]),
        (
            "certificate = \"server-0.pem\"\nkey = \"server-0.key\"",
            "certificate = \"client-alice.pem\"\nkey = \"client-alice.key\"",
            &["`tls.certificate`", "client `alice`", "role server"],
        ),
        ("server-0.pem", "missing.pem", &["`tls.certificate`", "missing.pem", "can't be read"]),
        ("ca.pem", "server-0.pem", &["`tls.certificate`", "not among the authorities"]),
        ("server-0.key", "ca.pem", &["`tls.key`", "no readable private key"]),
        ("tasks.toml", "none.toml", &["`tasks_file`", "none.toml", "no file"]),
        ("\"127.0.0.1:2\"", "\"127.0.0.1\"", &["`peers`", "`127.0.0.1`", "host:port"]),
        ("[tls]", "[limits]\nbatch_row = 3\n[tls]", &["`limits.batch_row`", "`limits.batch_rows`?"]),
    ] {
        home.write(&home.text.replacen(from, to, 1));
        let outcome = home.run(&[], &[]);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        let [line] = outcome.errors()[..] else { panic!("{}", outcome.stderr) };
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?}: {line}");
        assert!(line.contains("server.toml"), "{line}");
    }
    let outcome = home.run(&["--no-such-option"], &[]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    home.write(&home.text);
    let outcome = home.run(&[], &[("RUST_LOG", "concilium_server=loud")]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    let [line] = outcome.errors()[..] else { panic!("{}", outcome.stderr) };
    assert!(line.contains("RUST_LOG") && line.contains("loud"), "{line}");
    assert!(!home.path("data").exists(), "something was started");
}

#[test]
fn faults_of_all_kinds_are_told_at_once() {
    let home = Home::new();
    let taken = TcpListener::bind(home.address("peer_listen")).expect("the port is free");
    let tasks = task_file("votes", "10").replace("classes = 3", "classes = 1") + "sigmoid = 1\n";
    fs::write(home.path("tasks.toml"), tasks).expect("the folder is writable");
    fs::write(home.path("file"), "").expect("the folder is writable");
    let text = home.text.replace("ca.pem", "nowhere.pem").replace("\"data\"", "\"file/data\"");
    home.write(&format!("surprise = 1\n{text}\n[limits]\npeer_timeout_ms = 1\n"));
    let outcome = home.run(&[], &[("CONCILIUM_LIMITS__BATCH_ROWS", "0"), ("CONCILIUM_LISTN", "x")]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    let lines = outcome.errors();
    for part in [
        "server.toml:1: `surprise` is unknown",
        "overridden by CONCILIUM_LIMITS__BATCH_ROWS: `limits.batch_rows` = 0",
        "CONCILIUM_LISTN: `listn` is unknown; did you mean `listen`?",
        "`limits.peer_timeout_ms` = 1",
        "`tls.ca` = \"nowhere.pem\"",
        "`data_directory` = \"file/data\"",
        "`peer_listen` =",
        "tasks.toml:7: `tasks.votes.classes` = 1",
        "`tasks.votes.sigmoid` is unknown",
    ] {
        assert!(lines.iter().any(|line| line.contains(part)), "{part}: {lines:#?}");
    }
    assert_eq!(lines.len(), 9, "{lines:#?}");
    // The same by `config check`, for people and for machines.
    let variables = [("CONCILIUM_LIMITS__BATCH_ROWS", "0"), ("CONCILIUM_LISTN", "x")];
    let check = home.run(&["config", "check"], &variables);
    assert_eq!(check.code, Some(2));
    assert_eq!(
        check.stdout.lines().filter(|line| line.starts_with("error: ")).count(),
        9,
        "{}",
        check.stdout
    );
    assert!(check.stdout.contains("9 errors") && check.stdout.contains("does not start"), "{}", check.stdout);
    let check = home.run(&["config", "check", "--json"], &variables);
    assert_eq!(check.code, Some(2));
    let report: serde_json::Value = serde_json::from_str(&check.stdout).expect("JSON");
    assert_eq!((&report["can_start"], &report["exit_code"]), (&false.into(), &2.into()));
    let problems = report["problems"].as_array().expect("problems");
    let rows = problems.iter().find(|problem| problem["key"] == "limits.batch_rows").expect("named");
    assert_eq!(rows["origin"]["variable"], "CONCILIUM_LIMITS__BATCH_ROWS");
    assert_eq!((&rows["value"], &rows["severity"]), (&"0".into(), &"error".into()));
    assert!(rows["remedy"].as_str().is_some_and(|remedy| remedy.contains("4096")), "{rows}");
    drop(taken);
}

#[test]
fn a_check_warns_and_starts_nothing() {
    let home = Home::new();
    let check = home.run(&["config", "check"], &[]);
    assert_eq!((check.code, check.stderr.as_str()), (Some(0), ""), "{}", check.stdout);
    assert!(check.stdout.ends_with("0 errors, 0 warnings; the server can start\n"), "{}", check.stdout);

    home.issue(Role::Server, "server-0", 20);
    let text =
        home.text.replace("clients = [\"*\"]", "clients = []").replace("[\"127", "[\"127.0.0.1:9\", \"127");
    let text = text.replace(", \"127.0.0.1:3\"", "");
    home.write(&format!(
        "{text}\n[limits]\nnoise_rows_ready = 5\n[observability]\nstall_warning_ms = 20000\n"
    ));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let readable = fs::Permissions::from_mode(0o644);
        fs::set_permissions(home.path("server-0.key"), readable).expect("permissions can be set");
    }
    let check = home.run(&["config", "check"], &[]);
    assert_eq!(check.code, Some(0), "{}", check.stdout);
    for part in [
        "`tls.certificate` = \"server-0.pem\" expires in 19 days",
        "`identities.clients` = [] is empty: no client can ask",
        "`limits.noise_rows_ready` = 5 is less than `limits.batch_rows` = 256",
        "`observability.stall_warning_ms` = 20000 is not below `limits.peer_timeout_ms` = 15000",
        "`peer_listen` has another port",
        #[cfg(unix)]
        "`tls.key` = \"server-0.key\" can be read by other users (mode 644); chmod 600",
    ] {
        let found = check.stdout.lines().any(|line| line.starts_with("warning: ") && line.contains(part));
        assert!(found, "{part}: {}", check.stdout);
    }
    assert!(!home.path("data").exists(), "a check leaves nothing behind");

    // A server that runs holds its ports; its operator can check a change all the same.
    let _taken = TcpListener::bind(home.address("listen")).expect("the port is free");
    assert_eq!(home.run(&["config", "check"], &[]).code, Some(4));
    assert_eq!(home.run(&["config", "check", "--running"], &[]).code, Some(0));
}

#[test]
fn the_printed_configuration_is_what_is_in_effect() {
    let home = Home::new();
    let variables = [("CONCILIUM_LIMITS__BATCH_ROWS", "64"), ("CONCILIUM_IDENTITIES__OWNERS", "a,b")];
    let printed = home.run(&["config", "print"], &variables);
    assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""));
    for line in [
        format!("listen = \"{}\"  # server.toml:1", home.address("listen")),
        "batch_rows = 64  # CONCILIUM_LIMITS__BATCH_ROWS".to_owned(),
        "batch_wait_ms = 1  # default".to_owned(),
        "owners = [\"a\", \"b\"]  # CONCILIUM_IDENTITIES__OWNERS".to_owned(),
    ] {
        assert!(printed.stdout.lines().any(|found| found == line), "{line}: {}", printed.stdout);
    }
    // Saved elsewhere it means the same.
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let path = elsewhere.path().join("printed.toml");
    fs::write(&path, &printed.stdout).expect("the folder is writable");
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let original = ServerConfig::load_with(&home.path("server.toml"), variables).expect("it is good");
    let saved = ServerConfig::load_with(&path, []).expect("what was printed is good");
    let json = |config: &ServerConfig| serde_json::to_value(config).expect("JSON");
    assert_eq!(json(&saved), json(&original));

    let tasks = home.run(&["config", "print", "--tasks"], &[]);
    assert!(tasks.stdout.contains("[tasks.votes]\nepoch = 1  # tasks.toml:2"), "{}", tasks.stdout);
    assert!(
        tasks.stdout.contains("# budget_per_client_rho is left out: no further bound"),
        "{}",
        tasks.stdout
    );
    home.write("listen = 3");
    let refused = home.run(&["config", "print"], &[]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""));
    assert!(refused.errors().len() > 5, "{}", refused.stderr);
}

#[test]
fn the_schema_lists_every_key() {
    let nowhere = Path::new("/nowhere/server.toml");
    let text = run(nowhere, &["config", "schema"], &[]);
    assert_eq!(text.code, Some(0));
    let json = run(nowhere, &["config", "schema", "--json"], &[]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    for (file, keys) in [("server", SERVER_KEYS), ("task_file", TASK_FILE_KEYS), ("tasks", TASK_KEYS)] {
        let described = json[file].as_array().expect("keys");
        assert_eq!(described.len(), keys.len());
        for (key, described) in keys.iter().zip(described) {
            assert_eq!((&described["key"], &described["meaning"]), (&key.name.into(), &key.meaning.into()));
            let line = format!("  {}  ({}", key.name, key.kind.describe());
            assert!(text.stdout.contains(&line), "{line}");
        }
    }
    let help = run(nowhere, &["--help"], &[]);
    for part in ["Exit codes:", "config check", "health", "CONCILIUM_LIMITS__BATCH_ROWS"] {
        assert!(help.stdout.contains(part), "{part}: {}", help.stdout);
    }
}

/// Asks for a server's health until the exit code is the expected one: it follows what happens to the
/// servers after a moment. Gives the last outcome in any case.
async fn health(world: &World, server: usize, expected: i32) -> Outcome {
    let config = world.cluster.home(server).join("server.toml");
    let begin = Instant::now();
    loop {
        let outcome = run(&config, &["health"], &[]);
        if outcome.code == Some(expected) || begin.elapsed() > PATIENCE {
            return outcome;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_whether_a_server_is_connected_to_both_others() {
    let mut world = World::start("10").await;
    for server in 0..3 {
        let outcome = health(&world, server, 0).await;
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "server {server}");
    }
    world.cluster.kill_server(2);
    let outcome = health(&world, 2, 1).await;
    assert_eq!(outcome.code, Some(1));
    let [line] = outcome.errors()[..] else { panic!("{}", outcome.stderr) };
    assert!(line.contains("does not answer"), "{line}");
    let outcome = health(&world, 0, 1).await;
    assert_eq!(outcome.code, Some(1));
    let [line] = outcome.errors()[..] else { panic!("{}", outcome.stderr) };
    assert!(line.contains("not connected to both other servers"), "{line}");
    world.cluster.start_server(2).expect("it starts again");
    world.cluster.wait_until_ready(PATIENCE).await.expect("it joins again");
}
