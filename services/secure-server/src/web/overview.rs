//! What the page shows, as `GET /api/overview` answers it in JSON. Times are milliseconds since
//! 1970-01-01 UTC; rho is exact decimal text.

use std::fmt;

use serde::Serialize;

/// Everything on the page.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Overview {
    /// The server itself.
    pub server: ServerView,
    /// The most serious severity among the alerts; none if all is well.
    pub severity: Option<Severity>,
    /// What needs attention, the most serious first.
    pub alerts: Vec<Alert>,
    /// The two other servers.
    pub peers: Vec<PeerView>,
    /// The thread that runs batches.
    pub lane: LaneView,
    /// The server's certificate.
    pub certificate: CertificateView,
    /// The ledger's log.
    pub ledger: LedgerView,
    /// The tasks, by name.
    pub tasks: Vec<TaskView>,
}

/// The server itself.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ServerView {
    /// Its index: 0, 1 or 2.
    pub index: u8,
    /// Version of the program.
    pub version: String,
    /// The time by its clock.
    pub now_ms: u64,
    /// How long it runs.
    pub uptime_ms: u64,
    /// From when on requests are remembered.
    pub history_since_ms: u64,
    /// Requests that wait for a batch, of all tasks.
    pub queued_requests: u64,
    /// Most requests that may wait.
    pub most_queued_requests: u64,
}

/// How serious an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Notice,
    /// It will become serious if nothing is done.
    Warning,
    /// Requests are refused, or something is wrong.
    Critical,
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// How serious it is.
    pub severity: Severity,
    /// What is the case.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// Since when, where that is known.
    pub since_ms: Option<u64>,
}

/// One of the two other servers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PeerView {
    /// Its index.
    pub server: u8,
    /// Whether it is connected.
    pub connected: bool,
    /// Since when it is or is not.
    pub since_ms: u64,
    /// The address of its port for other servers.
    pub address: String,
    /// Version of its program when it was last connected, or empty.
    pub version: String,
    /// Why the link last broke or did not come about, or empty.
    pub last_error: String,
}

/// The thread that runs batches.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LaneView {
    /// Batches that were released since the start.
    pub batches: u64,
    /// Batches that failed since the start.
    pub failed_batches: u64,
    /// When the last one failed.
    pub failed_at_ms: Option<u64>,
    /// The last failure, or empty.
    pub last_error: String,
    /// What the running batch waits for.
    pub wait: Option<WaitView>,
}

/// A wait of the running batch.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WaitView {
    /// The step of the batch.
    pub step: String,
    /// The server waited for; none for this server's own disk or noise.
    pub peer: Option<u32>,
    /// How long it lasts.
    pub waited_ms: u64,
    /// Whether that is longer than `observability.stall_warning_ms`.
    pub stalled: bool,
}

/// The server's certificate.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CertificateView {
    /// Whose it is.
    pub identity: String,
    /// Until when it is valid.
    pub expires_ms: u64,
    /// The authority that signed it.
    pub authority: String,
    /// Until when the authority is valid.
    pub authority_expires_ms: u64,
    /// Why newer files were not taken into use.
    pub refusal: Option<String>,
}

/// The ledger's log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LedgerView {
    /// Entries in the log.
    pub entries: u64,
    /// Of them, how many the curves already have.
    pub entries_read: u64,
    /// Hash of the last entry.
    pub head: String,
}

/// Why a task is stopped.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StopView {
    /// Which server's ledger it is, and what differs.
    pub reason: String,
    /// Since when.
    pub since_ms: u64,
}

/// One task.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TaskView {
    /// Its name.
    pub name: String,
    /// Its epoch.
    pub epoch: u64,
    /// What is released: label or histogram.
    pub release: String,
    /// The noise that is paid for.
    pub mechanism: String,
    /// On whose word the epoch began, in a sentence; none for a first epoch.
    pub declaration: Option<String>,
    /// How the servers disagree on it, if they do.
    pub disagreement: Option<String>,
    /// Why this server has stopped it, if it has.
    pub stop: Option<StopView>,
    /// Its budget.
    pub budget: BudgetView,
    /// Its models.
    pub models: ModelsView,
    /// What it was asked.
    pub traffic: TrafficView,
    /// Rows of noise that are ready.
    pub noise_rows_ready: u64,
    /// Rows of noise that are kept ready.
    pub noise_rows_wanted: u64,
}

/// The budget of a task's epoch.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BudgetView {
    /// Most that may be spent.
    pub cap_rho: String,
    /// What was spent.
    pub spent_rho: String,
    /// What is left.
    pub left_rho: String,
    /// What is left of one.
    pub left_fraction: f64,
    /// Epsilon at `delta` of what was spent.
    pub spent_epsilon: f64,
    /// Epsilon at `delta` of the whole budget.
    pub cap_epsilon: f64,
    /// The delta of both.
    pub delta: f64,
    /// Price of a row.
    pub row_rho: String,
    /// Rows that the rest pays for.
    pub rows_left: u64,
    /// Requests that were charged.
    pub requests: u64,
    /// Rows that were charged.
    pub rows: u64,
    /// The spending window, if there is one.
    pub window: Option<WindowView>,
    /// Most that one client may spend.
    pub cap_per_client_rho: Option<String>,
    /// Clients, those that spent the most first.
    pub clients: Vec<ClientView>,
    /// Clients that are not in the list.
    pub clients_left_out: usize,
    /// Time and rho that was spent until then, as numbers to draw.
    pub curve: Vec<(u64, f64)>,
    /// When the budget will be gone.
    pub forecast: ForecastView,
}

/// Most that may be spent within a time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WindowView {
    /// How long it is.
    pub length_ms: u64,
    /// Most that may be spent within it.
    pub cap_rho: String,
    /// What was spent within it.
    pub spent_rho: String,
    /// What is left of it, of one.
    pub left_fraction: f64,
    /// When the next row fits, unless one fits now.
    pub next_row_at_ms: Option<u64>,
}

/// When a budget will be gone.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ForecastView {
    /// In words, with the time on which it is based.
    pub text: String,
    /// When nothing is left.
    pub exhausted_at_ms: Option<u64>,
    /// Whether nothing is left already.
    pub exhausted: bool,
}

/// What one client spent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClientView {
    /// Its name.
    pub client: String,
    /// What it spent.
    pub spent_rho: String,
    /// That, of its own cap or else of the task's, of one.
    pub spent_fraction: f64,
    /// Whether its own cap has no room for another row.
    pub exhausted: bool,
    /// Requests that were charged.
    pub requests: u64,
    /// Rows that were charged.
    pub rows: u64,
}

/// The models of a task.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelsView {
    /// Models that vote.
    pub ready: u64,
    /// Models that are uploaded and not compared with the other servers yet.
    pub staged: u64,
    /// Models that were refused.
    pub rejected: u64,
    /// Models of earlier epochs, which do not vote.
    pub retired: u64,
    /// Owners, by name.
    pub owners: Vec<OwnerView>,
    /// Owners that are not in the list.
    pub owners_left_out: usize,
}

/// The models of one owner.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OwnerView {
    /// The owner's name.
    pub owner: String,
    /// Models that vote.
    pub ready: u64,
    /// Models that are not compared yet.
    pub staged: u64,
    /// Models that were refused.
    pub rejected: u64,
    /// Models of earlier epochs, which do not vote.
    pub retired: u64,
    /// What is spent of the owner's own bound, in words; none without a bound.
    pub bound: Option<String>,
    /// Why the first of them was, or why the owner takes no part any more, or empty.
    pub reason: String,
}

/// What a task was asked lately.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TrafficView {
    /// Requests that wait for a batch.
    pub queued: u64,
    /// Minutes with requests, oldest first.
    pub minutes: Vec<MinuteView>,
    /// The last hour as one.
    pub hour: MinuteView,
    /// Refusals since the start, by reason.
    pub refusals: Vec<(String, u64)>,
}

/// What happened in a minute or in an hour.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MinuteView {
    /// When it began.
    pub start_ms: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Rows of their answers.
    pub rows: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Half of the answers took less, in milliseconds.
    pub p50_ms: Option<f64>,
    /// 95 of 100 answers took less, in milliseconds.
    pub p95_ms: Option<f64>,
}

impl fmt::Display for Severity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Severity::Notice => "notice",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        })
    }
}
