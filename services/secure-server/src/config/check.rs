//! Everything that can be checked before a server starts: both files, the TLS files, the data
//! directory and the ports.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use concilium_client_library::terminal::FailureClass;
use concilium_mpc::PartyIndex;
use concilium_privacy::{Ledger as _, LedgerError, RedbLedger, beginning};
use concilium_rpc::tls::{TlsError, TlsMaterial};

use super::problem::{Problem, failure_class};
use super::server::{self, ServerConfig};
use super::source::Settings;
use super::tasks::TaskRead;
use crate::epochs::in_two;
use crate::ledger::ledger_file;

/// How long before its end a certificate is warned about.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whether the ports are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// They must be free, as before a start.
    Try,
    /// A server may be running with this configuration.
    Leave,
}

/// What a check has found.
pub struct Check {
    pub(super) problems: Vec<Problem>,
    /// Those of the server's keys and values, without those of what they name.
    pub(super) of_values: Vec<Problem>,
    config: Option<ServerConfig>,
    pub(super) settings: Settings,
    /// What the task file says for all tasks together.
    pub(super) task_file: Option<Settings>,
    pub(super) tasks: Vec<(String, Settings)>,
    pub(super) tasks_file: PathBuf,
}

impl Check {
    /// Everything that is wrong, errors and warnings, in the order of the files.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The class of the exit code; `None` when the server can start.
    pub fn failure_class(&self) -> Option<FailureClass> {
        failure_class(&self.problems)
    }

    /// The configuration, when the server can start.
    pub fn into_config(self) -> Option<ServerConfig> {
        if self.failure_class().is_some() { None } else { self.config }
    }
}

/// Checks the configuration in `path`, with the variables of the process, and all that it names.
pub fn check(path: &Path, ports: Ports) -> Check {
    let (mut settings, config) = server::read(path, super::variables());
    let (mut task_file, mut tasks) = (None, Vec::new());
    let mut task_problems = Vec::new();
    let mut tasks_file = PathBuf::new();
    let config = match config {
        Ok(config) => config,
        Err(problem) => {
            if settings.is_sound() {
                settings.problems.push(problem);
            }
            let problems = std::mem::take(&mut settings.problems);
            let of_values = problems.clone();
            return Check { problems, of_values, config: None, settings, task_file, tasks, tasks_file };
        }
    };
    let of_values = settings.problems.clone();
    let here = check_tls(&mut settings, &config);
    check_data_directory(&mut settings, &config);
    if ports == Ports::Try {
        check_ports(&mut settings, &config, here);
    }
    if settings.are_good(&["tasks_file"]) {
        tasks_file.clone_from(&config.tasks_file);
        if tasks_file.is_file() {
            let mut read = TaskRead::load(&tasks_file);
            if settings.are_good(&["data_directory"]) {
                check_epochs(&mut read, &config);
            }
            task_problems.extend(read.problems().cloned());
            task_file = read.settings;
            tasks = read.tasks;
        } else {
            let problem = format!("names {}, which is no file", tasks_file.display());
            settings.complain("tasks_file", problem, "name the task file that the three operators agreed on");
        }
    }
    let mut problems = std::mem::take(&mut settings.problems);
    problems.append(&mut task_problems);
    Check { problems, of_values, config: Some(config), settings, task_file, tasks, tasks_file }
}

/// Checks whether this server's ledger lets the tasks' epochs begin. What it knows cannot be seen while a
/// server has it open, and is not asked of a database, which only one host at a time may have.
fn check_epochs(read: &mut TaskRead, config: &ServerConfig) {
    let path = ledger_file(config);
    let ledger = match (&config.ledger.url, path.is_file()) {
        (None, false) => return,
        (None, true) => match RedbLedger::open(&path) {
            Ok(ledger) => Some(ledger),
            Err(LedgerError::InUse { .. }) => None,
            // The server tells it when it starts, with what helps.
            Err(_) => return,
        },
        (Some(_), _) => None,
    };
    let policies = read.file.policies();
    for (name, settings) in &mut read.tasks {
        let Some(policy) = policies.iter().find(|policy| policy.task == *name) else { continue };
        let Some(ledger) = &ledger else {
            if policy.epoch > 1 && policy.declaration.is_none() {
                let problem = format!(
                    "is missing, and the ledger cannot be looked at now: if an earlier epoch has spent anything, the \
                     server refuses to begin epoch {}",
                    policy.epoch
                );
                let remedy =
                    "give epoch_basis and epoch_attested_by, unless it has begun or none was before it";
                settings.warn("epoch_basis", problem, remedy);
            }
            continue;
        };
        let found = ledger.epochs(name).map(|epochs| beginning(policy, &epochs));
        if let Ok(Err(error)) = found {
            let (problem, remedy) = in_two(&error);
            settings.complain(error.key(), problem, &remedy);
        }
    }
}

/// Checks the TLS files and tells which server they make this one.
fn check_tls(settings: &mut Settings, config: &ServerConfig) -> Option<PartyIndex> {
    let files = config.tls_files();
    let mut readable = true;
    for (key, path) in
        [("tls.ca", &files.ca), ("tls.certificate", &files.certificate), ("tls.key", &files.key)]
    {
        if !settings.are_good(&[key]) {
            readable = false;
        } else if let Err(error) = fs::File::open(path) {
            readable = false;
            let problem = format!("names {}, which can't be read: {error}", path.display());
            let remedy = "issue the certificate with `concilium-operator certs issue`, or correct the path";
            settings.complain(key, problem, remedy);
        }
    }
    if !readable {
        return None;
    }
    warn_of_exposed_key(settings, &files.key);
    let material = match files.load() {
        Ok(material) => material,
        Err(error) => {
            let key = match &error {
                TlsError::Read { path, .. }
                | TlsError::LargeFile { path }
                | TlsError::NoCertificate { path }
                    if *path == files.ca =>
                {
                    "tls.ca"
                }
                TlsError::KeyMismatch { .. } | TlsError::NoKey { .. } => "tls.key",
                TlsError::Read { path, .. } | TlsError::LargeFile { path } if *path == files.key => "tls.key",
                _ => "tls.certificate",
            };
            let text = error.to_string();
            let (problem, remedy) = text.split_once("; ").unwrap_or((&text, "name the file of this server"));
            settings.complain(key, format!("can't be used: {problem}"), remedy);
            return None;
        }
    };
    warn_of_expiry(settings, &material);
    let Some(here) = material.identity().server_index().and_then(PartyIndex::new) else {
        let problem = format!("is the certificate of {}", material.identity());
        let remedy = "a server needs one of role server, named server-0, server-1 or server-2";
        settings.complain("tls.certificate", problem, remedy);
        return None;
    };
    if settings.are_good(&["peers", "peer_listen"]) {
        let own = &config.peers[here.number()];
        let port = own.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port != Some(config.peer_listen.port()) {
            let problem = format!("says that {here} is reached at {own}, but `peer_listen` has another port");
            settings.warn("peers", problem, "make them equal, unless a gateway forwards the port");
        }
    }
    Some(here)
}

fn warn_of_expiry(settings: &mut Settings, material: &TlsMaterial) {
    let left = material.expires().duration_since(SystemTime::now()).unwrap_or_default();
    if left < EXPIRY_WARNING {
        let problem = format!("expires in {} days", left.as_secs() / 86_400);
        settings.warn("tls.certificate", problem, "ask the authority for a new one");
    }
}

#[cfg(unix)]
fn warn_of_exposed_key(settings: &mut Settings, path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        let problem = format!("can be read by other users (mode {:03o})", mode & 0o777);
        settings.warn("tls.key", problem, &format!("chmod 600 {}", path.display()));
    }
}

#[cfg(not(unix))]
fn warn_of_exposed_key(_settings: &mut Settings, _path: &Path) {}

/// Checks that the folder, or the nearest one above it that exists, can be written to.
fn check_data_directory(settings: &mut Settings, config: &ServerConfig) {
    if !settings.are_good(&["data_directory"]) {
        return;
    }
    let wanted = &config.data_directory;
    let existing = wanted.ancestors().find(|folder| !folder.as_os_str().is_empty() && folder.exists());
    let existing = existing.unwrap_or(Path::new("."));
    if let Err(error) = try_writing(existing) {
        let problem = format!("can't be written to: {}: {error}", existing.display());
        let remedy = "give the server's user a folder that it may write to, on a disk with space";
        let problem = settings.problem("data_directory", problem, remedy).class(FailureClass::Local);
        settings.problems.push(problem);
    }
}

/// Makes a file and takes it away again: permissions alone do not tell about read-only or full disks.
fn try_writing(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".concilium-check-{}", std::process::id()));
    fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)
}

fn check_ports(settings: &mut Settings, config: &ServerConfig, here: Option<PartyIndex>) {
    let web = here.filter(|_| config.web.enabled).map(|here| config.web.address(here));
    let listeners =
        [("listen", Some(config.listen)), ("peer_listen", Some(config.peer_listen)), ("web.listen", web)];
    // All are held until all were tried: two keys with the same port are reported as such elsewhere.
    let mut held: Vec<(SocketAddr, TcpListener)> = Vec::new();
    for (key, address) in listeners {
        let Some(address) = address else { continue };
        let default = key == "web.listen" && config.web.listen.is_none();
        let taken = held.iter().any(|(other, _)| other.port() == address.port());
        if taken || !(default || settings.are_good(&[key])) {
            continue;
        }
        match TcpListener::bind(address) {
            Ok(listener) => held.push((address, listener)),
            Err(error) => {
                let (class, problem, remedy) = port_problem(address, &error);
                settings.problems.push(settings.problem(key, problem, remedy).class(class));
            }
        }
    }
}

/// Why nothing can listen on an address, and what to do.
pub(crate) fn port_problem(address: SocketAddr, error: &io::Error) -> (FailureClass, String, &'static str) {
    match error.kind() {
        io::ErrorKind::AddrInUse => (
            FailureClass::Unavailable,
            format!("can't be used: another program listens on {address}"),
            "stop that program, wait for it to end, or choose another port",
        ),
        io::ErrorKind::AddrNotAvailable => (
            FailureClass::Input,
            format!("can't be used: {} is no address of this host", address.ip()),
            "use one of its addresses, or 0.0.0.0 for all",
        ),
        _ => (
            FailureClass::Local,
            format!("can't be used: {error}"),
            "choose a port above 1023, or let the server's user listen there",
        ),
    }
}
