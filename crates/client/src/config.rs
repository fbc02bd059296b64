//! Where the servers are and which certificate to show them: one TOML file, overridable by
//! `CONCILIUM_*` variables.

use std::{
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use concilium_rpc::tls::TlsFiles;
use config::{Config, Environment, File, FileFormat};
use serde::Deserialize;
use thiserror::Error;

/// Prefix of the variables that override the file.
const VARIABLE_PREFIX: &str = "CONCILIUM_";

/// What stands for a dot of a key in the name of a variable: `CONCILIUM_TLS__KEY` is `tls.key`.
const SEPARATOR: &str = "__";

/// Keys that a file or a variable may set.
pub const KEYS: [&str; 6] =
    ["servers", "tls.ca", "tls.certificate", "tls.key", "connect_timeout_ms", "request_timeout_ms"];

/// Variables of the prefix that are no configuration keys: the path of the file, and switches of
/// tests.
const OTHER_VARIABLES: [&str; 4] =
    ["CONCILIUM_CONFIG", "CONCILIUM_REQUIRE_ALL_TESTS", "CONCILIUM_TEST_SEED", "CONCILIUM_WRITE_DOCS"];

/// Largest configuration file that is read, in bytes.
const MAXIMUM_FILE_BYTES: u64 = 1 << 20;

/// Longest time limit, in milliseconds: one day.
const MAXIMUM_TIMEOUT_MS: u64 = 86_400_000;

/// How to reach the three servers. Clients, owners and operators use the same keys.
///
/// ```
/// let text = r#"
///     ## addresses of servers 0, 1 and 2, in this order
///     servers = ["s0.example.org:7400", "s1.example.org:7400", "s2.example.org:7400"]
///
///     [tls]                           # paths are relative to this file
///     ca = "certificates/ca.pem"
///     certificate = "certificates/client-alice.pem"
///     key = "certificates/client-alice.key"
/// "#;
/// let config = concilium_client_library::ConnectionConfig::parse(text, "client.toml".as_ref(), [])?;
/// assert_eq!(config.request_timeout_ms, 120_000);
/// # Ok::<(), concilium_client_library::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// `host:port` of servers 0, 1 and 2, in this order.
    pub servers: [String; 3],
    /// The caller's TLS files. Relative paths are taken from the folder of the file.
    pub tls: TlsFiles,
    /// How long a connection may take to come about, in milliseconds, 1 to 86400000. Default 10000.
    pub connect_timeout_ms: u64,
    /// How long one attempt of one call may take, in milliseconds, 1 to 86400000. Default 120000.
    pub request_timeout_ms: u64,
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`: {source}; name another file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason that the system gives.
        source: std::io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("`{}` is larger than {MAXIMUM_FILE_BYTES} bytes; it should be a short TOML file", path.display())]
    LargeFile {
        /// The file.
        path: PathBuf,
    },
    /// A key is missing, unknown or of the wrong type, or the file is not TOML.
    #[error("configuration `{}`: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key.
        problem: String,
    },
    /// A variable of the prefix is not a key.
    #[error("the variable `{variable}` is not a configuration key; unset it or use one of {}", variables())]
    Variable {
        /// The variable.
        variable: String,
    },
}

/// The unchecked form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    servers: Vec<String>,
    tls: RawTls,
    #[serde(default = "default_connect_timeout_ms")]
    connect_timeout_ms: u64,
    #[serde(default = "default_request_timeout_ms")]
    request_timeout_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn default_connect_timeout_ms() -> u64 {
    10_000
}

fn default_request_timeout_ms() -> u64 {
    120_000
}

/// The names of the variables, for errors.
fn variables() -> String {
    KEYS.map(|key| format!("{VARIABLE_PREFIX}{}", key.replace('.', SEPARATOR).to_uppercase())).join(", ")
}

impl ConnectionConfig {
    /// Reads a file, overridden by the variables of the process.
    ///
    /// # Errors
    /// [`ConfigError`] names the file or variable and the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.len() > MAXIMUM_FILE_BYTES {
            return Err(ConfigError::LargeFile { path: path.to_owned() });
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        // Variables that are not text cannot be ours: all keys and values are.
        let variables = env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::parse(&text, path, variables)
    }

    /// Reads TOML text that came from `path`, overridden by `variables` of the prefix `CONCILIUM_`; the
    /// addresses of the servers are separated by commas there.
    ///
    /// # Errors
    /// [`ConfigError::Content`] or [`ConfigError::Variable`].
    pub fn parse(
        text: &str,
        path: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let wrong = |problem: String| ConfigError::Content { path: path.to_owned(), problem };
        let variables = known_variables(variables)?;
        let environment = Environment::with_prefix(VARIABLE_PREFIX.trim_end_matches('_'))
            .prefix_separator("_")
            .separator(SEPARATOR)
            .list_separator(",")
            .with_list_parse_key("servers")
            .try_parsing(true)
            .source(Some(variables));
        let raw: Raw = Config::builder()
            .add_source(File::from_str(text, FileFormat::Toml))
            .add_source(environment)
            .build()
            .and_then(Config::try_deserialize)
            .map_err(|error| wrong(in_one_line(&error.to_string())))?;
        let servers: [String; 3] = raw.servers.try_into().map_err(|servers: Vec<_>| {
            wrong(format!("`servers` lists {} addresses, not 3", servers.len()))
        })?;
        for (key, value) in
            [("connect_timeout_ms", raw.connect_timeout_ms), ("request_timeout_ms", raw.request_timeout_ms)]
        {
            if !(1..=MAXIMUM_TIMEOUT_MS).contains(&value) {
                return Err(wrong(format!("`{key}` is {value}; the limit is 1 to {MAXIMUM_TIMEOUT_MS}")));
            }
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok(Self {
            servers: servers.map(|address| address.trim().to_owned()),
            tls: TlsFiles {
                ca: folder.join(raw.tls.ca),
                certificate: folder.join(raw.tls.certificate),
                key: folder.join(raw.tls.key),
            },
            connect_timeout_ms: raw.connect_timeout_ms,
            request_timeout_ms: raw.request_timeout_ms,
        })
    }

    /// [`Self::connect_timeout_ms`] as a duration.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// [`Self::request_timeout_ms`] as a duration.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }
}

/// A message without the excerpt of the file that TOML errors draw below it.
fn in_one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|'));
    lines.collect::<Vec<_>>().join(": ")
}

/// The variables that override keys. A misspelt one is an error: ignored, it would leave the caller
/// with another configuration than the one written down.
fn known_variables(
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<HashMap<String, String>, ConfigError> {
    variables
        .into_iter()
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX) && !OTHER_VARIABLES.contains(&name.as_str()))
        .map(|(variable, value)| {
            let key = variable[VARIABLE_PREFIX.len()..].to_lowercase().replace(SEPARATOR, ".");
            if KEYS.contains(&key.as_str()) {
                Ok((variable, value))
            } else {
                Err(ConfigError::Variable { variable })
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
        servers = ["a:1", "b:2", "c:3"]
        request_timeout_ms = 5000
        [tls]
        ca = "certificates/ca.pem"
        certificate = "/etc/alice.pem"
        key = "alice.key"
    "#;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<ConnectionConfig, ConfigError> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        ConnectionConfig::parse(text, Path::new("etc/client.toml"), variables)
    }

    fn refusal(text: &str, variables: &[(&str, &str)]) -> String {
        parse(text, variables).expect_err("the configuration must be refused").to_string()
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = parse(SAMPLE, &[]).unwrap();
        assert_eq!(config.servers, ["a:1", "b:2", "c:3"]);
        assert_eq!(config.tls.ca, Path::new("etc/certificates/ca.pem"));
        assert_eq!(config.tls.certificate, Path::new("/etc/alice.pem"));
        assert_eq!(config.tls.key, Path::new("etc/alice.key"));
        assert_eq!((config.connect_timeout_ms, config.request_timeout_ms), (10_000, 5_000));
    }

    #[test]
    fn variables_override_the_file() {
        let config = parse(
            SAMPLE,
            &[
                ("CONCILIUM_SERVERS", "x:1, y:2,z:3"),
                ("CONCILIUM_TLS__KEY", "other.key"),
                ("CONCILIUM_REQUEST_TIMEOUT_MS", "7"),
                ("CONCILIUM_CONFIG", "elsewhere"),
                ("CONCILIUM_TEST_SEED", "1"),
                ("CONCILIUM_REQUIRE_ALL_TESTS", "1"),
                ("HOME", "x"),
            ],
        )
        .unwrap();
        assert_eq!(config.servers, ["x:1", "y:2", "z:3"]);
        assert_eq!(config.tls.key, Path::new("etc/other.key"));
        assert_eq!(config.request_timeout_ms, 7);
        let message = refusal(SAMPLE, &[("CONCILIUM_REQUEST_TIMEOUT", "7")]);
        assert!(message.contains("CONCILIUM_REQUEST_TIMEOUT_MS"), "{message}");
    }

    #[test]
    fn mistakes_name_file_and_key() {
        let changed = |from: &str, to: &str| refusal(&SAMPLE.replace(from, to), &[]);
        for (message, key) in [
            (changed("request_timeout_ms", "timeout"), "timeout"),
            (changed("key = ", "privat = "), "privat"),
            (changed("key = \"alice.key\"", ""), "key"),
            (changed("5000", "0"), "request_timeout_ms"),
            (changed("5000", "-1"), "request_timeout_ms"),
            (changed(", \"c:3\"", ""), "servers"),
            (changed("[\"a:1\"", "[[1]"), "servers"),
            (changed("[tls]", "[tls"), "TOML"),
            (refusal("", &[]), "servers"),
        ] {
            assert!(message.contains(key) && message.contains("client.toml"), "{key}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn files_are_read_and_missing_ones_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner.toml");
        let message = ConnectionConfig::load(&path).unwrap_err().to_string();
        assert!(message.contains("owner.toml") && message.contains("--config"), "{message}");
        fs::write(&path, SAMPLE).unwrap();
        assert_eq!(ConnectionConfig::load(&path).unwrap().tls.key, folder.path().join("alice.key"));
        fs::write(&path, "#".repeat(2 << 20)).unwrap();
        assert!(matches!(ConnectionConfig::load(&path), Err(ConfigError::LargeFile { .. })));
    }
}
