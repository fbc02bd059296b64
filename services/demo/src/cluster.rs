//! Three server processes on this machine, with certificates and configuration of their own.
//!
//! The servers are real processes that talk mutual TLS over loopback; nothing differs from three
//! hosts but the addresses.

use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use concilium_client_library::operations::{Servers, statuses};
use concilium_client_library::{Connection, ConnectionConfig};
use concilium_rpc::certificates::{Authority, AuthorityError};
use concilium_rpc::identity::{Identity, IdentityError, Role};
use concilium_rpc::tls::TlsFiles;
use thiserror::Error;

/// Days for which the certificates of a local cluster are valid.
const CERTIFICATE_DAYS: u32 = 90;
/// How long a server may take to end by itself before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(15);
/// Ports that servers may get.
const PORTS: Range<u16> = 10_000..32_000;
/// Ports that may turn out to be in use before the search is given up.
const PORT_ATTEMPTS: usize = 100;

/// Why a local cluster can't be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// A file or folder can't be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The reason that the system gives.
        source: io::Error,
    },
    /// A server's program can't be started.
    #[error("cannot start server {server} as {program}: {source}")]
    Start {
        /// Which of the three.
        server: usize,
        /// The program.
        program: String,
        /// The reason that the system gives.
        source: io::Error,
    },
    /// There is no free port.
    #[error("no free port on this machine: {0}")]
    Ports(io::Error),
    /// A certificate can't be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A name is no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A server ended instead of serving.
    #[error("server {server} ended instead of serving; the end of its log {}:\n{log}", path.display())]
    Ended {
        /// Which of the three.
        server: usize,
        /// The log.
        path: PathBuf,
        /// Its last lines.
        log: String,
    },
    /// The servers did not connect to each other in time.
    #[error("the three servers did not connect to each other within {waited_s} s: {reason}; their logs are in {}", folder.display())]
    NotReady {
        /// Seconds waited.
        waited_s: u64,
        /// What was last seen.
        reason: String,
        /// Where the logs are.
        folder: PathBuf,
    },
}

/// The program that runs a server: its path and the arguments before `--config FILE`.
#[derive(Clone, Debug)]
pub struct ServerProgram {
    /// The executable.
    pub path: PathBuf,
    /// Arguments before `--config`.
    pub arguments: Vec<String>,
    /// Whether the program ends by itself when its standard input does. Others are killed.
    pub ends_with_input: bool,
}

/// Addresses, certificates and processes of three servers.
pub struct Cluster {
    folder: PathBuf,
    program: ServerProgram,
    authority: Authority,
    addresses: [String; 3],
    web_addresses: [String; 3],
    servers: [Option<Child>; 3],
    /// Keeps other clusters away from the ports, also while a server does not listen on its own.
    _claims: Vec<UdpSocket>,
}

impl Cluster {
    /// Writes certificates and configuration into `folder` and starts the three servers. `tasks`
    /// holds the text of each server's task file, which is usually the same three times; `extra` is
    /// appended to each server's configuration.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub fn start(
        folder: &Path,
        program: ServerProgram,
        tasks: [&str; 3],
        extra: &str,
    ) -> Result<Self, ClusterError> {
        let mut cluster = Self::prepare(folder, program, tasks, [extra; 3])?;
        for server in 0..3 {
            cluster.start_server(server)?;
        }
        Ok(cluster)
    }

    /// As [`Self::start`], without starting a server, and with an end of its own for each server's
    /// configuration.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub fn prepare(
        folder: &Path,
        program: ServerProgram,
        tasks: [&str; 3],
        extra: [&str; 3],
    ) -> Result<Self, ClusterError> {
        Self::prepare_through(folder, program, tasks, extra, |peers| Ok(peers.clone()))
    }

    /// As [`Self::prepare`], with other addresses by which the servers reach each other: `through` gets
    /// the addresses at which servers 0, 1, 2 listen for their peers and gives those that the peers dial.
    ///
    /// # Errors
    /// [`ClusterError`]; [`ClusterError::Ports`] with the error of `through`.
    pub fn prepare_through(
        folder: &Path,
        program: ServerProgram,
        tasks: [&str; 3],
        extra: [&str; 3],
        through: impl FnOnce(&[String; 3]) -> io::Result<[String; 3]>,
    ) -> Result<Self, ClusterError> {
        let authority = Authority::create()?;
        let certificates = folder.join("certificates");
        write_folder(&certificates)?;
        authority.save(&certificates)?;
        let (ports, claims) = free_ports().map_err(ClusterError::Ports)?;
        let peers = [0, 1, 2].map(|server| format!("127.0.0.1:{}", ports[3 + server]));
        let dialled = through(&peers).map_err(ClusterError::Ports)?;
        let peers = dialled.map(|address| format!("\"{address}\"")).join(", ");
        for (server, (tasks, extra)) in tasks.into_iter().zip(extra).enumerate() {
            let identity = Identity::server(server as u8)?;
            let files = authority
                .issue(&identity, &["localhost".to_owned(), "127.0.0.1".to_owned()], CERTIFICATE_DAYS)?
                .save(&certificates)?;
            let home = folder.join(format!("server-{server}"));
            write_folder(&home)?;
            write(&home.join("tasks.toml"), tasks)?;
            let path = |path: &Path| toml::Value::from(path.display().to_string());
            let text = format!(
                "listen = \"127.0.0.1:{}\"\npeer_listen = \"127.0.0.1:{}\"\npeers = [{peers}]\n\
                 data_directory = \"data\"\ntasks_file = \"tasks.toml\"\n\n\
                 [tls]\nca = {}\ncertificate = {}\nkey = {}\n\n\
                 [identities]\nowners = [\"*\"]\nclients = [\"*\"]\noperators = [\"operator\"]\n\n\
                 [web]\nlisten = \"127.0.0.1:{}\"\n\n{extra}",
                ports[server],
                ports[3 + server],
                path(&files.ca),
                path(&files.certificate),
                path(&files.key),
                ports[6 + server],
            );
            write(&home.join("server.toml"), &text)?;
        }
        let addresses = |first: usize| [0, 1, 2].map(|server| format!("127.0.0.1:{}", ports[first + server]));
        Ok(Cluster {
            folder: folder.to_owned(),
            program,
            authority,
            addresses: addresses(0),
            web_addresses: addresses(6),
            servers: [None, None, None],
            _claims: claims,
        })
    }

    /// Starts one server that does not run, with the configuration that is in its folder.
    ///
    /// # Errors
    /// [`ClusterError::Start`] or [`ClusterError::Write`] for its log.
    pub fn start_server(&mut self, server: usize) -> Result<(), ClusterError> {
        let log = self.log(server);
        let file = fs::OpenOptions::new().create(true).append(true).open(&log);
        let file = file.map_err(|source| ClusterError::Write { path: log, source })?;
        let mut command = Command::new(&self.program.path);
        // Variables of the user's own programs would override the files written here.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CONCILIUM_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(&self.program.arguments)
            .arg("--config")
            .arg(self.home(server).join("server.toml"))
            // The servers of a demonstration end when their standard input does, so none is left
            // behind however this process ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|source| ClusterError::Start {
                server,
                program: self.program.path.display().to_string(),
                source,
            })?;
        self.servers[server] = Some(child);
        Ok(())
    }

    /// Ends one server at once, without a chance to tidy up.
    pub fn kill_server(&mut self, server: usize) {
        if let Some(mut child) = self.servers[server].take() {
            // It may have ended already, which is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The id of a server's process, while it is kept running.
    pub fn process(&self, server: usize) -> Option<u32> {
        self.servers[server].as_ref().map(Child::id)
    }

    /// The process of one server, for signals to it.
    pub fn process_id(&self, server: usize) -> Option<u32> {
        self.servers[server].as_ref().map(Child::id)
    }

    /// Waits for a server to end by itself; `None` when it still runs after `patience`.
    ///
    /// # Errors
    /// What the system says about the process.
    pub fn wait_for_end(&mut self, server: usize, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let begin = Instant::now();
        while let Some(child) = &mut self.servers[server] {
            if let Some(status) = child.try_wait()? {
                self.servers[server] = None;
                return Ok(Some(status));
            }
            if begin.elapsed() > patience {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(None)
    }

    /// The folder of one server.
    pub fn home(&self, server: usize) -> PathBuf {
        self.folder.join(format!("server-{server}"))
    }

    /// The log of one server.
    pub fn log(&self, server: usize) -> PathBuf {
        self.folder.join(format!("server-{server}.log"))
    }

    /// The authority of the cluster's certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// `host:port` of the servers for clients, owners and operators.
    pub fn addresses(&self) -> &[String; 3] {
        &self.addresses
    }

    /// `host:port` of one server's web page and metrics, over plain HTTP.
    pub fn web_address(&self, server: usize) -> &str {
        &self.web_addresses[server]
    }

    /// Issues a certificate and gives the configuration with which its holder connects.
    ///
    /// # Errors
    /// [`ClusterError::Identity`] for a name that can't be one, [`ClusterError::Authority`] when
    /// the files can't be written.
    pub fn member(&self, role: Role, name: &str) -> Result<ConnectionConfig, ClusterError> {
        let identity = Identity::new(role, name)?;
        let files = self
            .authority
            .issue(&identity, &[], CERTIFICATE_DAYS)?
            .save(&self.folder.join("certificates"))?;
        Ok(self.connection(files))
    }

    /// The configuration with which the holder of these files connects.
    pub fn connection(&self, tls: TlsFiles) -> ConnectionConfig {
        ConnectionConfig {
            servers: self.addresses.clone(),
            tls,
            connect_timeout_ms: 10_000,
            request_timeout_ms: 120_000,
        }
    }

    /// Waits until every server is connected to the two others.
    ///
    /// # Errors
    /// [`ClusterError::Ended`] when a server ended, [`ClusterError::NotReady`] after `patience`.
    pub async fn wait_until_ready(&mut self, patience: Duration) -> Result<(), ClusterError> {
        let operator = self.member(Role::Operator, "operator")?;
        let not_ready = |reason: String| ClusterError::NotReady {
            waited_s: patience.as_secs(),
            reason,
            folder: self.folder.clone(),
        };
        let connection = Connection::open(&operator).map_err(|error| not_ready(error.to_string()))?;
        let begin = Instant::now();
        loop {
            let statuses = statuses(&connection, Servers::All).await;
            let mut missing = Vec::new();
            for (server, status) in statuses.into_iter().enumerate() {
                match status {
                    Ok(status) => {
                        let connected = |lane: &concilium_rpc::v1::LaneStatus| {
                            lane.next_connected && lane.previous_connected
                        };
                        if !status.lanes.iter().all(connected) {
                            missing.push(format!("server {server} is not connected to both others"));
                        }
                    }
                    Err(error) => missing.push(error.to_string()),
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            for server in 0..3 {
                let child = self.servers[server].as_mut();
                if child.is_some_and(|child| matches!(child.try_wait(), Ok(Some(_)))) {
                    let path = self.log(server);
                    return Err(ClusterError::Ended { server, log: tail(&path), path });
                }
            }
            if begin.elapsed() > patience {
                return Err(ClusterError::NotReady {
                    waited_s: patience.as_secs(),
                    reason: missing.join("; "),
                    folder: self.folder.clone(),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends all servers: by closing their standard input if they end with it, and else, or after some
    /// time, by force.
    pub fn stop(&mut self) {
        for child in self.servers.iter_mut().flatten() {
            drop(child.stdin.take());
        }
        let begin = Instant::now();
        for child in self.servers.iter_mut().flatten() {
            while self.program.ends_with_input
                && begin.elapsed() < END_PATIENCE
                && matches!(child.try_wait(), Ok(None))
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        self.servers = [None, None, None];
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Nine ports that are free, and a claim to each of them.
///
/// They lie below those that systems give to outgoing connections, which could otherwise take one
/// before its server does. Between the look at a port and the start of its server another cluster, in this
/// process or another, could choose the same: so a cluster holds the UDP port of the same number for as long
/// as it exists, which servers don't use, and chooses no port that is held.
fn free_ports() -> io::Result<([u16; 9], Vec<UdpSocket>)> {
    let mut claims = Vec::new();
    let mut ports = [0; 9];
    let mut attempts = 0;
    while claims.len() < ports.len() {
        let port = rand::random_range(PORTS);
        let claimed = UdpSocket::bind(("127.0.0.1", port));
        // Only after the claim: whoever claimed it before may not listen yet.
        match claimed.and_then(|claim| TcpListener::bind(("127.0.0.1", port)).map(|_| claim)) {
            Ok(claim) => {
                ports[claims.len()] = port;
                claims.push(claim);
            }
            Err(error) => {
                attempts += 1;
                if attempts == PORT_ATTEMPTS {
                    return Err(error);
                }
            }
        }
    }
    Ok((ports, claims))
}

fn write_folder(path: &Path) -> Result<(), ClusterError> {
    fs::create_dir_all(path).map_err(|source| ClusterError::Write { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), ClusterError> {
    fs::write(path, text).map_err(|source| ClusterError::Write { path: path.to_owned(), source })
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
