//! A PostgreSQL server of the tests' own, in a folder that goes with it.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    reason = "every test program compiles its own copy and uses a part, and a panic is how a test fails"
)]

mod wire;

use std::{
    env, fs,
    io::{self, Write as _},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use concilium_postgres::{PostgresOptions, PostgresStore};
use concilium_privacy::LedgerError;
use tempfile::TempDir;

pub use wire::Wire;

/// Where all tests are required.
const REQUIRE_ALL: &str = "CONCILIUM_REQUIRE_ALL_TESTS";

/// Where Debian has the programs, one folder for each version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The user that no files belong to; the database refuses to run as root.
const NOBODY: u32 = 65534;

/// A bound on waiting: nothing is said about speed.
const PATIENCE: Duration = Duration::from_secs(120);

/// The server that tests share while at least one of them runs.
static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

/// A database server.
pub struct Postgres {
    folder: TempDir,
    programs: PathBuf,
    server: Option<Child>,
    port: u16,
}

impl Postgres {
    /// Starts a new server; `None`, with a visible line, where PostgreSQL is not installed.
    pub fn start(test: &str) -> Option<Self> {
        let Some(programs) = programs() else {
            let required = env::var_os(REQUIRE_ALL).is_some_and(|value| value == "1");
            assert!(!required, "{test}: PostgreSQL is not installed, and {REQUIRE_ALL}=1 allows no skips");
            let _ = writeln!(io::stderr(), "SKIPPED {test}: PostgreSQL is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut postgres = Self { folder, programs, server: None, port: 5432 };
        let mut initialise = postgres.command("initdb");
        initialise.arg("-D").arg(postgres.data()).args(["-U", "ledger", "-A", "trust", "-E", "UTF8"]);
        let output = initialise.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        postgres.run(&[]);
        Some(postgres)
    }

    /// A server that other tests use too: only for tests that leave it and its settings alone.
    pub fn shared(test: &str) -> Option<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return Some(running);
        }
        let started = Arc::new(Self::start(test)?);
        *shared = Arc::downgrade(&started);
        Some(started)
    }

    /// Listens on a port of 127.0.0.1 that the system chooses, with these settings.
    pub fn listen(&mut self, settings: &[&str]) {
        self.kill();
        self.port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        self.run(&[&["listen_addresses=127.0.0.1"], settings].concat());
    }

    /// The port, on which it listens only if it was told to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Gives a file to the user that the server runs as.
    pub fn give(&self, file: &Path) {
        if is_root() {
            chown(file, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.folder.path()).env_remove("PGHOST").env("LC_ALL", "C");
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Starts the server with these settings, and waits until it answers.
    pub fn run(&mut self, settings: &[&str]) {
        let begin = Instant::now();
        loop {
            let log = fs::File::create(self.folder.path().join("log")).unwrap();
            let mut command = self.command("postgres");
            command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
            command.args(["-p", &self.port.to_string()]);
            command.args(["-c", "listen_addresses=", "-c", "max_connections=50"]);
            for setting in settings {
                command.args(["-c", setting]);
            }
            // A group of its own, so that all of its processes can be killed at once.
            command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let mut server = command.spawn().unwrap();
            loop {
                let ready = self.query("SELECT 1").is_some();
                if ready {
                    self.server = Some(server);
                    return;
                }
                assert!(begin.elapsed() < PATIENCE, "{}", self.log());
                // After a crash the old processes may take a moment to go.
                if server.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Ends all processes of the server at once, as a loss of power would.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let group = format!("-{}", server.id());
            assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
            server.wait().unwrap();
        }
    }

    /// Runs a query with the program `psql`; `None` if it fails.
    pub fn query(&self, query: &str) -> Option<String> {
        self.query_in("postgres", query)
    }

    /// The same in another database.
    pub fn query_in(&self, database: &str, query: &str) -> Option<String> {
        let output = self.psql(database).args(["-c", query]).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn psql(&self, database: &str) -> Command {
        let mut command = self.command("psql");
        command.arg("-h").arg(self.folder.path()).args(["-p", &self.port.to_string()]);
        command.args(["-U", "ledger", "-d", database, "-Atq"]);
        command
    }

    /// Waits until a query answers `expected`.
    pub fn wait_for(&self, query: &str, expected: &str) {
        let begin = Instant::now();
        loop {
            let found = self.query(query);
            if found.as_deref() == Some(expected) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{query} answers {found:?}, not {expected}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Keeps everybody from writing rows of the ledger until the result is dropped.
    pub fn hold_writes(&self) -> HeldWrites {
        let mut psql = self.psql("postgres").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut input = psql.stdin.take().unwrap();
        input.write_all(b"BEGIN; LOCK TABLE concilium_ledger.ledger_rows IN SHARE MODE;\n").unwrap();
        input.flush().unwrap();
        let held = "SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND granted \
                    AND relation = 'concilium_ledger.ledger_rows'::regclass";
        let writes = HeldWrites { psql, input: Some(input) };
        self.wait_for(held, "1");
        writes
    }

    /// The URL of a database here, over the Unix socket.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://ledger@/{database}?host={}&port={}", self.folder.path().display(), self.port)
    }

    /// Its folder, which goes with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(format!(".s.PGSQL.{}", self.port))
    }

    pub fn options(&self) -> PostgresOptions {
        PostgresOptions::new(&self.url("postgres"), None, None).unwrap()
    }

    pub fn open(&self) -> Result<PostgresStore, LedgerError> {
        PostgresStore::open(self.options())
    }

    /// Opens the store as soon as the lock of one that was just dropped is free.
    pub fn open_again(&self) -> PostgresStore {
        open_again(&self.options())
    }
}

/// Opens a store as soon as the lock of one that was just dropped is free.
pub fn open_again(options: &PostgresOptions) -> PostgresStore {
    let begin = Instant::now();
    loop {
        match PostgresStore::open(options.clone()) {
            Err(LedgerError::InUse { .. }) if begin.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// A session that keeps everybody from writing.
pub struct HeldWrites {
    psql: Child,
    input: Option<ChildStdin>,
}

impl Drop for HeldWrites {
    fn drop(&mut self) {
        // The end of its input ends the session, and its transaction with it.
        drop(self.input.take());
        let _ = self.psql.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the database\n{}", self.log());
        }
        self.kill();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The folder of the programs: that of the path, or Debian's newest.
fn programs() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut versions: Vec<_> = fs::read_dir(DEBIAN).into_iter().flatten().flatten().collect();
    versions.sort_by_key(|entry| entry.file_name().to_string_lossy().parse::<u32>().unwrap_or_default());
    let debian = versions.iter().rev().map(|entry| entry.path().join("bin"));
    let has = |folder: &Path| ["initdb", "postgres", "psql"].iter().all(|name| folder.join(name).exists());
    env::split_paths(&path).chain(debian).find(|folder| has(folder))
}
