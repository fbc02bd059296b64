//! A server's configuration: one TOML file, overridable by `CONCILIUM_*` variables, and the task
//! file that the three servers share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use concilium_rpc::identity::{AllowedIdentities, IdentityError};
use concilium_rpc::tls::TlsFiles;
use config::{Config, Environment, File, FileFormat};
use serde::Deserialize;
use thiserror::Error;

/// Variables of the project that are no configuration of a program.
const OTHER_VARIABLES: [&str; 3] = ["CONCILIUM_CONFIG", "CONCILIUM_TEST_SEED", "CONCILIUM_WRITE_DOCS"];

/// Why a configuration can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file can't be read, or a key or value in it is wrong.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key.
        reason: String,
    },
    /// A value is outside its limits.
    #[error("{}: `{key}` {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A list of identities is wrong.
    #[error("{}: {source}", path.display())]
    Identities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
}

/// The configuration of one server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port for clients, owners and operators.
    pub listen: SocketAddr,
    /// Address and port for the two other servers.
    pub peer_listen: SocketAddr,
    /// `host:port` of the peer ports of servers 0, 1 and 2, this server's own included.
    pub peers: [String; 3],
    /// Folder for the ledger and the model shares. Created if it is missing. Put it on an encrypted
    /// disk and back it up; see the documentation before restoring a ledger.
    pub data_directory: PathBuf,
    /// The task file, equal on all three servers.
    pub tasks_file: PathBuf,
    /// This server's certificate; its name, server-0, server-1 or server-2, says which server it is.
    pub tls: TlsSection,
    /// Whom the server serves.
    #[serde(default)]
    pub identities: IdentitySection,
    /// Bounds on work and waiting.
    #[serde(default)]
    pub limits: LimitSection,
}

/// Where the TLS files are; relative paths start at the configuration file's folder.
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySection {
    /// Owners that may share models.
    pub owners: Vec<String>,
    /// Clients that may ask.
    pub clients: Vec<String>,
    /// Operators that may read the budget and the status.
    pub operators: Vec<String>,
}

/// Bounds on work and waiting.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSection {
    /// Most rows that are evaluated together, 1 to 4096.
    pub batch_rows: usize,
    /// How long server 0 waits for further requests before it starts a batch, in milliseconds.
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
    /// Most models of one owner and task.
    pub models_per_owner: usize,
    /// Rows of noise that are drawn ahead for each task.
    pub noise_rows_ready: usize,
}

impl Default for LimitSection {
    fn default() -> Self {
        LimitSection {
            batch_rows: 256,
            batch_wait_ms: 1,
            waiting_requests: 1024,
            request_timeout_ms: 60_000,
            arrival_timeout_ms: 3_000,
            peer_timeout_ms: 15_000,
            models_per_owner: 100,
            noise_rows_ready: 512,
        }
    }
}

impl ServerConfig {
    /// Reads a configuration file and the `CONCILIUM_*` variables of the process, which win. A
    /// nested key is written with two underscores: `CONCILIUM_LIMITS__BATCH_ROWS=64`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file, the key and what is allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let variables = std::env::vars().filter(|(name, _)| !OTHER_VARIABLES.contains(&name.as_str()));
        Self::load_with(path, variables.collect())
    }

    /// As [`Self::load`], with the given variables instead of the process's.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(
        path: &Path,
        variables: std::collections::HashMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let failed = |error: config::ConfigError| ConfigError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let environment = Environment::with_prefix("CONCILIUM")
            .prefix_separator("_")
            .separator("__")
            .list_separator(",")
            .with_list_parse_key("peers")
            .with_list_parse_key("identities.owners")
            .with_list_parse_key("identities.clients")
            .with_list_parse_key("identities.operators")
            .try_parsing(true)
            .source(Some(variables));
        let mut config: ServerConfig = Config::builder()
            .add_source(File::from(path).format(FileFormat::Toml))
            .add_source(environment)
            .build()
            .and_then(Config::try_deserialize)
            .map_err(failed)?;
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
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let within = |key: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            let problem = format!("is {value}; {low} to {high} are allowed");
            Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), problem })
        };
        let limits = &self.limits;
        within("limits.batch_rows", limits.batch_rows as u64, 1, 4096)?;
        within("limits.batch_wait_ms", limits.batch_wait_ms, 0, 10_000)?;
        within("limits.waiting_requests", limits.waiting_requests as u64, 1, 1_000_000)?;
        within("limits.request_timeout_ms", limits.request_timeout_ms, 100, 3_600_000)?;
        within("limits.arrival_timeout_ms", limits.arrival_timeout_ms, 10, 600_000)?;
        within("limits.peer_timeout_ms", limits.peer_timeout_ms, 100, 600_000)?;
        within("limits.models_per_owner", limits.models_per_owner as u64, 1, 100_000)?;
        within("limits.noise_rows_ready", limits.noise_rows_ready as u64, 1, 1_000_000)?;
        self.allowed().map_err(|source| ConfigError::Identities { path: path.to_owned(), source })?;
        Ok(())
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

/// The task file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    /// The tasks, each under its name: `[tasks.NAME]`.
    pub tasks: BTreeMap<String, TaskSection>,
}

/// One value for all features or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Bound {
    /// The same for all features.
    One(f64),
    /// One for each feature, in row-major order.
    Each(Vec<f64>),
}

impl Bound {
    /// The values as a list of one or of all.
    pub fn values(&self) -> Vec<f64> {
        match self {
            Bound::One(value) => vec![*value],
            Bound::Each(values) => values.clone(),
        }
    }
}

/// One task. All three servers must say the same; they compare at connect time.
///
/// Numbers that decide about privacy (`sigma`, `scale`, `budget_*_rho`, `delta`) are read as the
/// decimal text that is written, without binary rounding; a string is taken as well.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSection {
    /// The ensemble's epoch. The budget belongs to it. Raise it only when the owners' models were
    /// trained anew on data that counts anew.
    pub epoch: u64,
    /// Shape of one input, without the batch axis.
    pub input_shape: Vec<usize>,
    /// Smallest value of a feature: one number for all, or a list.
    pub input_minimum: Bound,
    /// Largest value of a feature: one number for all, or a list.
    pub input_maximum: Bound,
    /// Fractional bits of the fixed-point encoding, 8 to 20. `concilium-owner check` says how many
    /// a model allows.
    pub fractional_bits: u32,
    /// Number of classes, 2 to 64.
    pub classes: usize,
    /// Names of the classes, or none.
    #[serde(default)]
    pub class_names: Vec<String>,
    /// `label` or `histogram`.
    pub release: concilium_privacy::Release,
    /// Standard deviation of discrete Gaussian noise that any two servers guarantee, in votes; at
    /// least 2. Give either this or `scale`.
    #[serde(default)]
    pub sigma: Option<concilium_privacy::NoiseScale>,
    /// Scale of discrete Laplace noise that any two servers guarantee, in votes; at least 2.
    #[serde(default)]
    pub scale: Option<concilium_privacy::NoiseScale>,
    /// Most that may ever be released about this epoch's models, to all clients together, as rho of
    /// zero-concentrated differential privacy. This is the guarantee.
    pub budget_rho: concilium_privacy::NanoRho,
    /// Most that one client may get; absent for no further bound.
    #[serde(default)]
    pub budget_per_client_rho: Option<concilium_privacy::NanoRho>,
    /// The delta at which spending is shown as epsilon.
    pub delta: concilium_privacy::Delta,
    /// Most rows of one request.
    #[serde(default = "default_request_rows")]
    pub request_rows: u32,
}

fn default_request_rows() -> u32 {
    128
}

impl TaskFile {
    /// Reads a task file.
    ///
    /// # Errors
    /// [`ConfigError::File`] naming the file, the line and the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let failed = |reason: String| ConfigError::File { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        toml::from_str(&text).map_err(|error| failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const SERVER: &str = r#"
        listen = "127.0.0.1:7400"
        peer_listen = "127.0.0.1:7410"
        peers = ["a:7410", "b:7410", "c:7410"]
        data_directory = "data"
        tasks_file = "tasks.toml"
        [tls]
        ca = "ca.pem"
        certificate = "server-0.pem"
        key = "/keys/server-0.key"
    "#;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<ServerConfig, ConfigError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("server.toml");
        std::fs::write(&path, text).expect("the folder is writable");
        let variables: HashMap<String, String> =
            variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ServerConfig::load_with(&path, variables)
    }

    #[test]
    fn files_have_defaults_and_paths_start_at_the_file() {
        let config = load(SERVER, &[]).expect("the sample is good");
        assert_eq!(config.limits.batch_rows, LimitSection::default().batch_rows);
        assert!(config.identities.owners.is_empty(), "nobody is served unless the file says so");
        assert!(config.tasks_file.ends_with("tasks.toml") && config.tasks_file.is_absolute());
        assert_eq!(config.tls.key, Path::new("/keys/server-0.key"));
    }

    #[test]
    fn variables_win_over_the_file() {
        let variables = [
            ("CONCILIUM_LIMITS__BATCH_ROWS", "64"),
            ("CONCILIUM_IDENTITIES__CLIENTS", "alice,bob"),
            ("CONCILIUM_LISTEN", "0.0.0.0:9000"),
        ];
        let config = load(SERVER, &variables).expect("the variables are good");
        assert_eq!(config.limits.batch_rows, 64);
        assert_eq!(config.identities.clients, ["alice", "bob"]);
        assert_eq!(config.listen.port(), 9000);
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str, variables: &[(&str, &str)]| {
            load(text, variables).expect_err("a mistake").to_string()
        };
        assert!(message(&SERVER.replace("listen =", "lisen ="), &[]).contains("lisen"));
        assert!(message(&format!("{SERVER}\n[limits]\nbatch_row = 3"), &[]).contains("batch_row"));
        assert!(message(SERVER, &[("CONCILIUM_LIMITS__BATCHROWS", "3")]).contains("batchrows"));
        let text = message(&format!("{SERVER}\n[limits]\nbatch_rows = 0"), &[]);
        assert!(text.contains("limits.batch_rows") && text.contains("1 to 4096"), "{text}");
        let text = message(&format!("{SERVER}\n[identities]\noperators = [\"*\"]"), &[]);
        assert!(text.contains("identities.operators"), "{text}");
        assert!(message(&SERVER.replace("\"c:7410\"", ""), &[]).contains("peers"));
        assert!(
            ServerConfig::load(Path::new("/nowhere/server.toml"))
                .expect_err("no file")
                .to_string()
                .contains("nowhere")
        );
    }
}
