//! One of the three servers of a demonstration, in a process of its own.

use std::io::{self, Read as _};
use std::path::Path;

use concilium_client_library::terminal::Failure;
use concilium_server::Randomness;
use tokio::sync::oneshot;

/// Runs the server of this configuration until a signal comes or standard input ends.
///
/// The process that started the server holds the other end of its standard input, so the server ends
/// with it even if that process is killed.
///
/// # Errors
/// As [`concilium_server::start`].
pub async fn serve(config: &Path) -> Result<(), Failure> {
    let ended = standard_input_ended();
    let stop = async {
        tokio::select! {
            () = concilium_server::log::stop_signal() => {}
            _ = ended => tracing::info!("standard input ended"),
        }
    };
    concilium_server::start(config, false, &Randomness::system(), stop).await
}

/// Finishes when nothing more can be read from standard input.
fn standard_input_ended() -> oneshot::Receiver<()> {
    let (ended, receiver) = oneshot::channel();
    // A thread of its own, because a read cannot be interrupted and a runtime would wait for it at
    // its end. The process ends without it.
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // The server may have stopped for another reason.
        let _ = ended.send(());
    });
    receiver
}
