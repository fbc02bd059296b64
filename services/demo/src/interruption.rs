//! Signals that end a demonstration early.

/// A signal that ended the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// Its name.
    pub name: &'static str,
    /// The exit code by which a shell reports it: 128 and the signal's number.
    pub exit_code: u8,
}

/// Ctrl-C or SIGINT.
pub const INTERRUPT: Interruption = Interruption { name: "Ctrl-C", exit_code: 130 };

/// Finishes at the first signal that asks the program to end.
///
/// # Errors
/// If the system does not let the process wait for signals.
#[cfg(unix)]
pub async fn interruption() -> std::io::Result<Interruption> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => INTERRUPT,
        _ = terminate.recv() => Interruption { name: "SIGTERM", exit_code: 143 },
        _ = hang_up.recv() => Interruption { name: "SIGHUP", exit_code: 129 },
    })
}

/// Finishes at the first signal that asks the program to end.
///
/// # Errors
/// If the system does not let the process wait for signals.
#[cfg(not(unix))]
pub async fn interruption() -> std::io::Result<Interruption> {
    tokio::signal::ctrl_c().await.map(|()| INTERRUPT)
}
