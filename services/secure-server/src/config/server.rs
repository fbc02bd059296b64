//! The file of one server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use concilium_mpc::PartyIndex;
use concilium_postgres::PostgresOptions;
use concilium_rpc::identity::{AllowedIdentities, IdentityError};
use concilium_rpc::tls::TlsFiles;
use serde::{Deserialize, Serialize};

use super::keys::SERVER_KEYS;
use super::problem::{ConfigError, Origin, Problem};
use super::source::{Document, Settings};

/// The port of the operator's page on server 0, unless the configuration names one.
const FIRST_WEB_PORT: u16 = 7480;

/// The configuration of one server. [`SERVER_KEYS`] describes every key.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port for clients, owners and operators.
    pub listen: SocketAddr,
    /// Address and port for the two other servers.
    pub peer_listen: SocketAddr,
    /// `host:port` of the peer ports of servers 0, 1 and 2, this server's own included.
    pub peers: [String; 3],
    /// Folder for the ledger and the model shares.
    pub data_directory: PathBuf,
    /// Where the ledger is, if not in the data folder.
    #[serde(default)]
    pub ledger: LedgerSection,
    /// The task file, equal on all three servers.
    pub tasks_file: PathBuf,
    /// The TLS files.
    pub tls: TlsSection,
    /// Whom the server serves.
    pub identities: IdentitySection,
    /// Bounds on work and waiting.
    pub limits: LimitSection,
    /// The operator's page and the metrics.
    pub web: WebSection,
    /// What the server tells of its work.
    pub observability: ObservabilitySection,
}

/// Where the ledger is, if not in the data folder.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerSection {
    /// `postgres://user@host:port/database`, without a password.
    #[serde(default)]
    pub url: Option<String>,
    /// PEM file of the authority that signed the database's certificate.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// File with the password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// Where the TLS files are.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// PEM file of the consortium's authority.
    pub ca: PathBuf,
    /// PEM file of this server's certificate.
    pub certificate: PathBuf,
    /// PEM file of this server's private key.
    pub key: PathBuf,
}

/// Names from certificates that the server serves, by role. `"*"` among owners or clients admits
/// everyone to whom the authority gave a certificate of that role. Empty lists serve nobody.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IdentitySection {
    /// Owners that may share models.
    pub owners: Vec<String>,
    /// Clients that may ask.
    pub clients: Vec<String>,
    /// Operators that may read the budget and the status.
    pub operators: Vec<String>,
}

/// Bounds on work and waiting.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSection {
    /// Most rows that are evaluated together.
    pub batch_rows: usize,
    /// Batches that are computed beside each other.
    pub lanes: usize,
    /// How long server 0 waits for further requests before it starts a batch, in milliseconds, if the
    /// last batch held several. A request that comes alone starts at once.
    pub batch_wait_ms: u64,
    /// Most requests that wait at a time; more are refused with a retryable status.
    pub waiting_requests: usize,
    /// How long a request may wait for its result, in milliseconds.
    pub request_timeout_ms: u64,
    /// How long server 0 waits for the other servers to get their parts of a request, in
    /// milliseconds.
    pub arrival_timeout_ms: u64,
    /// How long a server waits for a message of another server, in milliseconds.
    pub peer_timeout_ms: u64,
    /// How long the self-test of a model may take, in milliseconds.
    pub self_test_timeout_ms: u64,
    /// Rows of noise that are drawn ahead for each task.
    pub noise_rows_ready: usize,
    /// How long stored answers are kept for repeats, in days.
    pub answers_kept_days: u32,
}

/// The operator's page and the metrics, read-only.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WebSection {
    /// Whether they are served.
    pub enabled: bool,
    /// Address and port. On a loopback address plain HTTP; on any other TLS with the server's
    /// certificate, for operators of `identities.operators` only. Use [`Self::address`], which knows the
    /// default.
    pub listen: Option<SocketAddr>,
}

impl WebSection {
    /// Where server `here` serves the page: `listen`, or 127.0.0.1 with port 7480 and the server's
    /// index added, so that three servers on one machine get along.
    pub fn address(&self, here: PartyIndex) -> SocketAddr {
        let port = FIRST_WEB_PORT + here.number() as u16;
        self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

/// What the server tells of its work.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ObservabilitySection {
    /// What is logged, as in `info,concilium_server=debug`. The variable `RUST_LOG` wins over it.
    pub log_filter: String,
    /// The form of log lines.
    pub log_format: LogFormat,
    /// `http://host:port` of a collector that takes OTLP over gRPC; empty for no export.
    pub otlp_endpoint: String,
    /// A wait for another server that is longer than this is reported, in milliseconds.
    pub stall_warning_ms: u64,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object for each line.
    Json,
}

impl ServerConfig {
    /// Reads a configuration file and the `CONCILIUM_*` variables of the process, which win. A
    /// nested key is written with two underscores: `CONCILIUM_LIMITS__BATCH_ROWS=64`. Neither the task
    /// file nor the TLS files are read; [`super::check`] does all that.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong, each naming file, key, value and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with(path, super::variables())
    }

    /// As [`Self::load`], with the given variables instead of the process's.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(
        path: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let (settings, config) = read(path, variables);
        ConfigError::refuse(settings.problems)?;
        config.map_err(ConfigError::of)
    }

    /// The identities as lists to check against.
    ///
    /// # Errors
    /// [`IdentityError`] for a name that can't be one.
    pub fn allowed(&self) -> Result<AllowedIdentities, IdentityError> {
        let IdentitySection { owners, clients, operators } = &self.identities;
        AllowedIdentities::new(owners, clients, operators)
    }

    /// The TLS files.
    pub fn tls_files(&self) -> TlsFiles {
        let TlsSection { ca, certificate, key } = self.tls.clone();
        TlsFiles { ca, certificate, key }
    }
}

/// The settings of a file with all their problems, and the configuration that they make, in which
/// examples stand for bad values.
pub(super) fn read(
    path: &Path,
    variables: impl IntoIterator<Item = (String, String)>,
) -> (Settings, Result<ServerConfig, Problem>) {
    let mut settings = match Document::read(path) {
        Ok(document) => Settings::read(&document, "", &document.table, SERVER_KEYS),
        Err(problems) => {
            let mut settings = Settings::empty(path, "", SERVER_KEYS);
            settings.problems = problems;
            // Nothing is known of the keys, so nothing more is said of them.
            return (settings, Err(unfit(path, "is unusable".to_owned())));
        }
    };
    settings.override_with(variables);
    settings.complete();
    let config = settings.build::<ServerConfig>();
    let mut config = match config {
        Ok(config) => config,
        Err(error) => return (settings, Err(unfit(path, error.to_string()))),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    for relative in [
        &mut config.data_directory,
        &mut config.tasks_file,
        &mut config.tls.ca,
        &mut config.tls.certificate,
        &mut config.tls.key,
    ] {
        *relative = folder.join(&*relative);
    }
    for relative in [&mut config.ledger.ca, &mut config.ledger.password_file].into_iter().flatten() {
        *relative = folder.join(&*relative);
    }
    check_addresses(&mut settings, &config);
    check_ledger(&mut settings, &config);
    check_limits(&mut settings, &config);
    check_identities(&mut settings, &config);
    (settings, Ok(config))
}

/// The description of the keys lets something pass that the program can't hold.
fn unfit(path: &Path, problem: String) -> Problem {
    Problem::of_file(path.to_owned(), Origin::Default, problem, "correct the file")
}

/// Whether two listeners would take the same port of the same address.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let anywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (anywhere || one.ip() == other.ip())
}

fn check_addresses(settings: &mut Settings, config: &ServerConfig) {
    let listeners = [
        ("listen", Some(config.listen)),
        ("peer_listen", Some(config.peer_listen)),
        ("web.listen", config.web.listen.filter(|_| config.web.enabled)),
    ];
    for (index, (key, address)) in listeners.iter().enumerate() {
        for (earlier, taken) in &listeners[..index] {
            let (Some(address), Some(taken)) = (address, taken) else { continue };
            if settings.are_good(&[key, earlier]) && collide(*address, *taken) {
                let problem = format!("is the port of `{earlier}`, too");
                settings.complain(key, problem, "give each of the two a port of its own");
            }
        }
    }
    let exposed = config.web.listen.is_some_and(|address| !address.ip().is_loopback());
    if settings.are_good(&["web.listen", "identities.operators"])
        && config.web.enabled
        && exposed
        && config.identities.operators.is_empty()
    {
        let problem = "is open to operators only, and `identities.operators` lists none".to_owned();
        settings.warn("web.listen", problem, "list the operators, or use a loopback address");
    }
}

fn check_ledger(settings: &mut Settings, config: &ServerConfig) {
    let LedgerSection { url: Some(url), ca: None, .. } = &config.ledger else { return };
    if settings.are_good(&["ledger.url", "ledger.ca"])
        && let Err(error) = PostgresOptions::new(url, None, None)
    {
        settings.complain("ledger.url", format!("can't be used: {error}"), "name the file in `ledger.ca`");
    }
}

fn check_limits(settings: &mut Settings, config: &ServerConfig) {
    let limits = &config.limits;
    if settings.are_good(&["limits.noise_rows_ready", "limits.batch_rows"])
        && limits.noise_rows_ready < limits.batch_rows
    {
        let problem = format!("is less than `limits.batch_rows` = {}", limits.batch_rows);
        let remedy = "a full batch will wait for noise: raise it to at least batch_rows";
        settings.warn("limits.noise_rows_ready", problem, remedy);
    }
    if settings.are_good(&["limits.arrival_timeout_ms", "limits.request_timeout_ms"])
        && limits.arrival_timeout_ms >= limits.request_timeout_ms
    {
        let problem = format!("is not below `limits.request_timeout_ms` = {}", limits.request_timeout_ms);
        let remedy = "a client that leaves a server out will not be told so: lower it";
        settings.warn("limits.arrival_timeout_ms", problem, remedy);
    }
    let stall = config.observability.stall_warning_ms;
    if settings.are_good(&["observability.stall_warning_ms", "limits.peer_timeout_ms"])
        && stall >= limits.peer_timeout_ms
    {
        let problem = format!("is not below `limits.peer_timeout_ms` = {}", limits.peer_timeout_ms);
        let remedy = "no stall will be reported before the batch is given up: lower it";
        settings.warn("observability.stall_warning_ms", problem, remedy);
    }
}

fn check_identities(settings: &mut Settings, config: &ServerConfig) {
    let IdentitySection { owners, clients, operators } = &config.identities;
    for (key, names, nobody) in [
        ("identities.owners", owners, "no owner can share a model"),
        ("identities.clients", clients, "no client can ask"),
        ("identities.operators", operators, "no operator can read the budget"),
    ] {
        if settings.are_good(&[key]) && names.is_empty() {
            let problem = format!("is empty: {nobody}");
            settings.warn(key, problem, "list the names of their certificates");
        }
    }
}
