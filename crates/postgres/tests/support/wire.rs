//! A network between a test and its database, which can be cut.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

type Connections = Arc<Mutex<Vec<(TcpStream, UnixStream)>>>;

/// Passes connections to a port of this host on to the Unix socket of a database.
pub struct Wire {
    address: SocketAddr,
    connections: Connections,
}

impl Wire {
    /// Starts to pass connections on, until the process ends.
    pub fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let wire = Self { address: listener.local_addr().unwrap(), connections: Arc::default() };
        let connections = Arc::clone(&wire.connections);
        thread::spawn(move || {
            for here in listener.incoming() {
                let (Ok(here), Ok(there)) = (here, UnixStream::connect(&socket)) else { continue };
                let copies = (here.try_clone().unwrap(), there.try_clone().unwrap());
                let (mut from, mut to) = (here.try_clone().unwrap(), there.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                let (mut from, mut to) = (there, here);
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                connections.lock().unwrap().push(copies);
            }
        });
        wire
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://ledger@{}/{database}", self.address)
    }

    /// Breaks all connections that there are. The database notices when it next talks to one of them.
    pub fn cut(&self) {
        for (here, there) in self.connections.lock().unwrap().drain(..) {
            let _ = here.shutdown(Shutdown::Both);
            let _ = there.shutdown(Shutdown::Both);
        }
    }
}
