//! TCP connections below TLS.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
};
use tonic::{
    codegen::{Service, http::Uri},
    transport::server::{Connected, TcpConnectInfo},
};
use tower::{BoxError, ServiceExt as _};

use crate::{
    connect::{CONNECT_TIMEOUT, TCP_KEEPALIVE},
    lane::port::name_lane,
};

/// Bytes that are read from the system at a time.
const READ_BYTES: usize = 64 << 10;

/// A TCP connection that is read in large pieces. TLS asks for 4 KiB at a time, which would cost a system
/// call each.
pub struct Socket(BufReader<TcpStream>);

impl Socket {
    /// A connection that was accepted. Sets its options.
    ///
    /// # Errors
    /// What the system says about the options.
    pub(crate) fn accepted(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))?;
        Ok(Self::new(stream))
    }

    fn new(stream: TcpStream) -> Self {
        Self(BufReader::with_capacity(READ_BYTES, stream))
    }
}

/// Dials addresses for a lane, with the same options.
pub(crate) fn connector(
    lane: u8,
) -> impl Service<Uri, Response = TokioIo<Socket>, Error = BoxError, Future: Send> + Send + 'static {
    let mut dialler = HttpConnector::new();
    // It is TLS that follows.
    dialler.enforce_http(false);
    dialler.set_nodelay(true);
    dialler.set_keepalive(Some(TCP_KEEPALIVE));
    dialler.set_connect_timeout(Some(CONNECT_TIMEOUT));
    dialler.map_err(BoxError::from).and_then(move |stream: TokioIo<TcpStream>| async move {
        let mut stream = stream.into_inner();
        if lane > 0 {
            name_lane(&mut stream, lane).await?;
        }
        Ok(TokioIo::new(Socket::new(stream)))
    })
}

impl Connected for Socket {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.0.get_ref().connect_info()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, target)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
