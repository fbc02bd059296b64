//! Links between two parties that are slower than this machine's.
//!
//! A [`Shape`] is what `netem` does to a link: every message arrives later by a fixed time, and the bytes of
//! one direction follow each other at a fixed speed. Queues are unbounded and nothing is lost.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Most bytes that are passed on together.
const PIECE_BYTES: usize = 64 << 10;

/// Delay and speed of each direction of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// One-way delay.
    pub delay: Duration,
    /// Speed; unlimited without it.
    pub bits_per_second: Option<f64>,
}

impl Shape {
    /// Whether the link is the machine's own.
    pub fn is_direct(self) -> bool {
        self.delay.is_zero() && self.bits_per_second.is_none()
    }
}

/// One direction of one link.
#[derive(Debug)]
pub(crate) struct Pipe {
    shape: Shape,
    /// When the last byte that was sent has left.
    free: Instant,
}

impl Pipe {
    pub(crate) fn new(shape: Shape) -> Self {
        Pipe { shape, free: Instant::now() }
    }

    /// When the last of `bytes` arrives that are sent at `now`, behind all that were sent before.
    pub(crate) fn arrival(&mut self, now: Instant, bytes: usize) -> Instant {
        let time = self.shape.bits_per_second.map_or(0.0, |speed| 8.0 * bytes as f64 / speed);
        self.free = self.free.max(now) + Duration::from_secs_f64(time);
        self.free + self.shape.delay
    }
}

/// Waits until `moment`, to the precision of the system's timers.
pub(crate) fn sleep_until(moment: Instant) {
    let left = moment.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

/// Listeners in front of three servers that pass connections on at the speed of a [`Shape`]. Each
/// connection is a link of its own.
pub(crate) struct Proxies {
    addresses: [String; 3],
    stopped: Arc<AtomicBool>,
}

impl Proxies {
    /// Listens on loopback for each of the three `targets`.
    pub(crate) fn start(targets: &[String; 3], shape: Shape) -> io::Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let mut addresses: [String; 3] = Default::default();
        for (address, target) in addresses.iter_mut().zip(targets) {
            let listener = TcpListener::bind(("127.0.0.1", 0))?;
            *address = listener.local_addr()?.to_string();
            let (target, stopped) = (target.clone(), Arc::clone(&stopped));
            named("link", move || accept(&listener, &target, shape, &stopped))?;
        }
        Ok(Proxies { addresses, stopped })
    }

    /// Where to connect instead of the targets.
    pub(crate) fn addresses(&self) -> &[String; 3] {
        &self.addresses
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for address in &self.addresses {
            // Wakes the listener, which looks at the mark then. One that can't be reached has ended.
            drop(TcpStream::connect(address));
        }
    }
}

fn named(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

fn accept(listener: &TcpListener, target: &str, shape: Shape, stopped: &AtomicBool) {
    for client in listener.incoming() {
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        // A connection that fails here is closed, which both ends see; servers dial again.
        if let Ok(client) = client {
            let _ = join(client, target, shape);
        }
    }
}

fn join(client: TcpStream, target: &str, shape: Shape) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let (pieces, arriving) = mpsc::channel();
        named("link-in", move || receive(from, &pieces, shape))?;
        named("link-out", move || deliver(to, &arriving))?;
    }
    Ok(())
}

/// Reads until the connection ends, and says for every piece when it is due.
fn receive(mut from: TcpStream, pieces: &mpsc::Sender<(Instant, Vec<u8>)>, shape: Shape) {
    let mut pipe = Pipe::new(shape);
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let due = pipe.arrival(Instant::now(), count);
        if pieces.send((due, buffer[..count].to_vec())).is_err() {
            break;
        }
    }
}

/// Writes every piece when it is due; an end on the other side becomes an end here.
fn deliver(mut to: TcpStream, pieces: &mpsc::Receiver<(Instant, Vec<u8>)>) {
    for (due, piece) in pieces {
        sleep_until(due);
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_follow_each_other_and_arrive_later() {
        let shape = Shape { delay: Duration::from_millis(20), bits_per_second: Some(8e6) };
        let mut pipe = Pipe::new(shape);
        let begin = pipe.free;
        let after = |milliseconds: u64| begin + Duration::from_millis(milliseconds);
        // A megabyte a second: 1000 bytes take a millisecond.
        assert_eq!(pipe.arrival(begin, 1000), after(21));
        assert_eq!(pipe.arrival(begin, 2000), after(23));
        assert_eq!(pipe.arrival(after(50), 1000), after(71));
        let mut direct = Pipe::new(Shape::default());
        let free = direct.free;
        assert_eq!(direct.arrival(free, 1 << 30), free);
        assert!(Shape::default().is_direct() && !shape.is_direct());
    }

    #[test]
    fn connections_are_passed_on_later_and_whole_and_end_with_their_ends() {
        let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let target = server.local_addr().unwrap().to_string();
        let delay = Duration::from_millis(30);
        let shape = Shape { delay, bits_per_second: Some(1e9) };
        let proxies = Proxies::start(&[target.clone(), target.clone(), target], shape).unwrap();
        let echo = thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut received = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let count = stream.read(&mut buffer).unwrap();
                if count == 0 {
                    return received;
                }
                stream.write_all(&buffer[..count]).unwrap();
                received.extend_from_slice(&buffer[..count]);
            }
        });
        let sent: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
        let mut stream = TcpStream::connect(&proxies.addresses()[1]).unwrap();
        let begin = Instant::now();
        stream.write_all(&sent).unwrap();
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).unwrap();
        // Not how long it takes, which the machine decides, but how long it takes at least.
        assert!(begin.elapsed() >= 2 * delay);
        assert!(back == sent);
        drop(stream);
        assert!(echo.join().unwrap() == sent);
    }
}
