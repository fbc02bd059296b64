//! How each server is and what it logs; for operators.

use std::time::Duration;

use concilium_rpc::model_set::model_set_digest;
use concilium_rpc::v1::{
    FindModelSetsRequest, FindModelSetsResponse, GetStatusRequest, GetStatusResponse, ResumeTaskRequest,
    ResumeTaskResponse, SetLogFilterRequest, SetLogFilterResponse, operations_client::OperationsClient,
};
use tonic::transport::Channel;

use crate::connection::{CallError, Connection, ServerError};

/// The servers that a question goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// All three.
    All,
    /// The one of this index, 0 to 2.
    One(u8),
}

impl Servers {
    /// Makes a call to each of these servers at once; one result for each.
    pub(crate) async fn ask<T, F>(
        self,
        connection: &Connection,
        name: &'static str,
        ask: impl Fn(u8, Channel) -> F,
    ) -> Vec<Result<T, ServerError>>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        match self {
            Servers::All => connection.call_all(name, ask).await.into(),
            Servers::One(server) => vec![connection.call(server, name, |channel| ask(server, channel)).await],
        }
    }
}

/// Reads the state of servers, one result for each server asked.
pub async fn statuses(
    connection: &Connection,
    servers: Servers,
) -> Vec<Result<GetStatusResponse, ServerError>> {
    let ask = |server: u8, channel: Channel| async move {
        let answer = OperationsClient::new(channel).get_status(GetStatusRequest {}).await?.into_inner();
        check_sender(server, answer.party).map(|()| answer)
    };
    servers.ask(connection, "GetStatus", ask).await
}

/// Sets what servers log, for `duration` in whole seconds or else until they restart; one result for
/// each server asked.
pub async fn set_log_filter(
    connection: &Connection,
    servers: Servers,
    filter: &str,
    duration: Option<Duration>,
) -> Vec<Result<SetLogFilterResponse, ServerError>> {
    // A time that a server would refuse stays one.
    let duration_s =
        duration.map_or(0, |duration| u32::try_from(duration.as_secs().max(1)).unwrap_or(u32::MAX));
    let request = SetLogFilterRequest { filter: Some(filter.to_owned()), duration_s };
    log_filter_call(connection, servers, request).await
}

/// Reads what servers log, one result for each server asked.
pub async fn log_filters(
    connection: &Connection,
    servers: Servers,
) -> Vec<Result<SetLogFilterResponse, ServerError>> {
    log_filter_call(connection, servers, SetLogFilterRequest::default()).await
}

async fn log_filter_call(
    connection: &Connection,
    servers: Servers,
    request: SetLogFilterRequest,
) -> Vec<Result<SetLogFilterResponse, ServerError>> {
    let ask = |server: u8, channel: Channel| {
        let request = request.clone();
        async move {
            let answer = OperationsClient::new(channel).set_log_filter(request).await?.into_inner();
            check_sender(server, answer.party).map(|()| answer)
        }
    };
    servers.ask(connection, "SetLogFilter", ask).await
}

/// Lets a task go on that servers have stopped because the ledgers do not belong together; one result for
/// each server asked.
pub async fn resume_task(
    connection: &Connection,
    servers: Servers,
    task: &str,
    reason: &str,
) -> Vec<Result<ResumeTaskResponse, ServerError>> {
    let request = ResumeTaskRequest { task: task.to_owned(), reason: reason.to_owned() };
    let ask = |server: u8, channel: Channel| {
        let request = request.clone();
        async move {
            let answer = OperationsClient::new(channel).resume_task(request).await?.into_inner();
            check_sender(server, answer.party).map(|()| answer)
        }
    };
    servers.ask(connection, "ResumeTask", ask).await
}

/// Resolves the model set digest of a receipt, or its first bytes, into the versions that answered; one
/// result for each server asked. A set whose digest is not that of its models is refused as malformed.
pub async fn model_sets(
    connection: &Connection,
    servers: Servers,
    digest: &[u8],
) -> Vec<Result<FindModelSetsResponse, ServerError>> {
    let request = FindModelSetsRequest { digest: digest.to_vec().into() };
    let ask = |server: u8, channel: Channel| {
        let request = request.clone();
        async move {
            let answer = OperationsClient::new(channel).find_model_sets(request.clone()).await?.into_inner();
            check_sender(server, answer.party)?;
            for set in &answer.sets {
                let digest = model_set_digest(&set.task, &set.models);
                if set.digest != digest[..] || !digest.starts_with(&request.digest) {
                    return Err(CallError::Malformed("models that do not have the set's digest".to_owned()));
                }
            }
            Ok(answer)
        }
    };
    servers.ask(connection, "FindModelSets", ask).await
}

/// An answer must say that it comes from the server that was asked.
pub(crate) fn check_sender(server: u8, party: u32) -> Result<(), CallError> {
    if party == u32::from(server) {
        Ok(())
    } else {
        Err(CallError::Malformed(format!("an answer of server {party}")))
    }
}
