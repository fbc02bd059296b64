//! Mutually authenticated channels to the three servers, and what can go wrong with one of them.

use std::{future::Future, time::Duration};

use concilium_rpc::{
    connect::{self, ConnectError},
    identity::Identity,
    status::RpcError,
    tls::TlsMaterial,
    v1::{ListTasksRequest, prediction_client::PredictionClient},
};
use thiserror::Error;
use tokio::sync::watch;
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    config::ConnectionConfig,
    retry::RetryPolicy,
    task::{Task, TaskError, agree},
    terminal::FailureClass,
};

/// Most tasks that one server may announce.
const MAXIMUM_TASKS: usize = 1024;

/// Why one server did not do what it was asked. The message names the server and its address.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The server was not reached, or the wrong one answered.
    #[error("{source}")]
    Connection {
        /// Index of the server.
        server: u8,
        /// What failed.
        source: Box<ConnectError>,
    },
    /// The server refused the call.
    #[error("server {server} at {address}: {source}")]
    Refused {
        /// Index of the server.
        server: u8,
        /// Its address.
        address: String,
        /// The server's reason.
        source: Box<RpcError>,
        /// How long the server asks to wait before a repeat.
        retry_after: Option<Duration>,
    },
    /// The server did not answer in time.
    #[error(
        "server {server} at {address} did not answer {call} within {limit_ms} ms; try again, raise \
         `request_timeout_ms`, or ask its operator"
    )]
    TimedOut {
        /// Index of the server.
        server: u8,
        /// Its address.
        address: String,
        /// The call.
        call: &'static str,
        /// The time limit.
        limit_ms: u64,
    },
    /// The server's answer breaks the interface.
    #[error(
        "server {server} at {address} sent {problem}; it is faulty or of another version, tell its \
         operator"
    )]
    Malformed {
        /// Index of the server.
        server: u8,
        /// Its address.
        address: String,
        /// What is wrong.
        problem: String,
    },
}

impl ServerError {
    /// Index of the server.
    pub fn server(&self) -> u8 {
        match self {
            Self::Connection { server, .. }
            | Self::Refused { server, .. }
            | Self::TimedOut { server, .. }
            | Self::Malformed { server, .. } => *server,
        }
    }

    /// The server's reason, if it gave one.
    pub fn refusal(&self) -> Option<&RpcError> {
        match self {
            Self::Refused { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether the same call may succeed when it is repeated.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Connection { source, .. } => matches!(**source, ConnectError::Unreachable { .. }),
            Self::Refused { source, .. } => source.retryable(),
            Self::TimedOut { .. } => true,
            Self::Malformed { .. } => false,
        }
    }

    /// How long the server asks to wait before a repeat.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What kind of failure it is, for the exit code of a program.
    pub fn class(&self) -> FailureClass {
        use tonic::Code;
        match self {
            Self::Connection { .. } if self.retryable() => FailureClass::Unavailable,
            Self::Refused { source, .. } => match source.code() {
                _ if source.retryable() => FailureClass::Unavailable,
                Code::InvalidArgument => FailureClass::Input,
                Code::Internal | Code::Unknown | Code::Unavailable => FailureClass::Unavailable,
                _ => FailureClass::Refused,
            },
            Self::TimedOut { .. } => FailureClass::Unavailable,
            Self::Connection { .. } | Self::Malformed { .. } => FailureClass::Refused,
        }
    }

    /// How much the error says about the cause, when several servers fail for one cause: the one that
    /// knows says why, the others only that they wait.
    fn weight(&self) -> u8 {
        match self {
            Self::Refused { source, .. } => match **source {
                RpcError::InProgress { .. } => 0,
                RpcError::PeerUnavailable { .. } => 1,
                RpcError::Overloaded { .. } => 2,
                RpcError::Unrecognised { .. } | RpcError::Internal { .. } => 3,
                _ => 6,
            },
            Self::Malformed { .. } => 5,
            Self::Connection { .. } => 4,
            Self::TimedOut { .. } => 1,
        }
    }
}

/// The error that says most about the cause; `None` if there is none.
pub fn most_useful(errors: impl IntoIterator<Item = ServerError>) -> Option<ServerError> {
    // Of equal ones the first server's: `max_by_key` alone would take the last.
    errors.into_iter().reduce(|best, next| if next.weight() > best.weight() { next } else { best })
}

/// Channels to the three servers with the caller's certificate.
///
/// A channel connects at its first call and again after a failure, so opening a connection needs no
/// server.
pub struct Connection {
    config: ConnectionConfig,
    tls: TlsMaterial,
    channels: [Channel; 3],
}

impl Connection {
    /// Reads the TLS files and prepares the channels. Must run within a tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError`] if a file or an address cannot be used.
    pub fn open(config: &ConnectionConfig) -> Result<Self, ConnectError> {
        let tls = config.tls.load()?;
        let channel = |server: u8| {
            connect::endpoint(server, &config.servers[usize::from(server)], &tls)
                .map(|endpoint| endpoint.connect_timeout(config.connect_timeout()).connect_lazy())
        };
        let channels = [channel(0)?, channel(1)?, channel(2)?];
        Ok(Self { config: config.clone(), tls, channels })
    }

    /// Whose certificate is shown.
    pub fn identity(&self) -> &Identity {
        self.tls.identity()
    }

    /// The settings that were opened.
    pub fn config(&self) -> &ConnectionConfig {
        &self.config
    }

    /// Makes one call to one server within the time limit. `name` is the call's name for errors.
    ///
    /// # Errors
    /// [`ServerError`].
    ///
    /// # Panics
    /// If `server` is above 2.
    pub async fn call<T, F>(
        &self,
        server: u8,
        name: &'static str,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<T, ServerError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let channel = self.channels[usize::from(server)].clone();
        let address = || self.config.servers[usize::from(server)].clone();
        match tokio::time::timeout(self.config.request_timeout(), call(channel)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(CallError::Status(status))) => Err(self.explain(server, &status)),
            Ok(Err(CallError::Malformed(problem))) => {
                Err(ServerError::Malformed { server, address: address(), problem })
            }
            Err(_) => Err(self.timed_out(server, name)),
        }
    }

    fn timed_out(&self, server: u8, call: &'static str) -> ServerError {
        ServerError::TimedOut {
            server,
            address: self.config.servers[usize::from(server)].clone(),
            call,
            limit_ms: self.config.request_timeout_ms,
        }
    }

    /// Makes the same call to all three servers at once and waits for all of them.
    pub async fn call_all<T, F>(
        &self,
        name: &'static str,
        call: impl Fn(u8, Channel) -> F,
    ) -> [Result<T, ServerError>; 3]
    where
        F: Future<Output = Result<T, CallError>>,
    {
        self.call_all_repeating(name, &RetryPolicy::ONCE, call).await
    }

    /// As [`Self::call_all`], repeating the call to each server by itself as `retry` says.
    pub async fn call_all_repeating<T, F>(
        &self,
        name: &'static str,
        retry: &RetryPolicy,
        call: impl Fn(u8, Channel) -> F,
    ) -> [Result<T, ServerError>; 3]
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let [first, second, third] = [0, 1, 2].map(|server| self.repeat(server, name, retry, &call));
        tokio::join!(first, second, third).into()
    }

    async fn repeat<T, F>(
        &self,
        server: u8,
        name: &'static str,
        retry: &RetryPolicy,
        call: &impl Fn(u8, Channel) -> F,
    ) -> Result<T, ServerError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let mut attempt = 1;
        loop {
            let error = match self.call(server, name, |channel| call(server, channel)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = retry.pause_after(attempt, &error) else { return Err(error) };
            tracing::info!(call = name, attempt, ?pause, %error, "repeating");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// As [`Self::call_all`], but when one server fails for good, the others are waited for no longer
    /// than `grace`: of calls that need all three servers, the others may then never end.
    pub async fn call_all_until<T, F>(
        &self,
        name: &'static str,
        grace: Duration,
        call: impl Fn(u8, Channel) -> F,
    ) -> [Result<T, ServerError>; 3]
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let (failed, _) = watch::channel(false);
        let [first, second, third] =
            [0, 1, 2].map(|server| self.unless_failed(server, name, grace, &failed, &call));
        tokio::join!(first, second, third).into()
    }

    async fn unless_failed<T, F>(
        &self,
        server: u8,
        name: &'static str,
        grace: Duration,
        failed: &watch::Sender<bool>,
        call: &impl Fn(u8, Channel) -> F,
    ) -> Result<T, ServerError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let mut others = failed.subscribe();
        let given_up = async {
            if others.wait_for(|&failed| failed).await.is_ok() {
                tokio::time::sleep(grace).await;
            }
        };
        let result = tokio::select! {
            biased;
            result = self.call(server, name, |channel| call(server, channel)) => result,
            // Never reported: the error that led here says more.
            () = given_up => Err(self.timed_out(server, name)),
        };
        if result.as_ref().is_err_and(|error| !error.retryable()) {
            failed.send_replace(true);
        }
        result
    }

    /// The tasks that all three servers serve, ordered by name.
    ///
    /// # Errors
    /// [`TaskError`]: a server fails, or two of them differ in a task; the error names task, field and
    /// servers.
    pub async fn tasks(&self) -> Result<Vec<Task>, TaskError> {
        agree(self.announced().await?, None)
    }

    /// The task of this name. Differences between the servers in other tasks do not matter.
    ///
    /// # Errors
    /// As [`Self::tasks`], and [`TaskError::Unknown`].
    pub async fn task(&self, name: &str) -> Result<Task, TaskError> {
        let announced = self.announced().await?;
        let served: Vec<_> = announced[0].iter().map(|task| task.name.clone()).collect();
        agree(announced, Some(name))?
            .pop()
            .ok_or_else(|| TaskError::Unknown { task: name.to_owned(), served: served.join(", ") })
    }

    async fn announced(&self) -> Result<[Vec<concilium_rpc::v1::Task>; 3], TaskError> {
        let lists = self
            .call_all("ListTasks", |_, channel| async move {
                let answer = PredictionClient::new(channel).list_tasks(ListTasksRequest {}).await?;
                let tasks = answer.into_inner().tasks;
                if tasks.len() > MAXIMUM_TASKS {
                    return Err(CallError::Malformed(format!("{} tasks", tasks.len())));
                }
                Ok(tasks)
            })
            .await;
        Ok(all_or_most_useful(lists)?)
    }

    fn explain(&self, server: u8, status: &Status) -> ServerError {
        let address = &self.config.servers[usize::from(server)];
        // Only a failure on this side has a source; what a server sends is a code and a message.
        match std::error::Error::source(status) {
            Some(source) => ServerError::Connection {
                server,
                source: Box::new(connect::explain(server, address, &self.tls, source)),
            },
            None => {
                let source = RpcError::from_status(status);
                let asked = status.get_details_retry_info().and_then(|information| information.retry_delay);
                let retry_after = source.retry_after().or(asked);
                ServerError::Refused {
                    server,
                    address: address.clone(),
                    source: Box::new(source),
                    retry_after,
                }
            }
        }
    }
}

/// Why one call failed, before it is known which server it was.
#[derive(Debug)]
pub enum CallError {
    /// The call ended with a status.
    Status(Status),
    /// The answer breaks the interface; says what was sent.
    Malformed(String),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// The three answers, or of the errors the one that says most about the cause.
///
/// # Errors
/// [`ServerError`] if any server failed.
pub fn all_or_most_useful<T>(results: [Result<T, ServerError>; 3]) -> Result<[T; 3], ServerError> {
    let mut errors = Vec::new();
    let answers = results.map(|result| result.map_err(|error| errors.push(error)).ok());
    match (most_useful(errors), answers) {
        (None, [Some(first), Some(second), Some(third)]) => Ok([first, second, third]),
        (Some(error), _) => Err(error),
        (None, _) => unreachable!("an answer is missing only where an error was kept"),
    }
}

#[cfg(test)]
mod tests {
    use concilium_rpc::{certificates::Authority, identity::Role};

    use super::*;

    fn refused(server: u8, source: RpcError) -> ServerError {
        let source = Box::new(source);
        ServerError::Refused { server, address: format!("host{server}:1"), source, retry_after: None }
    }

    fn peer_unavailable() -> RpcError {
        RpcError::PeerUnavailable { peer: "server 2".into(), step: "plan".into() }
    }

    fn unreachable(server: u8) -> ServerError {
        let source = ConnectError::Unreachable { server, address: "host:1".into(), reason: "refused".into() };
        ServerError::Connection { server, source: Box::new(source) }
    }

    #[test]
    fn the_server_that_knows_the_cause_is_reported() {
        let exhausted = RpcError::BudgetExhausted {
            task: "digits".into(),
            epoch: 1,
            cap: "of the client".into(),
            needed_nano_rho: 2,
            left_nano_rho: 1,
        };
        let results = [
            Err(refused(0, RpcError::InProgress { request_id: "00".into() })),
            Err(refused(1, exhausted)),
            Ok(()),
        ];
        let error = all_or_most_useful(results).unwrap_err();
        assert_eq!((error.server(), error.class()), (1, FailureClass::Refused));
        assert!(!error.retryable());
        assert!(error.to_string().starts_with("server 1 at host1:1: privacy budget"), "{error}");

        let results: [Result<(), _>; 3] =
            [Err(refused(0, peer_unavailable())), Err(refused(1, peer_unavailable())), Err(unreachable(2))];
        let error = all_or_most_useful(results).unwrap_err();
        assert_eq!((error.server(), error.class()), (2, FailureClass::Unavailable));
        assert!(error.retryable());

        let results = [Ok(0), Ok(1), Ok(2)];
        assert_eq!(all_or_most_useful(results).unwrap(), [0, 1, 2]);
    }

    #[test]
    fn invalid_arguments_are_input_errors() {
        let shape =
            RpcError::ShapeMismatch { what: "input".into(), expected: "[64]".into(), got: "[63]".into() };
        assert_eq!(refused(0, shape).class(), FailureClass::Input);
        let internal = RpcError::Internal { problem: "disk".into() };
        assert_eq!(refused(0, internal).class(), FailureClass::Unavailable);
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_address() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::new(Role::Client, "alice").unwrap();
        let issued = Authority::create().unwrap().issue(&identity, &[], 1).unwrap();
        // A port that was free a moment ago and has no listener.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let config = ConnectionConfig {
            servers: [address.clone(), address.clone(), address.clone()],
            tls: issued.save(folder.path()).unwrap(),
            connect_timeout_ms: 2_000,
            request_timeout_ms: 5_000,
        };
        let connection = Connection::open(&config).unwrap();
        assert_eq!(connection.identity(), &identity);
        let error = connection.tasks().await.unwrap_err();
        assert!(error.to_string().contains(&address), "{error}");
        assert_eq!(error.class(), FailureClass::Unavailable, "{error}");
        let wrong = ConnectionConfig { servers: [address, "nowhere".into(), "x:y".into()], ..config };
        let error = Connection::open(&wrong).err().unwrap();
        assert!(error.to_string().contains("server 1"), "{error}");
    }
}
