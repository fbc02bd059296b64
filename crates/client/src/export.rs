//! The whole log of a server's ledger, with its signed statement.

use bytes::Bytes;
use concilium_rpc::v1::{
    ExportLogRequest, SignedLedgerStatement, budget_client::BudgetClient, export_log_response::Message,
};
use tonic::transport::Channel;

use crate::connection::{CallError, Connection, ServerError};

/// A log as a server sent it. Nothing of it is checked.
#[derive(Clone, Debug)]
pub struct ExportedLog {
    /// What the server says about it.
    pub statement: SignedLedgerStatement,
    /// The entries' bytes, oldest first.
    pub entries: Vec<Bytes>,
}

/// Fetches the log of one server.
///
/// # Errors
/// [`ServerError`] if the server refuses, or ends without a statement.
///
/// # Panics
/// If `server` is above 2.
pub async fn export_log(connection: &Connection, server: u8) -> Result<ExportedLog, ServerError> {
    connection.call(server, "ExportLog", receive).await
}

async fn receive(channel: Channel) -> Result<ExportedLog, CallError> {
    let malformed = |problem: &str| CallError::Malformed(problem.to_owned());
    let mut stream = BudgetClient::new(channel).export_log(ExportLogRequest {}).await?.into_inner();
    let mut entries = Vec::new();
    while let Some(response) = stream.message().await? {
        match response.message {
            Some(Message::Entries(page)) => entries.extend(page.entries),
            Some(Message::Statement(statement)) => {
                return match stream.message().await? {
                    None => Ok(ExportedLog { statement, entries }),
                    Some(_) => Err(malformed("something after the log's statement")),
                };
            }
            None => return Err(malformed("an empty message in the log")),
        }
    }
    Err(malformed("a log without a statement at its end"))
}
