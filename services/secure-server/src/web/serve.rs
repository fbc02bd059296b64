//! The page's port.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use concilium_rpc::accept::{TlsConnection, TlsIncoming, WEB_PROTOCOLS};
use concilium_rpc::identity::{AllowedIdentities, Role};
use concilium_rpc::status::RpcError;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::Service as _;

use super::access::{Access, add_headers, refuse};
use super::collect::Source;
use super::router;
use crate::context::Context;

/// Connections at a time. A browser takes a few, and a page that nobody closes keeps them.
const MOST_CONNECTIONS: usize = 64;
/// How long a caller may take to send a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the system refused a connection, for instance for want of file descriptors.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// The page's port, open but not served yet.
pub struct Site {
    listener: TcpListener,
    address: SocketAddr,
}

impl Site {
    /// The page on this port.
    ///
    /// # Errors
    /// What the system says about the socket.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Site { listener, address })
    }

    /// Where a browser finds the page.
    pub fn url(&self) -> String {
        let scheme = if self.address.ip().is_loopback() { "http" } else { "https" };
        format!("{scheme}://{}/", self.address)
    }

    /// Serves the page until the future is dropped, which ends its connections too. `peers` are the
    /// addresses of the three servers for each other. Must run within a tokio runtime.
    ///
    /// # Errors
    /// What the system says about the socket.
    pub fn serve(
        self,
        context: Arc<Context>,
        peers: [String; 3],
        stall_warning: Duration,
    ) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let port = if self.address.ip().is_loopback() {
            self.listener.set_nonblocking(true)?;
            Port::Loopback(tokio::net::TcpListener::from_std(self.listener)?)
        } else {
            let allowed = context.allowed.clone();
            Port::Tls(TlsIncoming::new(self.listener, &context.tls, WEB_PROTOCOLS)?, allowed)
        };
        let router = router(Source::new(context, peers, stall_warning));
        Ok(accept(port, router))
    }
}

enum Port {
    Loopback(tokio::net::TcpListener),
    Tls(TlsIncoming, AllowedIdentities),
}

/// A connection of either kind.
trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

impl Port {
    /// The next connection; `None` when there will be no more.
    async fn next(&mut self) -> Option<io::Result<(Box<dyn Connection>, Access)>> {
        match self {
            Port::Loopback(listener) => Some(listener.accept().await.map(|(stream, _)| {
                let stream: Box<dyn Connection> = Box::new(stream);
                (stream, Access::Loopback)
            })),
            Port::Tls(incoming, allowed) => {
                let stream = incoming.accept().await?;
                let access = Access::Identified(identify(&stream, allowed));
                Some(Ok((Box::new(stream), access)))
            }
        }
    }
}

/// Lets operators in that the configuration lists.
fn identify(stream: &TlsConnection, allowed: &AllowedIdentities) -> Result<(), Arc<str>> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    match allowed.authorise_certificates(chain, &[Role::Operator]) {
        Ok(_) => Ok(()),
        Err(error @ RpcError::RoleNotAllowed { .. }) => {
            Err(format!("{error}; `identities.operators` lists those who may read this page").into())
        }
        Err(error) => Err(error.to_string().into()),
    }
}

async fn accept(mut port: Port, router: Router) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = loop {
            tokio::select! {
                accepted = port.next() => break accepted,
                // Taken out as they end, so that the set does not grow.
                Some(_) = connections.join_next() => {}
            }
        };
        match accepted {
            None => return,
            Some(Ok((stream, access))) => {
                let router = router.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    converse(stream, access, router).await;
                });
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the system does not let a connection to the operator's page in");
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

/// Answers the requests of one connection.
async fn converse(stream: Box<dyn Connection>, access: Access, router: Router) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        let refusal = refuse(&access, &request);
        async move {
            let mut response = match refusal {
                Some(refusal) => refusal,
                None => router.call(request.map(Body::new)).await?,
            };
            add_headers(response.headers_mut());
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection to the operator's page broke off");
    }
}
