//! Where this server's ledger is: a file in its data folder, or a database that several hosts reach.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use concilium_client_library::terminal::{Failure, FailureClass};
use concilium_postgres::{PostgresOptions, PostgresStore, load_certificates};
use concilium_privacy::{Ledger, LedgerError, RedbLedger, StoredLedger};
use zeroize::Zeroizing;

use crate::config::{LedgerSection, ServerConfig};

/// Pause between attempts to take over a ledger that another host has.
const TAKE_OVER_PAUSE: Duration = Duration::from_secs(1);

/// How often a server looks whether its ledger is still its own.
const OWNER_CHECK: Duration = Duration::from_secs(2);

/// Largest file of a password, in bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// Opens the ledger. A missing one is started anew, with nothing spent, on a server that has never held a
/// model, and so has never answered a request; on any other only if `new_ledger` says so.
///
/// While another host has the database's ledger, this waits: the host is a standby, which serves nobody and
/// takes over when the other has ended.
///
/// # Errors
/// What is wrong with the file, the database or the settings.
pub(crate) async fn open(config: &ServerConfig, new_ledger: bool) -> anyhow::Result<Arc<dyn Ledger>> {
    let may_create = new_ledger || !config.data_directory.join("models.redb").exists();
    match &config.ledger.url {
        Some(url) => open_database(url, &config.ledger, may_create).await,
        None => {
            let path = ledger_file(config);
            Ok(Arc::new(match RedbLedger::open(&path) {
                Err(LedgerError::Missing { .. }) if may_create => RedbLedger::create(&path)?,
                Err(LedgerError::Missing { place }) => return Err(lost(&place).into()),
                opened => opened?,
            }))
        }
    }
}

/// The ledger's file, on a server without a database.
pub(crate) fn ledger_file(config: &ServerConfig) -> PathBuf {
    config.data_directory.join("ledger.redb")
}

/// Waits until another host has taken the ledger over, which ends only with a database.
///
/// What was reserved here may then be spent there, so nothing can be charged here any more. A server that is
/// started again waits for its turn.
pub(crate) async fn taken_over(ledger: Arc<dyn Ledger>) -> LedgerError {
    loop {
        tokio::time::sleep(OWNER_CHECK).await;
        let asked = Arc::clone(&ledger);
        if let Ok(Err(error @ LedgerError::InUse { .. })) =
            tokio::task::spawn_blocking(move || asked.head()).await
        {
            return error;
        }
    }
}

fn lost(place: &str) -> Failure {
    let message = format!(
        "the ledger {place} is missing, but this server has held models: what was spent is in the ledger, so put it \
         back; if it is lost for good, start once with --new-ledger, and the other servers' totals are taken over"
    );
    Failure::message(FailureClass::Local, message)
}

async fn open_database(
    url: &str,
    section: &LedgerSection,
    may_create: bool,
) -> anyhow::Result<Arc<dyn Ledger>> {
    let options = options(url, section)?;
    let (mut told, mut create) = (false, false);
    loop {
        let attempt = options.clone();
        // The database may take its time, and the store's methods wait.
        let opened = tokio::task::spawn_blocking(move || {
            let store = PostgresStore::open(attempt)?;
            if create { StoredLedger::create_in(store) } else { StoredLedger::open_in(store) }
        });
        match opened.await? {
            Ok(ledger) => {
                tracing::info!(ledger = options.place(), "the ledger is open");
                return Ok(Arc::new(ledger));
            }
            Err(LedgerError::Missing { .. }) if may_create && !create => create = true,
            Err(LedgerError::Missing { place }) => return Err(lost(&place).into()),
            Err(LedgerError::InUse { place }) => {
                // Before a creation it may be this host's own last session, which is about to end.
                if !told && !create {
                    told = true;
                    tracing::warn!(
                        ledger = place,
                        "another host has the ledger; this one waits and takes over when that one ends"
                    );
                }
                tokio::time::sleep(TAKE_OVER_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn options(url: &str, section: &LedgerSection) -> anyhow::Result<PostgresOptions> {
    let password = match &section.password_file {
        Some(path) => {
            let context = || format!("cannot read `ledger.password_file` {}", path.display());
            let length = fs::metadata(path).with_context(context)?.len();
            anyhow::ensure!(length <= MAX_PASSWORD_BYTES, "{} is too long for a password", path.display());
            let text = Zeroizing::new(fs::read_to_string(path).with_context(context)?);
            Some(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
        }
        None => None,
    };
    let authorities = section.ca.as_deref().map(load_certificates).transpose()?;
    PostgresOptions::new(url, password.as_ref(), authorities).context("`ledger.url` cannot be used")
}
