//! Why a lane fails.

use std::{io, time::Duration};

use thiserror::Error;

use crate::{connect::ConnectError, identity::Identity, status::RpcError};

/// Why a lane cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaneError {
    /// The certificate is not a server's.
    #[error("{identity} cannot run a lane; use the certificate of a server")]
    NotAServer {
        /// Whose certificate it is.
        identity: Identity,
    },
    /// The runtime or the socket cannot be set up.
    #[error("cannot serve the peer port: {source}")]
    Setup {
        /// The reason that the system gives.
        source: io::Error,
    },
    /// The next server was not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The next server refused the lane, or its introduction was refused here.
    #[error("server {peer} and this server do not agree on a lane: {source}")]
    Refused {
        /// Index of the peer.
        peer: u8,
        /// Why.
        source: RpcError,
    },
    /// A peer did not join, or sent nothing, in time.
    #[error("server {peer} did not {step} within {waited_ms} ms; check that it runs and reaches this server")]
    TimedOut {
        /// Index of the peer.
        peer: u8,
        /// What it was expected to do.
        step: &'static str,
        /// How long this server waited, in milliseconds.
        waited_ms: u64,
    },
    /// Another thread ended the wait ([`super::Interrupt`]).
    #[error("the lane was given up while it waited for a message")]
    Interrupted,
    /// There is no link to the peer.
    #[error("there is no link to server {peer}; connect first")]
    NotConnected {
        /// Index of the peer.
        peer: u8,
    },
    /// The link broke.
    #[error("lost server {peer}: {reason}; the lane must connect again")]
    Disconnected {
        /// Index of the peer.
        peer: u8,
        /// What the transport reported.
        reason: String,
    },
    /// A certificate that the link was opened with has ended.
    #[error(
        "a certificate of the link to server {peer} ended at {ended}; the lane must connect again, with \
         renewed certificates"
    )]
    CertificateEnded {
        /// Index of the peer.
        peer: u8,
        /// When it ended.
        ended: String,
    },
    /// The previous server has dialled again, so it has given up the old link.
    #[error("server {peer} dialled again and gave up the former link; the lane must connect again")]
    Replaced {
        /// Index of the peer.
        peer: u8,
    },
}

impl LaneError {
    /// Index of the peer that the error is about.
    pub fn peer(&self) -> Option<u8> {
        match self {
            Self::Refused { peer, .. }
            | Self::TimedOut { peer, .. }
            | Self::NotConnected { peer }
            | Self::Disconnected { peer, .. }
            | Self::CertificateEnded { peer, .. }
            | Self::Replaced { peer } => Some(*peer),
            Self::Connect(
                ConnectError::Unreachable { server, .. }
                | ConnectError::HungUp { server, .. }
                | ConnectError::Handshake { server, .. }
                | ConnectError::Address { server, .. }
                | ConnectError::Settings { server, .. },
            ) => Some(*server),
            _ => None,
        }
    }

    /// The peer did not take this step within `patience`.
    pub(super) fn timed_out(peer: u8, step: &'static str, patience: Duration) -> Self {
        let waited_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        Self::TimedOut { peer, step, waited_ms }
    }

    /// Whether a new attempt may succeed without a change of configuration.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Connect(error) => {
                matches!(error, ConnectError::Unreachable { .. } | ConnectError::HungUp { .. })
            }
            Self::Refused { source, .. } => source.retryable(),
            _ => true,
        }
    }
}

impl From<LaneError> for RpcError {
    fn from(error: LaneError) -> Self {
        match error.peer() {
            Some(peer) => {
                RpcError::PeerUnavailable { peer: format!("server {peer}"), step: error.to_string() }
            }
            None => RpcError::Internal { problem: error.to_string() },
        }
    }
}
