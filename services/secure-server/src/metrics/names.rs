//! Every measurement by name: what it is, its unit, and its labels. `docs/metrics.md` is made of this.
//!
//! Labels come from small sets: tasks and owners' states from the configuration, peers, steps and
//! outcomes from the program. Names of clients and owners are no labels: there is no bound on them.
//! No measurement depends on an input, a weight, a vote or a noise value.

use concilium_rpc::status::TABLE;

/// How a measurement behaves over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// Goes up and down; read when it is asked for.
    Gauge,
    /// Observations counted by size.
    Histogram(&'static [f64]),
}

/// One measurement.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) unit: &'static str,
    /// Compared with what real servers serve.
    #[cfg_attr(not(test), expect(dead_code, reason = "recorded where the measurement is made"))]
    pub(crate) labels: &'static [&'static str],
    pub(crate) meaning: &'static str,
}

/// From one round over loopback to a wait that clients no longer bear.
const SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
];

/// Up to the largest batch that limits allow.
const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// Declares the measurements and the list of all of them.
macro_rules! metrics {
    ($($constant:ident $name:literal $kind:expr, $unit:literal, [$($label:literal),*], $meaning:literal;)+) => {
        $(
            pub(crate) const $constant: Metric = Metric {
                name: concat!("concilium_", $name),
                kind: $kind,
                unit: $unit,
                labels: &[$($label),*],
                meaning: $meaning,
            };
        )+
        /// All measurements, as they are documented.
        pub(crate) const ALL: &[&Metric] = &[$(&$constant),+];
    };
}

use Kind::{Counter, Gauge, Histogram};

metrics! {
    REQUESTS "requests_total" Counter, "requests", ["task", "outcome"],
        "Requests of clients that ended: `answered`, `replayed` (the kept result was sent again), `abandoned` (the client hung up), or the reason of the refusal. The task is empty where none of this server's was named.";
    REQUEST_DURATION "request_duration_seconds" Histogram(SECONDS), "seconds", ["task"],
        "From the arrival of a request to its answer or refusal, the wait for a batch included.";
    CALLS "calls_total" Counter, "calls", ["method", "code"],
        "Calls on the port for clients, owners and operators that ended, by gRPC status code. Methods of health and reflection are `other`.";
    WAITING "waiting_requests" Gauge, "requests", ["task"],
        "Requests that wait for a batch.";
    BATCHES "batches_total" Counter, "batches", ["task", "outcome"],
        "Batches that were `released` or that `failed`. A failed one was charged only if a ledger had committed before.";
    BATCH_ROWS "batch_rows" Histogram(ROWS), "rows", ["task"],
        "Rows that were evaluated together in one batch.";
    BATCH_DURATION "batch_duration_seconds" Histogram(SECONDS), "seconds", ["task"],
        "From the plan of a released batch to its release.";
    STEP_DURATION "step_duration_seconds" Histogram(SECONDS), "seconds", ["step"],
        "Time in one step of a batch, computation and waiting together; a batch has `linear`, `comparison` and `selection` once for each layer.";
    STEP_WAIT "step_wait_seconds" Histogram(SECONDS), "seconds", ["step"],
        "Part of a step in which this server waited for messages of its peers; steps without such a wait are left out.";
    PEER_WAIT "peer_wait_seconds" Histogram(SECONDS), "seconds", ["peer"],
        "Time of one batch in which this server waited for messages of a peer.";
    ROUNDS "rounds_total" Counter, "rounds", ["task"],
        "Rounds of the multi-party computation: the longest chain of dependent messages, summed over batches.";
    SENT_BYTES "sent_bytes_total" Counter, "bytes", ["peer"],
        "Payload of the multi-party computation sent to a peer, without framing.";
    SENT_MESSAGES "sent_messages_total" Counter, "messages", ["peer"],
        "Messages of the multi-party computation sent to a peer; a long one counts once for each of its records.";
    PEER_CONNECTED "peer_connected" Gauge, "0 or 1", ["peer"],
        "Whether the link to a peer is up.";
    CONNECTIONS "peer_connections_total" Counter, "connections", [],
        "How often the links to both peers came up; all but the first are reconnections.";
    CONNECTION_FAILURES "peer_connection_failures_total" Counter, "failures", [],
        "How often the links to the peers were given up.";
    STALLS "stalls_total" Counter, "stalls", ["step", "peer"],
        "Waits longer than `observability.stall_warning_ms`, by the step and the peer waited for; the peer is `none` for this server's own disk or noise.";
    WAIT "wait_seconds" Gauge, "seconds", [],
        "Age of the longest wait that a running batch is in; 0 if there is none.";
    LEDGER_COMMIT "ledger_commit_seconds" Histogram(SECONDS), "seconds", [],
        "Time in which the ledger made a batch's charges durable.";
    LEDGER_ENTRIES "ledger_entries" Gauge, "entries", [],
        "Entries of the ledger. The three servers' ledgers have different numbers of them after a crash.";
    LEDGER_RAISES "ledger_raises_total" Counter, "raises", ["task"],
        "How often this server's totals were raised to another's, because a batch failed between two commits or this ledger was restored from a copy.";
    TASK_STOPPED "task_stopped" Gauge, "0 or 1", ["task"],
        "Whether the task is stopped because the ledgers do not belong together; operators let it go on with `concilium-operator budget resume`.";
    BUDGET_SPENT "budget_spent_rho" Gauge, "rho", ["task"],
        "Privacy loss charged to the task's epoch, for all clients together.";
    BUDGET_CAP "budget_cap_rho" Gauge, "rho", ["task"],
        "Cap of the task's epoch for all clients together.";
    BUDGET_CLIENT_MAXIMUM "budget_client_spent_max_rho" Gauge, "rho", ["task"],
        "Privacy loss charged to the client that has spent most. Who it is: `concilium-operator budget`.";
    BUDGET_CLIENT_CAP "budget_client_cap_rho" Gauge, "rho", ["task"],
        "Cap of one client; absent for tasks that have none.";
    MODELS "models" Gauge, "models", ["task", "state"],
        "Models that are `staged`, `ready`, `rejected` or `retired`.";
    OWNERS "owners_ready" Gauge, "owners", ["task"],
        "Owners with at least one model that is ready.";
    NOISE_READY "noise_rows_ready" Gauge, "rows", ["task"],
        "Rows of noise drawn ahead. A batch that finds none left waits for the draw.";
    CERTIFICATE_EXPIRY "certificate_expiry_timestamp_seconds" Gauge, "seconds since 1970-01-01 UTC", [],
        "End of the validity of this server's certificate.";
    UPTIME "uptime_seconds" Gauge, "seconds", [],
        "Time since the server started.";
    BUILD "build_info" Gauge, "always 1", ["server", "version"],
        "Which server this is and the version of its program.";
}

/// The reason of a refusal as a label, if it is one of the table: a peer can send any text.
pub(crate) fn known_reason(reason: &str) -> &'static str {
    TABLE.iter().map(|(known, ..)| *known).find(|known| *known == reason).unwrap_or("OTHER")
}

/// The list of all measurements as a Markdown table.
#[cfg(test)]
pub(crate) fn markdown_table() -> String {
    let mut table = "| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n".to_owned();
    for Metric { name, kind, unit, labels, meaning } in ALL {
        let kind = match kind {
            Counter => "counter",
            Gauge => "gauge",
            Histogram(_) => "histogram",
        };
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        table += &format!("| `{name}` | {kind} | {unit} | {} | {meaning} |\n", labels.join(", "));
    }
    table
}
