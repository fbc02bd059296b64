//! Measurements in the Prometheus text format. Their names are in one place, `names.rs`.
//!
//! Counters and histograms are recorded where things happen; gauges are read when [`render`] is
//! called. The recorder is one for the process.

mod names;

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::metrics::{counter, gauge, histogram};
use concilium_mpc::PartyIndex;
use concilium_privacy::NanoRho;
use concilium_rpc::v1::ModelState;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::context::Context;
use names::Kind;
pub(crate) use names::known_reason;

/// How often recorded observations are sorted into their buckets when nobody asks for them.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Begins to record; further calls in one process change nothing.
///
/// # Errors
/// When another library has installed a recorder of its own.
pub fn start() -> anyhow::Result<()> {
    if RECORDER.get().is_none() {
        let recorder = builder()?.build_recorder();
        let handle = recorder.handle();
        if ::metrics::set_global_recorder(recorder).is_ok() {
            describe();
            let _ = RECORDER.set(handle);
        } else if RECORDER.get().is_none() {
            anyhow::bail!("another recorder of measurements is installed in this process");
        }
    }
    Ok(())
}

fn builder() -> anyhow::Result<PrometheusBuilder> {
    let mut builder = PrometheusBuilder::new();
    for metric in names::ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    Ok(builder)
}

fn describe() {
    for metric in names::ALL {
        let help = format!("{} Unit: {}.", metric.meaning, metric.unit);
        match metric.kind {
            Kind::Counter => ::metrics::describe_counter!(metric.name, help),
            Kind::Gauge => ::metrics::describe_gauge!(metric.name, help),
            Kind::Histogram(_) => ::metrics::describe_histogram!(metric.name, help),
        }
    }
}

/// Sorts observations into their buckets now and then, so that they do not pile up on a server that
/// nobody scrapes. Runs until it is dropped.
pub async fn keep_up() {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        if let Some(handle) = RECORDER.get() {
            handle.run_upkeep();
        }
    }
}

/// Everything measured so far, in the Prometheus text format; empty before [`start`]. Reads the
/// ledger, so call it where blocking is allowed.
pub fn render(context: &Context) -> String {
    let Some(handle) = RECORDER.get() else { return String::new() };
    read_gauges(context);
    handle.render()
}

fn read_gauges(context: &Context) {
    gauge!(names::UPTIME.name).set(context.started.elapsed().as_secs_f64());
    let (server, version) = (context.here.number().to_string(), env!("CARGO_PKG_VERSION"));
    gauge!(names::BUILD.name, "server" => server, "version" => version).set(1.0);
    let connected = context.lane.connected();
    for (peer, connected) in [context.here.next(), context.here.previous()].into_iter().zip(connected) {
        gauge!(names::PEER_CONNECTED.name, "peer" => label(Some(peer))).set(f64::from(u8::from(connected)));
    }
    let wait = context.lane.longest_wait().map_or(Duration::ZERO, |wait| wait.waited());
    gauge!(names::WAIT.name).set(wait.as_secs_f64());
    // A ledger that can't be read leaves its last values; the error is told to those who call.
    if let Ok(head) = context.ledger.head() {
        gauge!(names::LEDGER_ENTRIES.name).set(head.entries as f64);
    }
    for task in context.tasks.all() {
        let name = task.name().to_owned();
        gauge!(names::WAITING.name, "task" => name.clone()).set(context.room.count(&name) as f64);
        gauge!(names::NOISE_READY.name, "task" => name.clone()).set(task.noise.ready() as f64);
        let models = context.models.present(&name);
        let stopped = context.watch.stop_of(&name).is_some();
        gauge!(names::TASK_STOPPED.name, "task" => name.clone()).set(f64::from(u8::from(stopped)));
        for (label, state) in [
            ("staged", ModelState::Staged),
            ("ready", ModelState::Ready),
            ("rejected", ModelState::Rejected),
            ("retired", ModelState::Retired),
        ] {
            let count = models.iter().filter(|entry| entry.state == state).count();
            gauge!(names::MODELS.name, "task" => name.clone(), "state" => label).set(count as f64);
        }
        let ready = models.iter().filter(|entry| entry.state == ModelState::Ready);
        let owners: std::collections::BTreeSet<_> = ready.map(|entry| &entry.key.owner).collect();
        gauge!(names::OWNERS.name, "task" => name.clone()).set(owners.len() as f64);
        gauge!(names::BUDGET_CAP.name, "task" => name.clone()).set(rho(task.policy.cap_total));
        if let Some(cap) = task.policy.cap_per_client {
            gauge!(names::BUDGET_CLIENT_CAP.name, "task" => name.clone()).set(rho(cap));
        }
        if let Ok(spending) = context.ledger.spent(&name, task.policy.epoch) {
            let most = spending.by_client.values().map(|total| total.rho).max().unwrap_or(NanoRho::ZERO);
            gauge!(names::BUDGET_SPENT.name, "task" => name.clone()).set(rho(spending.total.rho));
            gauge!(names::BUDGET_CLIENT_MAXIMUM.name, "task" => name).set(rho(most));
        }
    }
}

/// For reading: the ledger counts in whole units.
fn rho(amount: NanoRho) -> f64 {
    amount.units() as f64 / 1e9
}

fn label(peer: Option<PartyIndex>) -> &'static str {
    peer.map_or("none", |peer| ["0", "1", "2"][peer.number()])
}

/// Notes until when the server's certificate is valid; call it again when another one is loaded.
pub fn set_certificate_expiry(expires: SystemTime) {
    let since = expires.duration_since(UNIX_EPOCH).unwrap_or_default();
    gauge!(names::CERTIFICATE_EXPIRY.name).set(since.as_secs_f64());
}

/// Counts a client's request that ended.
pub(crate) fn count_request(task: &str, outcome: &'static str, duration: Duration) {
    counter!(names::REQUESTS.name, "task" => task.to_owned(), "outcome" => outcome).increment(1);
    histogram!(names::REQUEST_DURATION.name, "task" => task.to_owned()).record(duration);
}

/// Counts a call that ended.
pub(crate) fn count_call(method: &'static str, code: &'static str) {
    counter!(names::CALLS.name, "method" => method, "code" => code).increment(1);
}

/// Counts a released batch.
pub(crate) fn count_released_batch(task: &str, rows: u64, rounds: u64, duration: Duration) {
    let task = || task.to_owned();
    counter!(names::BATCHES.name, "task" => task(), "outcome" => "released").increment(1);
    counter!(names::ROUNDS.name, "task" => task()).increment(rounds);
    histogram!(names::BATCH_ROWS.name, "task" => task()).record(rows as f64);
    histogram!(names::BATCH_DURATION.name, "task" => task()).record(duration);
}

/// Counts a batch that failed.
pub(crate) fn count_failed_batch(task: &str) {
    counter!(names::BATCHES.name, "task" => task.to_owned(), "outcome" => "failed").increment(1);
}

/// Records the time of one step of a batch, and the part of it that was spent waiting for peers.
pub(crate) fn record_step(step: &'static str, duration: Duration, waited: Duration) {
    histogram!(names::STEP_DURATION.name, "step" => step).record(duration);
    if !waited.is_zero() {
        histogram!(names::STEP_WAIT.name, "step" => step).record(waited);
    }
}

/// Records how long a batch waited for a peer's messages.
pub(crate) fn record_peer_wait(peer: PartyIndex, duration: Duration) {
    histogram!(names::PEER_WAIT.name, "peer" => label(Some(peer))).record(duration);
}

/// Counts messages that were sent to a peer, and their payload.
pub(crate) fn count_sent(peer: PartyIndex, messages: u64, bytes: u64) {
    counter!(names::SENT_MESSAGES.name, "peer" => label(Some(peer))).increment(messages);
    counter!(names::SENT_BYTES.name, "peer" => label(Some(peer))).increment(bytes);
}

/// Counts that the links to both peers came up.
pub(crate) fn count_connection() {
    counter!(names::CONNECTIONS.name).increment(1);
}

/// Counts that the links to the peers were given up.
pub(crate) fn count_connection_failure() {
    counter!(names::CONNECTION_FAILURES.name).increment(1);
}

/// Counts a wait that took too long.
pub(crate) fn count_stall(step: &'static str, peer: Option<PartyIndex>) {
    counter!(names::STALLS.name, "step" => step, "peer" => label(peer)).increment(1);
}

/// Counts that a task's totals were raised to those of another server.
pub(crate) fn count_ledger_raise(task: &str) {
    counter!(names::LEDGER_RAISES.name, "task" => task.to_owned()).increment(1);
}

/// Records how long the ledger took to make charges durable.
pub(crate) fn record_ledger_commit(duration: Duration) {
    histogram!(names::LEDGER_COMMIT.name).record(duration);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// `docs/metrics.md` holds the generated table. To renew it, run this test with
    /// CONCILIUM_WRITE_DOCS=1.
    #[test]
    fn the_documented_table_is_generated() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let text = format!(
            "# Metrics\n\nGenerated from `services/secure-server/src/metrics/names.rs`; a test keeps it true. \
             Each server serves its own at `/metrics` of the address `web.listen`, in the Prometheus text \
             format. Histograms add `_bucket`, `_sum` and `_count` to their names. Labels come from small \
             sets; names of clients and owners are no labels. Nothing here depends on an input, a weight, a \
             vote or a noise value.\n\n{}",
            names::markdown_table()
        );
        if std::env::var_os("CONCILIUM_WRITE_DOCS").is_some() {
            std::fs::write(path, &text).expect("docs are writable");
        }
        let found = std::fs::read_to_string(path).expect("docs/metrics.md is there");
        assert_eq!(found, text, "renew the table with CONCILIUM_WRITE_DOCS=1");
    }

    #[test]
    fn what_is_recorded_is_what_is_documented() {
        let recorder = builder().expect("buckets are good").build_recorder();
        let handle = recorder.handle();
        let peer = PartyIndex::ALL[2];
        ::metrics::with_local_recorder(&recorder, || {
            describe();
            count_request("digits", known_reason("BUDGET_EXHAUSTED"), Duration::from_millis(7));
            count_request("digits", known_reason("anything"), Duration::from_millis(7));
            count_call("Predict", "OK");
            count_released_batch("digits", 16, 26, Duration::from_millis(30));
            count_failed_batch("digits");
            record_step("comparison", Duration::from_micros(300), Duration::from_micros(100));
            record_peer_wait(peer, Duration::from_millis(2));
            count_sent(peer, 2, 5);
            count_connection();
            count_connection_failure();
            count_stall("barrier", Some(peer));
            count_stall("ledger-commit", None);
            record_ledger_commit(Duration::from_millis(4));
            count_ledger_raise("digits");
            set_certificate_expiry(UNIX_EPOCH + Duration::from_secs(5));
        });
        let text = handle.render();
        assert!(text.contains(r#"concilium_requests_total{task="digits",outcome="OTHER"} 1"#), "{text}");
        assert!(text.contains(r#"concilium_batch_rows_bucket{task="digits",le="16"} 1"#), "{text}");
        assert!(text.contains(r#"concilium_batch_rows_bucket{task="digits",le="8"} 0"#), "{text}");
        assert!(text.contains(r#"concilium_stalls_total{step="ledger-commit",peer="none"} 1"#), "{text}");
        assert!(text.contains("concilium_certificate_expiry_timestamp_seconds 5"), "{text}");
        assert!(text.contains("concilium_ledger_commit_seconds_sum 0.004"), "{text}");
        // Gauges that are read from the server's parts are left: they are tested on real servers.
        let shown: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        for metric in names::ALL {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Histogram(_) => "histogram",
                Kind::Gauge => continue,
            };
            assert!(shown.contains(format!("{} {kind}", metric.name).as_str()), "{}: {shown:?}", metric.name);
            assert!(text.contains(&format!("# HELP {} ", metric.name)), "{}", metric.name);
        }
    }

    #[test]
    fn names_are_of_the_usual_form() {
        for metric in names::ALL {
            let name = metric.name;
            let allowed = |letter: char| letter.is_ascii_lowercase() || letter == '_';
            assert!(name.starts_with("concilium_") && name.chars().all(allowed), "{name}");
            assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(!matches!(metric.unit, "seconds") || name.ends_with("_seconds"), "{name}");
            assert!(metric.meaning.ends_with('.') && !metric.unit.is_empty(), "{name}");
        }
        let distinct: BTreeSet<_> = names::ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(distinct.len(), names::ALL.len());
    }
}
