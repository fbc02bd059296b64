//! Sessions with the database, and what it must be like to hold a ledger.

use std::{fs, path::Path, str::FromStr as _, sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio_postgres::{
    Client, Config, NoTls, Statement,
    config::{Host, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use zeroize::Zeroizing;

use crate::PostgresError;

/// How long one connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// After how long a connection that carries nothing back is given up.
const DEAD_AFTER: Duration = Duration::from_secs(30);

/// Number of the layout of the tables.
const LAYOUT: i32 = 1;

/// Where the ledger's database is and how it is reached. Has no `Debug`, because of the password.
#[derive(Clone)]
pub struct PostgresOptions {
    config: Config,
    tls: Option<Arc<ClientConfig>>,
    place: String,
}

impl PostgresOptions {
    /// The database of `url`, `postgres://user@host:5432/database`, or with `?host=/folder` of a Unix
    /// socket on this host. `authorities` are the certificates that its own must be signed by; without
    /// them it must be on this host. With them every connection over a network is encrypted, and is to
    /// a server whose certificate holds the host's name, whatever `sslmode` the URL names.
    ///
    /// # Errors
    /// [`PostgresError::Url`], [`PostgresError::PasswordInUrl`], [`PostgresError::NoAuthority`] or
    /// [`PostgresError::Authority`].
    pub fn new(
        url: &str,
        password: Option<&Zeroizing<String>>,
        authorities: Option<Vec<CertificateDer<'static>>>,
    ) -> Result<Self, PostgresError> {
        let (mut config, database) = parse(url)?;
        let hosts: Vec<_> = config
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => name.clone(),
                #[cfg(unix)]
                Host::Unix(folder) => folder.display().to_string(),
            })
            .collect();
        // An address of the URL is what is connected to, under whatever name.
        let addresses = config.get_hostaddrs().iter().map(ToString::to_string);
        let elsewhere = hosts.iter().cloned().chain(addresses).find(|host| !is_here(host));
        // A Unix socket has no TLS.
        let network = elsewhere.is_some() || hosts.iter().any(|host| !host.starts_with('/'));
        let tls = match (authorities, elsewhere) {
            (Some(authorities), _) => network.then(|| trusting(authorities)).transpose()?,
            (None, Some(host)) => return Err(PostgresError::NoAuthority { host }),
            (None, None) => None,
        };
        // Whatever the URL says: anything less than `Require` goes on without TLS if the server, or
        // somebody on the way to it, says that it has none.
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        if let Some(password) = password {
            config.password(password.as_bytes());
        }
        config
            .application_name("concilium ledger")
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(DEAD_AFTER / 2)
            .keepalives_interval(DEAD_AFTER / 6)
            .keepalives_retries(3)
            .tcp_user_timeout(DEAD_AFTER);
        let user = config.get_user().map_or_else(String::new, |user| format!("{user}@"));
        let place = format!("postgres://{user}{}/{database}", hosts.join(","));
        Ok(Self { config, tls, place })
    }

    /// Where the database is, without a password.
    pub fn place(&self) -> &str {
        &self.place
    }
}

/// Checks the form of a URL, without asking whether its host needs TLS.
///
/// # Errors
/// [`PostgresError::Url`] or [`PostgresError::PasswordInUrl`].
pub fn check_url(url: &str) -> Result<(), PostgresError> {
    parse(url).map(drop)
}

/// The settings of a URL and the database's name.
fn parse(url: &str) -> Result<(Config, String), PostgresError> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(PostgresError::Url("it does not begin with postgres://".to_owned()));
    }
    // The parser's own words hold no more than the name of an option.
    let config = Config::from_str(url).map_err(|error| PostgresError::Url(error.to_string()))?;
    if config.get_password().is_some() {
        return Err(PostgresError::PasswordInUrl);
    }
    let Some(database) = config.get_dbname().map(str::to_owned) else {
        return Err(PostgresError::Url("it names no database".to_owned()));
    };
    if config.get_hosts().is_empty() {
        return Err(PostgresError::Url("it names no host".to_owned()));
    }
    Ok((config, database))
}

/// The certificates of a PEM file of authorities.
///
/// # Errors
/// [`PostgresError::Authority`] names the file.
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PostgresError> {
    let unusable = |reason: String| PostgresError::Authority { path: path.to_owned(), reason };
    let pem = fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| unusable(error.to_string()))?;
    if found.is_empty() { Err(unusable("it has no `BEGIN CERTIFICATE`".to_owned())) } else { Ok(found) }
}

/// Whether a host of the URL is this one: a folder of sockets, or a loop-back address.
fn is_here(host: &str) -> bool {
    let loopback = host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    host.starts_with('/') || host == "localhost" || loopback
}

fn trusting(authorities: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, PostgresError> {
    let unusable = |error: rustls::Error| PostgresError::Authority {
        path: "authorities".into(),
        reason: error.to_string(),
    };
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(unusable)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(Arc::new(builder.map_err(unusable)?.with_root_certificates(roots).with_no_client_auth()))
}

/// One session, with the statements of the store prepared.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) get: Statement,
    pub(crate) ascending: Statement,
    pub(crate) descending: Statement,
    pub(crate) count: Statement,
    pub(crate) put: Statement,
}

impl Session {
    /// Connects, without looking at what is there.
    pub(crate) async fn connect(options: &PostgresOptions) -> Result<Client, PostgresError> {
        let client = match &options.tls {
            Some(tls) => {
                let tls = MakeRustlsConnect::new(ClientConfig::clone(tls));
                let connected = options.config.connect(tls).await;
                let (client, connection) = connected.map_err(PostgresError::of_handshake)?;
                tokio::spawn(connection);
                client
            }
            None => {
                let (client, connection) = options.config.connect(NoTls).await?;
                tokio::spawn(connection);
                client
            }
        };
        Ok(client)
    }

    /// Prepares a session on a database that has the tables.
    pub(crate) async fn prepare(client: Client) -> Result<Self, PostgresError> {
        // An error of an earlier setting of the role or database must not weaken ours.
        client
            .batch_execute("SET synchronous_commit = on; SET search_path = concilium_ledger, pg_temp")
            .await?;
        let get = client
            .prepare(
                "SELECT wanted.number, ledger_rows.value \
                 FROM unnest($1::text[], $2::bytea[]) WITH ORDINALITY AS wanted (name, key, number) \
                 JOIN ledger_rows ON ledger_rows.name = wanted.name AND ledger_rows.key = wanted.key",
            )
            .await?;
        let scan = |order: &str| {
            format!(
                "SELECT key, value FROM ledger_rows \
                 WHERE name = $1 AND key >= $2 AND ($3::bytea IS NULL OR key < $3) \
                 ORDER BY key {order} LIMIT $4"
            )
        };
        let ascending = client.prepare(&scan("ASC")).await?;
        let descending = client.prepare(&scan("DESC")).await?;
        let count = client.prepare("SELECT count(*) FROM ledger_rows WHERE name = $1").await?;
        // One statement, hence one transaction. The keys of both parts differ.
        let put = client
            .prepare(
                "WITH gone AS (DELETE FROM ledger_rows \
                 USING unnest($1::text[], $2::bytea[]) AS old (name, key) \
                 WHERE ledger_rows.name = old.name AND ledger_rows.key = old.key) \
                 INSERT INTO ledger_rows (name, key, value) \
                 SELECT * FROM unnest($3::text[], $4::bytea[], $5::bytea[]) \
                 ON CONFLICT (name, key) DO UPDATE SET value = excluded.value",
            )
            .await?;
        Ok(Self { client, get, ascending, descending, count, put })
    }
}

/// Refuses a database on which a charge could get lost, or a result be logged.
pub(crate) async fn check_settings(client: &Client) -> Result<(), PostgresError> {
    let row = client
        .query_one(
            "SELECT current_setting('fsync'), current_setting('full_page_writes'), \
             current_setting('log_statement'), \
             coalesce(current_setting('log_parameter_max_length', true), '-1'), pg_is_in_recovery()",
            &[],
        )
        .await?;
    for (place, setting) in [(0, "fsync"), (1, "full_page_writes")] {
        let value: String = row.get(place);
        if value != "on" {
            return Err(PostgresError::Setting { setting, value, needed: "on" });
        }
    }
    let (logged, length): (String, String) = (row.get(2), row.get(3));
    if ["mod", "all"].contains(&logged.as_str()) && !["0", "0B"].contains(&length.as_str()) {
        return Err(PostgresError::Logging { value: logged });
    }
    if row.get(4) {
        return Err(PostgresError::Standby);
    }
    Ok(())
}

/// Makes the tables if they are missing. Only the holder of the lock may call it.
pub(crate) async fn make_tables(client: &Client) -> Result<(), PostgresError> {
    client
        .batch_execute(&format!(
            "CREATE SCHEMA IF NOT EXISTS concilium_ledger; \
             REVOKE ALL ON SCHEMA concilium_ledger FROM PUBLIC; \
             CREATE TABLE IF NOT EXISTS concilium_ledger.holder ( \
                 one boolean PRIMARY KEY DEFAULT true CHECK (one), \
                 layout integer NOT NULL, \
                 generation bigint NOT NULL); \
             INSERT INTO concilium_ledger.holder (layout, generation) VALUES ({LAYOUT}, 0) \
                 ON CONFLICT DO NOTHING; \
             CREATE TABLE IF NOT EXISTS concilium_ledger.ledger_rows ( \
                 name text COLLATE \"C\" NOT NULL, \
                 key bytea NOT NULL, \
                 value bytea NOT NULL, \
                 PRIMARY KEY (name, key))"
        ))
        .await?;
    let found: i32 = client.query_one("SELECT layout FROM concilium_ledger.holder", &[]).await?.get(0);
    if found == LAYOUT { Ok(()) } else { Err(PostgresError::Layout { found, supported: LAYOUT }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        PostgresOptions::new(url, None, None).err().unwrap().to_string()
    }

    #[test]
    fn urls_are_checked_and_no_password_is_shown() {
        let password = Zeroizing::new("geheim".to_owned());
        let options = PostgresOptions::new("postgres://ledger@localhost/concilium", Some(&password), None);
        assert_eq!(options.unwrap().place(), "postgres://ledger@localhost/concilium");
        let options = PostgresOptions::new("postgresql:///concilium?host=/run/postgresql", None, None);
        assert_eq!(options.unwrap().place(), "postgres:///run/postgresql/concilium");

        let text = refusal("postgres://ledger:geheim@localhost/concilium");
        assert!(text.contains("name a file") && !text.contains("geheim"), "{text}");
        assert!(refusal("postgres://ledger@db.example/concilium").contains("db.example"));
        assert!(refusal("postgres://ledger@10.0.0.7/concilium").contains("10.0.0.7"));
        // What is connected to counts, not what it is called.
        assert!(refusal("postgres://ledger@localhost/concilium?hostaddr=10.0.0.7").contains("10.0.0.7"));
        assert!(refusal("postgres://localhost").contains("no database"));
        assert!(refusal("host=localhost").contains("postgres://"));
        assert!(refusal("postgres://localhost/x?sslmode=never").contains("form"));
    }

    #[test]
    fn tls_is_required_over_a_network_whatever_the_url_says() {
        let authorities = || Some(vec![]);
        for host in ["db.example", "localhost", "127.0.0.1", "[::1]"] {
            for mode in ["", "?sslmode=disable", "?sslmode=prefer", "?sslmode=require"] {
                let url = format!("postgres://ledger@{host}/concilium{mode}");
                let options = PostgresOptions::new(&url, None, authorities()).unwrap();
                assert_eq!(options.config.get_ssl_mode(), SslMode::Require, "{url}");
                assert!(options.tls.is_some(), "{url}");
            }
        }
        let socket = "postgres://ledger@/concilium?host=/run/postgresql&sslmode=require";
        let options = PostgresOptions::new(socket, None, authorities()).unwrap();
        assert_eq!(options.config.get_ssl_mode(), SslMode::Disable);
    }
}
