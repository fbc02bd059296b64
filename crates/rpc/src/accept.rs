//! Accepting TLS connections with the certificate that is in use at that moment.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustls::{AlertDescription, CertificateError, Error as TlsFailure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::Stream;

use crate::{
    lane::port::{Further, Source},
    reload::ReloadableTls,
    socket::Socket,
    tls::{HANDSHAKE_TIMEOUT, TlsError, TlsMaterial},
};

/// Protocols of a port for gRPC.
pub const GRPC_PROTOCOLS: &[&[u8]] = &[b"h2"];

/// Protocols of a port for browsers.
pub const WEB_PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Handshakes that may be under way; more connections wait in the system's queue.
const MAX_HANDSHAKES: usize = 256;

/// Connections that are ready and not taken yet.
const READY: usize = 16;

/// Pause after the system refused a connection, for instance for want of file descriptors.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long a refused caller may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// Failed handshakes that are logged within [`LOG_WINDOW`]; a caller must not fill the disk.
const LOGGED: u32 = 20;

/// See [`LOGGED`].
const LOG_WINDOW: Duration = Duration::from_secs(60);

/// A connection on which the caller has shown a certificate of a trusted authority.
pub type TlsConnection = TlsStream<Socket>;

/// The TLS connections that callers make. Handshakes run beside each other, so that a slow caller
/// holds up nobody; each uses the certificate and the authorities that are in use when it begins.
pub struct TlsIncoming {
    ready: mpsc::Receiver<TlsConnection>,
}

impl TlsIncoming {
    /// Accepts connections from `listener` that speak one of `protocols`, [`GRPC_PROTOCOLS`] or
    /// [`WEB_PROTOCOLS`], until it is dropped. Must run within a tokio runtime.
    ///
    /// # Errors
    /// What the system says about the socket, or that the certificate is not a server's.
    pub fn new(
        listener: TcpListener,
        tls: &ReloadableTls,
        protocols: &'static [&'static [u8]],
    ) -> io::Result<Self> {
        Self::of(Source::port(listener, Further::default())?, tls, protocols)
    }

    /// As [`Self::new`], of connections that one lane gets.
    pub(crate) fn of(
        source: Source,
        tls: &ReloadableTls,
        protocols: &'static [&'static [u8]],
    ) -> io::Result<Self> {
        let settings = Settings::new(tls.subscribe(), protocols).map_err(io::Error::other)?;
        let (sender, ready) = mpsc::channel(READY);
        tokio::spawn(accept_all(source, settings, sender));
        Ok(Self { ready })
    }

    /// The next connection; `None` when there will be no more.
    pub async fn accept(&mut self) -> Option<TlsConnection> {
        self.ready.recv().await
    }
}

impl Stream for TlsIncoming {
    type Item = io::Result<TlsConnection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

/// The settings of handshakes. They are kept between two, because they remember sessions, and made
/// anew with each certificate, so that no session outlives the authorities that it was checked by.
struct Settings {
    material: watch::Receiver<std::sync::Arc<TlsMaterial>>,
    protocols: &'static [&'static [u8]],
    acceptor: TlsAcceptor,
}

impl Settings {
    fn new(
        mut material: watch::Receiver<std::sync::Arc<TlsMaterial>>,
        protocols: &'static [&'static [u8]],
    ) -> Result<Self, TlsError> {
        let config = material.borrow_and_update().server_config(protocols)?;
        Ok(Self { material, protocols, acceptor: config.into() })
    }

    fn acceptor(&mut self) -> TlsAcceptor {
        if self.material.has_changed().unwrap_or(false) {
            let material = self.material.borrow_and_update();
            // A reload never changes the identity, so it is a server's still.
            if let Ok(config) = material.server_config(self.protocols) {
                self.acceptor = config.into();
            }
        }
        self.acceptor.clone()
    }
}

async fn accept_all(mut source: Source, mut settings: Settings, ready: mpsc::Sender<TlsConnection>) {
    let further = source.further();
    let mut handshakes = JoinSet::new();
    let mut failures = Failures::default();
    loop {
        tokio::select! {
            () = ready.closed() => return,
            Some(finished) = handshakes.join_next() => {
                if let Ok(Err((caller, error))) = finished {
                    failures.tell(caller, &error);
                }
            }
            accepted = source.accept(), if handshakes.len() < MAX_HANDSHAKES => match accepted {
                Some(Ok((stream, caller))) => {
                    let (acceptor, ready, further) = (settings.acceptor(), ready.clone(), further.clone());
                    handshakes.spawn(async move {
                        let stream = async {
                            match further.pass_on(stream, caller, HANDSHAKE_TIMEOUT).await? {
                                Some(stream) => handshake(acceptor, stream).await.map(Some),
                                None => Ok(None),
                            }
                        };
                        if let Some(stream) = stream.await.map_err(|error| (caller, error))? {
                            // Nobody is left to take it when the port closes.
                            let _ = ready.send(stream).await;
                        }
                        Ok(())
                    });
                }
                None => return,
                Some(Err(error)) => {
                    tracing::warn!(%error, "the system does not let a connection in");
                    sleep(REFUSED_PAUSE).await;
                }
            },
        }
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<TlsConnection> {
    let stream = Socket::accepted(stream)?;
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it did not finish the handshake in time");
    let accepted = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream).into_fallible());
    match accepted.await.map_err(|_| late())? {
        Ok(stream) => Ok(stream),
        Err((error, stream)) => {
            // Best effort: the caller may be gone.
            let _ = timeout(LINGER, end_politely(stream)).await;
            Err(error)
        }
    }
}

/// Closes a connection so that the caller reads the alert that says why. A socket that is dropped with
/// unread data resets the connection, and the alert is lost.
async fn end_politely(mut stream: Socket) -> io::Result<()> {
    stream.shutdown().await?;
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// Logs failed handshakes, but not more of them than anybody reads.
#[derive(Default)]
struct Failures {
    window: Option<Instant>,
    count: u32,
}

impl Failures {
    fn tell(&mut self, caller: SocketAddr, error: &io::Error) {
        if self.window.is_none_or(|begin| begin.elapsed() > LOG_WINDOW) {
            if self.count > LOGGED {
                tracing::warn!(count = self.count - LOGGED, "refused further TLS connections");
            }
            (self.window, self.count) = (Some(Instant::now()), 0);
        }
        let Some(problem) = explain(error) else {
            tracing::debug!(%caller, %error, "a connection ended before its handshake");
            return;
        };
        self.count += 1;
        if self.count <= LOGGED {
            tracing::warn!(%caller, %error, problem, "refused a TLS connection");
        }
    }
}

/// Which side is at fault and what to do; `None` for one that connects and says nothing, as scanners
/// and health checks of other programs do.
fn explain(error: &io::Error) -> Option<&'static str> {
    let Some(failure) = error.get_ref().and_then(|source| source.downcast_ref::<TlsFailure>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => None,
            _ => Some("the caller is too slow, or the network is"),
        };
    };
    Some(match failure {
        TlsFailure::NoCertificatesPresented => {
            "the caller shows no certificate: it needs one of this consortium's authority"
        }
        TlsFailure::InvalidCertificate(problem) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the caller's certificate has expired: its holder must renew it, or one of the clocks is wrong"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the caller's certificate is not valid yet: one of the clocks is wrong"
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the caller's certificate is not of an authority in this server's `tls.ca`"
            }
            _ => "the caller's certificate is not usable: its holder needs a new one",
        },
        TlsFailure::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            "the caller does not trust this server's certificate: the caller's `tls.ca` is of another authority"
        }
        TlsFailure::AlertReceived(AlertDescription::CertificateExpired) => {
            "the caller says that this server's certificate has expired: renew it, or one of the clocks is wrong"
        }
        TlsFailure::AlertReceived(AlertDescription::BadCertificate) => {
            "the caller refuses this server's certificate: it expected another server at this address"
        }
        TlsFailure::NoApplicationProtocol => "the caller does not speak HTTP/2: use a gRPC client",
        _ => "the caller does not speak TLS as this server does",
    })
}
