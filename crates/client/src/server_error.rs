//! Why a server did not do what it was asked, and which of several such errors to tell.

use std::time::Duration;

use concilium_rpc::{connect::ConnectError, status::RpcError};
use thiserror::Error;

use crate::terminal::FailureClass;

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
    /// The server was not waited for any longer, because another one had failed.
    #[error("server {server} at {address} was not waited for, because another server had failed")]
    GivenUp {
        /// Index of the server.
        server: u8,
        /// Its address.
        address: String,
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
            | Self::GivenUp { server, .. }
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
            // A server that hung up was restarted, or refuses the certificate and its reason was lost: both
            // are told apart by calling it again.
            Self::Connection { source, .. } => {
                matches!(**source, ConnectError::Unreachable { .. } | ConnectError::HungUp { .. })
            }
            Self::Refused { source, .. } => source.retryable(),
            Self::TimedOut { .. } | Self::GivenUp { .. } => true,
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
            Self::TimedOut { .. } | Self::GivenUp { .. } => FailureClass::Unavailable,
            Self::Connection { .. } | Self::Malformed { .. } => FailureClass::Refused,
        }
    }

    /// How much the error says about the cause, when several servers fail for one cause: the one that
    /// knows says why, the others only that they wait.
    fn weight(&self) -> u8 {
        match self {
            Self::Refused { source, .. } => match **source {
                RpcError::InProgress { .. } => 1,
                RpcError::PeerUnavailable { .. } => 2,
                RpcError::Overloaded { .. } => 3,
                RpcError::Unrecognised { .. } | RpcError::Internal { .. } => 4,
                _ => 7,
            },
            Self::Malformed { .. } => 6,
            Self::Connection { .. } => 5,
            Self::TimedOut { .. } => 2,
            Self::GivenUp { .. } => 0,
        }
    }
}

/// The error that says most about the cause; `None` if there is none.
pub fn most_useful(errors: impl IntoIterator<Item = ServerError>) -> Option<ServerError> {
    // Of equal ones the first server's: `max_by_key` alone would take the last.
    errors.into_iter().reduce(|best, next| if next.weight() > best.weight() { next } else { best })
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
            scope: "client".into(),
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
    fn a_server_that_hung_up_may_answer_next_time() {
        let hung_up = ConnectError::HungUp {
            server: 1,
            address: "host:1".into(),
            reason: "connection reset".into(),
            certificate: "alice.pem".into(),
        };
        let error = ServerError::Connection { server: 1, source: Box::new(hung_up) };
        assert!(error.retryable());
        assert_eq!(error.class(), FailureClass::Unavailable);
        let refused = ConnectError::Handshake {
            server: 1,
            address: "host:1".into(),
            reason: "received fatal alert: UnknownCA".into(),
            remedy: "use another certificate".into(),
        };
        let error = ServerError::Connection { server: 1, source: Box::new(refused) };
        assert!(!error.retryable());
        assert_eq!(error.class(), FailureClass::Refused);
    }

    #[test]
    fn invalid_arguments_are_input_errors() {
        let shape =
            RpcError::ShapeMismatch { what: "input".into(), expected: "[64]".into(), got: "[63]".into() };
        assert_eq!(refused(0, shape).class(), FailureClass::Input);
        let internal = RpcError::Internal { problem: "disk".into() };
        assert_eq!(refused(0, internal).class(), FailureClass::Unavailable);
    }
}
