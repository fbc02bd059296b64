//! The ledger's log for auditors: every entry, and a signed statement that it is all.

use std::sync::Arc;

use concilium_privacy::{LedgerEntry, LedgerError, LedgerHead};
use concilium_rpc::signature::Purpose;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::export_log_response::Message;
use concilium_rpc::v1::{ExportLogResponse, LedgerStatement, LedgerTask, LogEntries, SignedLedgerStatement};
use prost::Message as _;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tonic::Status;

use crate::context::Context;
use crate::kept::ledger_error;
use crate::models::internal;

/// Version of the library that draws the noise, for the auditor who compares it with known faults.
const OPENDP_VERSION: &str = "0.16.0";

/// Entries of one message: some tens of kilobytes.
const PAGE: usize = 256;

/// Messages that wait for a slow reader.
const AHEAD: usize = 4;

/// Sends the log as it stands now.
pub(crate) fn stream(context: Arc<Context>) -> Receiver<Result<ExportLogResponse, Status>> {
    let (sender, receiver) = channel(AHEAD);
    // The ledger may wait for the disk.
    tokio::task::spawn_blocking(move || {
        if let Err(error) = send(&context, &sender) {
            // Nobody may be there any more to be told.
            let _ = sender.blocking_send(Err(error.into()));
        }
    });
    receiver
}

fn send(context: &Context, sender: &Sender<Result<ExportLogResponse, Status>>) -> Result<(), RpcError> {
    let head = context.ledger.head().map_err(ledger_error)?;
    let mut found = LedgerHead::EMPTY;
    while found.entries < head.entries {
        let at_most = usize::try_from(head.entries - found.entries).unwrap_or(PAGE).min(PAGE);
        let page = context.ledger.entries(found.entries, at_most).map_err(ledger_error)?;
        if page.is_empty() {
            break;
        }
        let entries: Vec<_> = page.iter().map(LedgerEntry::encode).collect();
        for entry in &entries {
            found = LedgerHead { entries: found.entries + 1, hash: LedgerEntry::chain(&found.hash, entry) };
        }
        let entries = entries.into_iter().map(Into::into).collect();
        if !deliver(sender, Message::Entries(LogEntries { entries })) {
            return Ok(());
        }
    }
    // Nothing is signed that was not read and hashed just now.
    if found != head {
        return Err(ledger_error(LedgerError::corrupt(
            "of this server",
            "the log is not what its head says",
        )));
    }
    deliver(sender, Message::Statement(statement(context, head)?));
    Ok(())
}

/// Whether somebody still reads.
fn deliver(sender: &Sender<Result<ExportLogResponse, Status>>, message: Message) -> bool {
    sender.blocking_send(Ok(ExportLogResponse { message: Some(message) })).is_ok()
}

fn statement(context: &Context, head: LedgerHead) -> Result<SignedLedgerStatement, RpcError> {
    let tasks = context.tasks.all().map(|task| {
        let (epoch_basis, epoch_attested_by) = task.wire_declaration();
        LedgerTask {
            task: task.name().to_owned(),
            epoch: task.policy.epoch,
            cap_nano_rho: task.policy.cap_total.units(),
            delta: task.policy.delta.to_string(),
            epoch_basis: epoch_basis.into(),
            epoch_attested_by,
        }
    });
    let statement = LedgerStatement {
        entries: head.entries,
        head_hash: head.hash.to_vec().into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        opendp_version: OPENDP_VERSION.to_owned(),
        tasks: tasks.collect(),
    };
    let statement = statement.encode_to_vec();
    let now_ms = i64::try_from(context.clock.now_ms()).unwrap_or(i64::MAX);
    let signature = context.tls.current().sign(Purpose::LedgerExport, &statement, now_ms);
    Ok(SignedLedgerStatement { statement: statement.into(), signature: Some(signature.map_err(internal)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_noise_library_is_the_one_that_is_built() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let lock = std::fs::read_to_string(lock).expect("the lock file is there");
        assert!(lock.contains(&format!("name = \"opendp\"\nversion = \"{OPENDP_VERSION}\"\n")));
    }
}
