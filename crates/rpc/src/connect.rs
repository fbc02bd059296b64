//! Connections with the options that Concilium needs, and errors that say what to do.
//!
//! HTTP/2 flow control is the classic way for two peers to wait for each other: each stops reading
//! while it waits to write. The windows here hold more than what is in flight at a time, messages are
//! small ([`crate::chunk`]), and a server's sends never wait ([`crate::lane`]).

use std::{
    error::Error,
    io,
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Server},
};

use crate::{
    accept::{GRPC_PROTOCOLS, TlsIncoming},
    reload::ReloadableTls,
    tls::{TlsError, TlsMaterial},
};

/// HTTP/2 window of one stream, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// HTTP/2 window of one connection, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Largest HTTP/2 frame that is accepted, in bytes: one chunk with its framing fits.
const FRAME_BYTES: u32 = 1 << 19;

/// How long a TCP and TLS connection may take to come about.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after which an idle TCP connection is probed, so that a dead peer is noticed and a firewall
/// does not forget the connection.
pub(crate) const TCP_KEEPALIVE: Duration = Duration::from_secs(20);

/// Pause between HTTP/2 pings on connections of clients and owners.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long a ping may stay unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Calls that one connection may have open.
const MAX_STREAMS: u32 = 128;

/// Why a server was not reached.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is not `host:port`.
    #[error("the address `{address}` of server {server} is not of the form host:port")]
    Address {
        /// Index of the server.
        server: u8,
        /// The address.
        address: String,
    },
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The settings were refused.
    #[error("cannot set up TLS to server {server}: {reason}")]
    Settings {
        /// Index of the server.
        server: u8,
        /// What the transport says.
        reason: String,
    },
    /// Nothing answers there.
    #[error("server {server} at {address} does not answer: {reason}; check the address and that it runs")]
    Unreachable {
        /// Index of the server.
        server: u8,
        /// The address.
        address: String,
        /// What the transport says.
        reason: String,
    },
    /// The other side hung up. In TLS 1.3 a server looks at our certificate only after the handshake
    /// is done on our side, and its alert may be lost when it closes the connection.
    #[error(
        "server {server} at {address} closed the connection: {reason}; \
         if it goes on, ask its operator whether it accepts `{certificate}`"
    )]
    HungUp {
        /// Index of the server.
        server: u8,
        /// The address.
        address: String,
        /// What the transport says.
        reason: String,
        /// File of our certificate.
        certificate: PathBuf,
    },
    /// The TLS handshake failed: the wrong server, authority or certificate.
    #[error("TLS with server {server} at {address} failed: {reason}; {remedy}")]
    Handshake {
        /// Index of the server.
        server: u8,
        /// The address.
        address: String,
        /// What the transport says.
        reason: String,
        /// Which side and file to look at.
        remedy: String,
    },
}

/// Connection settings for the server of this index at `address` (`host:port`).
///
/// # Errors
/// [`ConnectError::Address`], [`ConnectError::Tls`] or [`ConnectError::Settings`].
pub fn endpoint(server: u8, address: &str, tls: &TlsMaterial) -> Result<Endpoint, ConnectError> {
    // HTTP/2 pings tell a client that waits for its result that the server still lives.
    Ok(quiet_endpoint(server, address, tls)?
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// [`endpoint`] without HTTP/2 pings: a lane does not answer pings while it computes.
pub(crate) fn quiet_endpoint(server: u8, address: &str, tls: &TlsMaterial) -> Result<Endpoint, ConnectError> {
    let client_tls = tls.client_tls(server)?;
    let wrong = || ConnectError::Address { server, address: address.to_owned() };
    // `Endpoint` would take a path, a user name or a missing port without complaint.
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    if host.is_empty() || host.contains(['/', '@', '?', '#']) || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(|_| wrong())?;
    endpoint
        .tls_config(client_tls)
        .map(|endpoint| {
            endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .tcp_keepalive(Some(TCP_KEEPALIVE))
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES)
        })
        .map_err(|error| ConnectError::Settings { server, reason: describe(&error) })
}

/// Connects to the server of this index at `address` (`host:port`) and verifies that it is that
/// server.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(server: u8, address: &str, tls: &TlsMaterial) -> Result<Channel, ConnectError> {
    let endpoint = endpoint(server, address, tls)?;
    endpoint.connect().await.map_err(|error| explain(server, address, tls, &error))
}

/// Channels to the three servers, by index. Each connects on first use and again after a failure;
/// errors then come as the status of a call, see [`explain`].
///
/// # Errors
/// [`ConnectError`] if an address or the TLS files are unusable. Must run within a tokio runtime.
pub fn connect_lazily(addresses: &[String; 3], tls: &TlsMaterial) -> Result<[Channel; 3], ConnectError> {
    let channel = |server: u8| {
        endpoint(server, &addresses[usize::from(server)], tls).map(|endpoint| endpoint.connect_lazy())
    };
    Ok([channel(0)?, channel(1)?, channel(2)?])
}

/// Channels to the three servers that a program keeps while its certificate changes: made anew with the
/// one in use.
pub struct ReloadedChannels {
    addresses: [String; 3],
    tls: ReloadableTls,
    made: Mutex<(Arc<TlsMaterial>, [Channel; 3])>,
}

impl ReloadedChannels {
    /// As [`connect_lazily`].
    ///
    /// # Errors
    /// As [`connect_lazily`]. Must run within a tokio runtime.
    pub fn new(addresses: &[String; 3], tls: ReloadableTls) -> Result<Self, ConnectError> {
        let material = tls.current();
        let channels = connect_lazily(addresses, &material)?;
        Ok(Self { addresses: addresses.clone(), tls, made: Mutex::new((material, channels)) })
    }

    /// The channel to the server of this index. Must run within a tokio runtime.
    ///
    /// # Errors
    /// As [`connect_lazily`].
    ///
    /// # Panics
    /// If `server` is above 2.
    pub fn to(&self, server: usize) -> Result<Channel, ConnectError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let material = self.tls.current();
        if !Arc::ptr_eq(&made.0, &material) {
            let channels = connect_lazily(&self.addresses, &material)?;
            *made = (material, channels);
        }
        Ok(made.1[server].clone())
    }
}

/// What a transport error means: nobody there, or the wrong certificate on one of the two sides.
pub fn explain(server: u8, address: &str, tls: &TlsMaterial, error: &(dyn Error + 'static)) -> ConnectError {
    let reason = describe(error);
    let files = tls.files();
    // The text of rustls: there is no typed way through tonic and hyper.
    let theirs = ["UnknownIssuer", "BadSignature", "invalid peer certificate: UnknownRevocationStatus"];
    let ours = ["received fatal alert"];
    let hung_up = ["operation was canceled", "connection closed", "broken pipe", "connection reset"];
    let alert = |name: &str| reason.contains(&format!("received fatal alert: {name}"));
    let (file, identity) = (files.certificate.display(), tls.identity());
    let remedy = if reason.contains("NotValidForName") || reason.contains("not valid for name") {
        format!("another server answers there: check the address of server {server}")
    } else if reason.contains("invalid peer certificate: Expired")
        || reason.contains("invalid peer certificate: certificate expired")
    {
        format!(
            "the certificate of server {server} has expired: tell its operator to renew it, or set this \
             machine's clock"
        )
    } else if reason.contains("invalid peer certificate: NotValidYet")
        || reason.contains("invalid peer certificate: certificate not valid yet")
    {
        format!(
            "the certificate of server {server} is not valid yet: set this machine's clock or that server's"
        )
    } else if alert("CertificateExpired") {
        format!(
            "that server says that our certificate `{file}` of {identity} has expired: renew it, or compare \
             that server's clock with this one"
        )
    } else if alert("UnknownCA") || alert("DecryptError") {
        format!(
            "that server does not trust the authority of our certificate `{file}` of {identity}: use one that \
             an authority in that server's `tls.ca` issued"
        )
    } else if theirs.iter().any(|text| reason.contains(text)) {
        format!("that server's certificate is not of the authority in `{}`", files.ca.display())
    } else if ours.iter().any(|text| reason.contains(text)) {
        format!(
            "that server refuses our certificate `{file}` of {identity}: use one of its authority that has not \
             expired"
        )
    } else if reason.contains("invalid peer certificate") {
        "that server's certificate is not usable: tell its operator".to_owned()
    } else if hung_up.iter().any(|text| reason.to_ascii_lowercase().contains(text)) {
        let certificate = files.certificate.clone();
        return ConnectError::HungUp { server, address: address.to_owned(), reason, certificate };
    } else {
        return ConnectError::Unreachable { server, address: address.to_owned(), reason };
    };
    ConnectError::Handshake { server, address: address.to_owned(), reason, remedy }
}

/// A gRPC server for clients, owners and operators. It knows no TLS: give it the connections of
/// [`incoming`].
pub fn server_builder() -> Server {
    quiet_server_builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
}

/// [`server_builder`] without HTTP/2 pings: a lane does not answer pings while it computes.
pub(crate) fn quiet_server_builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
}

/// The connections of `listener` over mutual TLS, with the socket options of this module. Must run
/// within a tokio runtime.
///
/// # Errors
/// What the system says about the socket, or that the certificate is not a server's.
pub fn incoming(listener: TcpListener, tls: &ReloadableTls) -> io::Result<TlsIncoming> {
    TlsIncoming::new(listener, tls, GRPC_PROTOCOLS)
}

/// An error and its causes in one line.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        // A status prints its code and causes, too; the causes follow here anyway.
        let part = match error.downcast_ref::<Status>() {
            Some(status) => status.message().to_owned(),
            None => error.to_string(),
        };
        // The transport's own copy of a status repeats code and causes in its text, too.
        if !part.starts_with("code: '") && !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
