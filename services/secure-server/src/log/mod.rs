//! Logging of a server process, and the signals that end it.
//!
//! Events and spans carry the fields by which the protocol names things: `server`, `task`, `session`
//! (of a batch), `step`, and for calls `method`, `caller` and `request`. None of them is secret.

mod control;
mod export;
mod filter;

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use concilium_rpc::tls::install_crypto_provider;

use crate::config::{LogFormat, ServerConfig};
pub use control::{LogControl, LogControlError, LogState};
use export::Export;
pub(crate) use export::join_trace;
pub use filter::{LogFilter, LogFilterError};

/// The variable that wins over the configured filter.
const FILTER_VARIABLE: &str = "RUST_LOG";

/// The logger is one for the process, and so is its control.
static CONTROL: OnceLock<LogControl> = OnceLock::new();

/// So is the export of its spans, if there is one.
static EXPORT: OnceLock<Export> = OnceLock::new();

/// Logs to standard error what the section `[observability]` and the variable `RUST_LOG`, which wins,
/// ask for, and exports spans if the section asks for that. Must run within a multi-thread tokio
/// runtime.
///
/// # Errors
/// What is wrong in the filter, with its source, or in the endpoint.
pub fn start(config: &ServerConfig) -> anyhow::Result<()> {
    let section = &config.observability;
    let read = |source: &str, text: &str| {
        text.parse().map_err(|error: LogFilterError| anyhow::anyhow!("{source} {error}"))
    };
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.trim().is_empty() => read("the variable RUST_LOG", &text)?,
        _ => read("`observability.log_filter`", &section.log_filter)?,
    };
    let json = match section.log_format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let (layer, control) = layer(&filter, json, std::io::stderr);
    let export = match section.otlp_endpoint.as_str() {
        "" => None,
        endpoint => Some(Export::start(endpoint, &instance(config))?),
    };
    let spans = export.as_ref().map(Export::layer);
    // A second call in one process (tests) keeps the first logger.
    if tracing_subscriber::registry().with(layer).with(spans).try_init().is_ok() {
        let _ = CONTROL.set(control);
        if let Some(export) = export {
            let _ = EXPORT.set(export);
        }
    }
    Ok(())
}

/// Sends the last spans, if any are exported. For the end of the process.
pub async fn finish() {
    // The export blocks; it ends by itself.
    let _ = tokio::task::spawn_blocking(|| EXPORT.get().map(Export::finish)).await;
}

/// The name of the server in its certificate. A certificate that can't be read is reported when the
/// server starts, which is next.
fn instance(config: &ServerConfig) -> String {
    install_crypto_provider();
    let tls = config.tls_files().load();
    tls.map(|tls| tls.identity().name().to_owned()).unwrap_or_default()
}

/// The control of this process's log; none if another logger was installed before.
pub fn control() -> Option<&'static LogControl> {
    CONTROL.get()
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Writes what `filter` lets through, and never what could hold a secret.
fn layer<W>(filter: &LogFilter, json: bool, writer: W) -> (BoxedLayer, LogControl)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (changeable, handle) = reload::Layer::new(filter.to_env_filter());
    let filtered = filter::cap().and(changeable);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = if json {
        lines.json().with_current_span(false).with_filter(filtered).boxed()
    } else {
        lines.with_filter(filtered).boxed()
    };
    (layer, LogControl::new(handle, filter.clone()))
}

/// Finishes at Ctrl-C or a termination signal.
pub async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = interrupt => {}
                    _ = terminate.recv() => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "termination signals can't be awaited; Ctrl-C still stops the server");
                let _ = interrupt.await;
            }
        }
    }
    #[cfg(not(unix))]
    let _ = interrupt.await;
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            let bytes = std::mem::take(&mut *self.0.lock().expect("nobody panics"));
            String::from_utf8(bytes).expect("logs are text")
        }
    }

    fn logger(filter: &str, json: bool) -> (Lines, LogControl, impl tracing::Subscriber) {
        let lines = Lines::default();
        let writer = lines.clone();
        let filter = filter.parse().expect("a good filter");
        let (layer, control) = layer(&filter, json, move || writer.clone());
        (lines, control, tracing_subscriber::registry().with(layer))
    }

    fn speak() {
        let _span = tracing::debug_span!(target: "concilium_server", "batch", session = 7).entered();
        tracing::debug!(target: "concilium_server", "own detail");
        tracing::info!(target: "concilium_server", "own news");
        tracing::info!(target: "h2", "foreign news");
        tracing::debug!(target: "h2", "foreign detail");
        tracing::trace!(target: "rustls::conn", "foreign detail");
    }

    #[test]
    fn no_filter_shows_what_passes_through_other_libraries() {
        let (lines, _control, subscriber) = logger("trace", false);
        tracing::subscriber::with_default(subscriber, speak);
        let text = lines.take();
        assert!(text.contains("own detail") && text.contains("foreign news"), "{text}");
        assert!(!text.contains("foreign detail"), "{text}");
    }

    #[test]
    fn lines_off_a_terminal_are_json_with_the_spans_fields() {
        let (lines, _control, subscriber) = logger("debug", true);
        tracing::subscriber::with_default(subscriber, speak);
        let text = lines.take();
        assert_eq!(text.lines().count(), 3, "{text}");
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(line["spans"][0]["session"], 7, "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn filters_change_and_temporary_ones_end() {
        let (lines, control, subscriber) = logger("info", false);
        let _logging = tracing::subscriber::set_default(subscriber);
        let detail = || {
            speak();
            lines.take().contains("own detail")
        };
        let filter = |text: &str| text.parse::<LogFilter>().expect("a good filter");
        let minutes = |count: u64| Duration::from_secs(60 * count);
        assert!(!detail());
        let told = control.set(filter("debug"), Some(minutes(10))).expect("the logger lives");
        assert_eq!((told.previous.as_str(), told.current.as_str()), ("info", "debug"));
        assert_eq!(told.reverts.map(|(_, then)| then), Some(filter("info")));
        assert!(detail());
        tokio::time::sleep(minutes(9)).await;
        assert!(detail());
        // A second temporary filter ends at its own time, in what was last set to stay.
        control.set(filter("concilium_server=trace"), Some(minutes(10))).expect("the logger lives");
        tokio::time::sleep(minutes(9)).await;
        assert!(detail());
        tokio::time::sleep(minutes(2)).await;
        assert!(!detail());
        assert_eq!(control.state().current, filter("info"));
        control.set(filter("warn"), Some(minutes(1))).expect("the logger lives");
        control.set(filter("debug"), None).expect("the logger lives");
        tokio::time::sleep(minutes(5)).await;
        assert!(detail(), "the end of a filter that was replaced changes nothing");
        assert_eq!(control.state().reverts, None);
    }
}
