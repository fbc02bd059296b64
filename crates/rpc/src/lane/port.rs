//! One peer port for all lanes of a server.
//!
//! Each lane has a runtime of its own, and a connection belongs to the runtime that accepts it. So the
//! connections of further lanes begin with a preface that names the lane, in front of TLS, and the first
//! lane, which owns the port, passes them on unread. The preface is no secret and proves nothing: what it
//! chooses is which lane checks the caller's certificate and introduction.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

/// First byte of a TLS connection: the type of a handshake record (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// What a connection of a further lane begins with; the number of the lane follows in one byte.
const PREFACE: &[u8; 14] = b"concilium lane";

/// Connections that wait for their lane. There is one caller, who uses the last one only.
const WAITING: usize = 16;

/// Most lanes of a server.
pub const MAXIMUM_LANES: usize = 16;

/// The connections of one lane, before TLS.
pub(crate) enum Source {
    /// They come to a port; those of further lanes are passed on.
    Port(TcpListener, Further),
    /// They are passed on by the first lane.
    Passed(mpsc::Receiver<(StdTcpStream, SocketAddr)>),
}

/// The ways to the further lanes: the first one leads to lane 1.
#[derive(Clone, Default)]
pub(crate) struct Further(Vec<mpsc::Sender<(StdTcpStream, SocketAddr)>>);

/// The near ends of the ways to `count` further lanes, and the far ends in order.
pub(crate) fn further(count: usize) -> (Further, Vec<mpsc::Receiver<(StdTcpStream, SocketAddr)>>) {
    let (near, far) = (0..count).map(|_| mpsc::channel(WAITING)).unzip();
    (Further(near), far)
}

impl Source {
    /// A port, with the ways to further lanes. Must run within a tokio runtime.
    pub(crate) fn port(listener: StdTcpListener, further: Further) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Source::Port(TcpListener::from_std(listener)?, further))
    }

    /// The next connection; `None` when there will be no more.
    pub(crate) async fn accept(&mut self) -> Option<io::Result<(TcpStream, SocketAddr)>> {
        match self {
            Source::Port(listener, _) => Some(listener.accept().await),
            Source::Passed(passed) => {
                let (stream, caller) = passed.recv().await?;
                Some(TcpStream::from_std(stream).map(|stream| (stream, caller)))
            }
        }
    }

    /// The ways to further lanes, if there are any.
    pub(crate) fn further(&self) -> Further {
        match self {
            Source::Port(_, further) => further.clone(),
            Source::Passed(_) => Further::default(),
        }
    }
}

impl Further {
    /// Passes a connection on if it is a further lane's, and gives it back if it is not.
    ///
    /// # Errors
    /// If the caller says nothing in `patience`, or a preface that is none.
    pub(crate) async fn pass_on(
        &self,
        mut stream: TcpStream,
        caller: SocketAddr,
        patience: Duration,
    ) -> io::Result<Option<TcpStream>> {
        if self.0.is_empty() {
            return Ok(Some(stream));
        }
        let lane = timeout(patience, read_lane(&mut stream)).await;
        let lane = lane.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it said nothing in time"))??;
        let Some(lane) = lane else { return Ok(Some(stream)) };
        let way = usize::from(lane).checked_sub(1).and_then(|place| self.0.get(place));
        let way = way.ok_or_else(|| invalid(format!("there is no lane {lane} here")))?;
        // A lane that takes none must not hold up the others; the caller dials again.
        let _ = way.try_send((stream.into_std()?, caller));
        Ok(None)
    }
}

/// The lane that a connection names, or nothing for one that begins with TLS, of which nothing is read.
async fn read_lane(stream: &mut TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] == HANDSHAKE_RECORD {
        return Ok(None);
    }
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != *PREFACE {
        return Err(invalid("it does not speak TLS".to_owned()));
    }
    stream.read_u8().await.map(Some)
}

/// Names a further lane at the beginning of a connection.
pub(crate) async fn name_lane(stream: &mut TcpStream, lane: u8) -> io::Result<()> {
    let mut preface = PREFACE.to_vec();
    preface.push(lane);
    stream.write_all(&preface).await
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A connection that begins with `words`, as the port accepts it.
    async fn called_with(words: &[u8]) -> (TcpStream, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepted = listener.accept().await.unwrap();
        caller.write_all(words).await.unwrap();
        accepted
    }

    #[tokio::test]
    async fn only_connections_that_name_a_lane_are_passed_on() {
        let (further, mut far) = further(2);
        let tls = [HANDSHAKE_RECORD, 3, 1, 0];
        let (stream, caller) = called_with(&tls).await;
        let mut stream = further.pass_on(stream, caller, PATIENCE).await.unwrap().expect("it is TLS");
        let mut read = [0; 4];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, tls, "nothing was taken away");

        let mut words = PREFACE.to_vec();
        words.extend([2, HANDSHAKE_RECORD]);
        let (stream, caller) = called_with(&words).await;
        assert!(further.pass_on(stream, caller, PATIENCE).await.unwrap().is_none());
        let (stream, from) = far[1].recv().await.unwrap();
        assert_eq!(from, caller);
        let mut stream = TcpStream::from_std(stream).unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), HANDSHAKE_RECORD, "TLS follows");
        assert!(far[0].try_recv().is_err());
    }

    #[tokio::test]
    async fn a_lane_that_is_not_there_and_other_words_are_refused() {
        let (further, _far) = further(2);
        for lane in [0, 3, 255] {
            let mut words = PREFACE.to_vec();
            words.push(lane);
            let (stream, caller) = called_with(&words).await;
            let error = further.pass_on(stream, caller, PATIENCE).await.unwrap_err();
            assert!(error.to_string().contains(&format!("no lane {lane}")), "{error}");
        }
        let (stream, caller) = called_with(b"GET / HTTP/1.1\r\n\r\n").await;
        let error = further.pass_on(stream, caller, PATIENCE).await.unwrap_err();
        assert!(error.to_string().contains("TLS"), "{error}");
    }

    #[tokio::test]
    async fn a_caller_who_says_nothing_does_not_stay() {
        let (further, _far) = further(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, caller) = listener.accept().await.unwrap();
        let error = further.pass_on(stream, caller, Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
