//! What needs attention, from the facts of the overview, and what to do about it.

use std::time::Duration;

use super::overview::{Alert, Overview, Severity, TaskView};

/// A budget with less than this part left is warned of.
const LOW_BUDGET: f64 = 0.1;
/// A budget that is gone sooner than this is warned of.
const SOON: Duration = Duration::from_secs(7 * 86_400);
/// A certificate that ends sooner than this is warned of.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(30 * 86_400);
/// How long a failed batch is reported.
const FAILURE_MEMORY: Duration = Duration::from_secs(3600);
/// Part of the waiting requests from which on the queue is warned of.
const FULL_QUEUE: f64 = 0.8;

/// A time in words that are as exact as anybody needs.
pub(super) fn about(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..=89 => format!("{seconds} s"),
        90..=5_399 => format!("{} min", (seconds + 30) / 60),
        5_400..=172_799 => format!("{} h", (seconds + 1_800) / 3_600),
        172_800..=63_071_999 => format!("{} days", (seconds + 43_200) / 86_400),
        _ => format!("{} years", (seconds + 15_768_000) / 31_536_000),
    }
}

/// The alerts, the most serious first.
pub(super) fn alerts(overview: &Overview) -> Vec<Alert> {
    let mut alerts = Vec::new();
    of_peers(overview, &mut alerts);
    of_versions(overview, &mut alerts);
    of_certificate(overview, &mut alerts);
    of_lane(overview, &mut alerts);
    overview.tasks.iter().for_each(|task| of_task(task, overview.server.now_ms, &mut alerts));
    // Stable: within a severity the order above stays.
    alerts.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
    alerts
}

fn alert(severity: Severity, what: String, remedy: &str) -> Alert {
    Alert { severity, what, remedy: remedy.to_owned(), since_ms: None }
}

fn of_peers(overview: &Overview, alerts: &mut Vec<Alert>) {
    for peer in overview.peers.iter().filter(|peer| !peer.connected) {
        let reason = match peer.last_error.as_str() {
            "" => String::new(),
            error => format!(": {error}"),
        };
        alerts.push(Alert {
            severity: Severity::Critical,
            what: format!("Server {} is not connected, so no request can be answered{reason}", peer.server),
            remedy: format!(
                "Ask its operator whether it runs; check that {} is reachable from here and that both sides \
                 have the same authority.",
                peer.address
            ),
            since_ms: Some(peer.since_ms),
        });
    }
}

fn of_versions(overview: &Overview, alerts: &mut Vec<Alert>) {
    let other = |version: &String| !version.is_empty() && *version != overview.server.version;
    for peer in overview.peers.iter().filter(|peer| peer.connected && other(&peer.version)) {
        alerts.push(alert(
            Severity::Notice,
            format!(
                "Server {} runs version {}, this one {}",
                peer.server, peer.version, overview.server.version
            ),
            "Bring all three servers to the same version soon.",
        ));
    }
}

fn of_certificate(overview: &Overview, alerts: &mut Vec<Alert>) {
    let (certificate, now_ms) = (&overview.certificate, overview.server.now_ms);
    let ends = [
        (
            "This server's certificate",
            certificate.expires_ms,
            "Renew it with `concilium-operator certs renew`.",
        ),
        (
            "The consortium's authority",
            certificate.authority_expires_ms,
            "Agree with the other operators on a new authority; `tls.ca` may hold both for the change.",
        ),
    ];
    for (whose, expires_ms, remedy) in ends {
        let left = Duration::from_millis(expires_ms.saturating_sub(now_ms));
        if expires_ms <= now_ms {
            alerts.push(alert(Severity::Critical, format!("{whose} has expired"), remedy));
        } else if left < CERTIFICATE_WARNING {
            alerts.push(alert(Severity::Warning, format!("{whose} expires in {}", about(left)), remedy));
        }
    }
    if let Some(refusal) = &certificate.refusal {
        let what = format!("The certificate files have changed but are not used: {refusal}");
        alerts.push(alert(
            Severity::Warning,
            what,
            "Correct the files; they are looked at again by themselves.",
        ));
    }
}

fn of_lane(overview: &Overview, alerts: &mut Vec<Alert>) {
    let (lane, server) = (&overview.lane, &overview.server);
    if let Some(wait) = lane.wait.as_ref().filter(|wait| wait.stalled) {
        let whom = wait.peer.map_or_else(|| "this server itself".to_owned(), |peer| format!("server {peer}"));
        let waited = about(Duration::from_millis(wait.waited_ms));
        alerts.push(alert(
            Severity::Warning,
            format!("The running batch has been waiting for {whom} for {waited} ({})", wait.step),
            "If it is another server, ask its operator about load and network; if it is this one, look at its \
             disk and processor.",
        ));
    }
    if let Some(failed_at_ms) = lane.failed_at_ms
        && server.now_ms.saturating_sub(failed_at_ms) < FAILURE_MEMORY.as_millis() as u64
    {
        alerts.push(Alert {
            severity: Severity::Warning,
            what: format!(
                "{} since the start, the last in the last hour: {}",
                failures(lane.failed_batches),
                lane.last_error
            ),
            remedy: "Clients ask again by themselves. If it goes on, compare the logs of the servers."
                .to_owned(),
            since_ms: Some(failed_at_ms),
        });
    }
    if server.queued_requests as f64 >= FULL_QUEUE * server.most_queued_requests as f64
        && server.queued_requests > 0
    {
        alerts.push(alert(
            Severity::Warning,
            format!(
                "{} of at most {} requests wait for a batch; more are refused",
                server.queued_requests, server.most_queued_requests
            ),
            "Ask for less, raise `limits.batch_rows`, or `limits.waiting_requests` if the load is short.",
        ));
    }
}

fn failures(count: u64) -> String {
    if count == 1 {
        "1 connection or batch failed".to_owned()
    } else {
        format!("{count} connections or batches failed")
    }
}

fn of_task(task: &TaskView, now_ms: u64, alerts: &mut Vec<Alert>) {
    let TaskView { name, budget, models, .. } = task;
    if let Some(disagreement) = &task.disagreement {
        alerts.push(alert(
            Severity::Critical,
            format!("The servers disagree on task {name}: {disagreement}"),
            "Give all three servers the same task file and restart those that had another.",
        ));
    }
    if let Some(stop) = &task.stop {
        alerts.push(Alert {
            severity: Severity::Critical,
            what: format!("Task {name} is stopped: {}", stop.reason),
            remedy: "Its requests are refused. Find out with the two other operators which ledger was restored or \
                     lost; the totals were raised to the largest. Then let the task go on, on all three servers, \
                     with `concilium-operator budget resume`."
                .to_owned(),
            since_ms: Some(stop.since_ms),
        });
    }
    let more = "Nothing can be taken back. A new epoch needs models trained anew on data that counts anew; a larger \
                `budget_rho` needs all three operators and the owners' consent.";
    if budget.forecast.exhausted {
        let what = format!("The budget of task {name} is exhausted: its requests are refused");
        alerts.push(alert(Severity::Critical, what, more));
    } else {
        if budget.left_fraction < LOW_BUDGET {
            let left = budget.left_fraction * 100.0;
            let what =
                format!("Only {left:.1} % of the budget of task {name} is left: {} rows", budget.rows_left);
            alerts.push(alert(Severity::Warning, what, more));
        }
        if let Some(gone_ms) = budget.forecast.exhausted_at_ms
            && gone_ms.saturating_sub(now_ms) < SOON.as_millis() as u64
        {
            let what = format!("The budget of task {name} will be {}", budget.forecast.text);
            alerts.push(alert(Severity::Warning, what, "Tell its clients, or plan the next epoch."));
        }
    }
    let exhausted: Vec<_> = budget.clients.iter().filter(|client| client.exhausted).collect();
    if let [first, rest @ ..] = exhausted.as_slice() {
        let others = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        alerts.push(alert(
            Severity::Notice,
            format!("Client {}{others} has used up its own budget of task {name}", first.client),
            "That is what `budget_per_client_rho` is for; raise it on all three servers if it was too little.",
        ));
    }
    if models.rejected > 0 {
        let owner = models.owners.iter().find(|owner| owner.rejected > 0);
        let example =
            owner.map_or_else(String::new, |owner| format!(", as {}'s {}", owner.owner, owner.reason));
        alerts.push(alert(
            Severity::Warning,
            format!("Rejected models of task {name}: {}{example}", models.rejected),
            "Its owner withdraws the model and shares it again; the servers had different shares of it.",
        ));
    }
    if models.ready == 0 {
        alerts.push(alert(
            Severity::Notice,
            format!("Task {name} has no ready model: its requests are refused"),
            "Owners share models with `concilium-owner share`.",
        ));
    }
    if task.noise_rows_ready == 0 {
        alerts.push(alert(
            Severity::Notice,
            format!("No noise is ready for task {name}: batches wait for it"),
            "If it stays so, raise `limits.noise_rows_ready` or give the server more processor time.",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::overview::{
        BudgetView, CertificateView, ForecastView, LaneView, ModelsView, OwnerView, PeerView, ServerView,
        StopView, WaitView,
    };

    const NOW: u64 = 1_790_000_000_000;
    const DAY: u64 = 86_400_000;

    /// A server of which nothing is to be said.
    fn healthy() -> Overview {
        let peer =
            |server| PeerView { server, connected: true, address: "peer:7411".into(), ..PeerView::default() };
        Overview {
            server: ServerView {
                now_ms: NOW,
                most_queued_requests: 10,
                version: "2".into(),
                ..ServerView::default()
            },
            peers: vec![peer(1), peer(2)],
            certificate: CertificateView {
                expires_ms: NOW + 31 * DAY,
                authority_expires_ms: NOW + 31 * DAY,
                ..CertificateView::default()
            },
            tasks: vec![TaskView {
                name: "digits".into(),
                budget: BudgetView { left_fraction: 0.5, ..BudgetView::default() },
                models: ModelsView { ready: 1, ..ModelsView::default() },
                noise_rows_ready: 1,
                ..TaskView::default()
            }],
            ..Overview::default()
        }
    }

    #[test]
    fn nothing_is_said_of_a_healthy_server() {
        assert_eq!(alerts(&healthy()), []);
    }

    /// One fault at a time: its severity, and words that name it.
    #[test]
    fn each_fault_is_named_with_a_remedy() {
        type Fault = fn(&mut Overview);
        let faults: [(Fault, Severity, &[&str]); 18] = [
            (
                |o| (o.peers[1].connected, o.peers[1].last_error) = (false, "refused".into()),
                Severity::Critical,
                &["Server 2", "refused"],
            ),
            (|o| o.peers[0].version = "1".into(), Severity::Notice, &["Server 1 runs version 1"]),
            (
                |o| o.certificate.expires_ms = NOW + 29 * DAY,
                Severity::Warning,
                &["certificate expires in 29 days"],
            ),
            (|o| o.certificate.expires_ms = NOW, Severity::Critical, &["certificate has expired"]),
            (
                |o| o.certificate.authority_expires_ms = NOW + DAY,
                Severity::Warning,
                &["authority expires in 24 h"],
            ),
            (
                |o| o.certificate.refusal = Some("other key".into()),
                Severity::Warning,
                &["not used: other key"],
            ),
            (
                |o| {
                    let reason = "the ledger of server 2 has 8 entries".into();
                    o.tasks[0].stop = Some(StopView { reason, since_ms: NOW });
                },
                Severity::Critical,
                &["Task digits is stopped", "server 2 has 8 entries"],
            ),
            (
                |o| {
                    let (step, peer) = ("barrier".into(), Some(1));
                    o.lane.wait = Some(WaitView { step, peer, waited_ms: 5000, stalled: true });
                },
                Severity::Warning,
                &["waiting for server 1 for 5 s (barrier)"],
            ),
            (
                |o| {
                    let last_error = "server 2 left".into();
                    let failed_at_ms = Some(NOW - 60_000);
                    o.lane = LaneView { failed_batches: 2, failed_at_ms, last_error, ..LaneView::default() };
                },
                Severity::Warning,
                &["2 connections or batches failed", "server 2 left"],
            ),
            (|o| o.server.queued_requests = 8, Severity::Warning, &["8 of at most 10"]),
            (
                |o| o.tasks[0].disagreement = Some("`sigma` is 5 here and 6 there".into()),
                Severity::Critical,
                &["disagree on task digits", "sigma"],
            ),
            (
                |o| o.tasks[0].budget.forecast.exhausted = true,
                Severity::Critical,
                &["task digits is exhausted"],
            ),
            (|o| o.tasks[0].budget.left_fraction = 0.099, Severity::Warning, &["Only 9.9 %", "digits"]),
            (
                |o| {
                    let text = "gone in about 6 days at the rate of the last 24 h".into();
                    let exhausted_at_ms = Some(NOW + 6 * DAY);
                    o.tasks[0].budget.forecast = ForecastView { text, exhausted_at_ms, exhausted: false };
                },
                Severity::Warning,
                &["digits will be gone in about 6 days at the rate"],
            ),
            (
                |o| {
                    let client = crate::web::overview::ClientView {
                        client: "alice".into(),
                        exhausted: true,
                        ..Default::default()
                    };
                    o.tasks[0].budget.clients = vec![client];
                },
                Severity::Notice,
                &["Client alice", "digits"],
            ),
            (
                |o| {
                    let (owner, reason) = ("ward".into(), "m1: other shares".into());
                    o.tasks[0].models.rejected = 1;
                    o.tasks[0].models.owners =
                        vec![OwnerView { owner, rejected: 1, reason, ..OwnerView::default() }];
                },
                Severity::Warning,
                &["Rejected models of task digits: 1", "ward's m1: other shares"],
            ),
            (|o| o.tasks[0].models.ready = 0, Severity::Notice, &["digits has no ready model"]),
            (|o| o.tasks[0].noise_rows_ready = 0, Severity::Notice, &["No noise is ready for task digits"]),
        ];
        for (fault, severity, words) in faults {
            let mut overview = healthy();
            fault(&mut overview);
            let alerts = alerts(&overview);
            assert_eq!(alerts.len(), 1, "{words:?}: {alerts:?}");
            assert_eq!(alerts[0].severity, severity, "{alerts:?}");
            assert!(words.iter().all(|word| alerts[0].what.contains(word)), "{words:?}: {alerts:?}");
            assert!(!alerts[0].remedy.is_empty());
        }
    }

    #[test]
    fn the_most_serious_comes_first_and_old_failures_are_forgotten() {
        let mut overview = healthy();
        overview.tasks[0].noise_rows_ready = 0;
        overview.certificate.expires_ms = NOW + DAY;
        overview.peers[0].connected = false;
        overview.lane.failed_at_ms = Some(NOW - 3_600_000);
        let severities: Vec<_> = alerts(&overview).iter().map(|alert| alert.severity).collect();
        assert_eq!(severities, [Severity::Critical, Severity::Warning, Severity::Notice]);
    }

    #[test]
    fn times_are_told_roughly() {
        let about = |seconds| about(Duration::from_secs(seconds));
        assert_eq!([about(0), about(89), about(90), about(5_400)], ["0 s", "89 s", "2 min", "2 h"]);
        assert_eq!([about(86_400), about(259_200), about(63_072_000)], ["24 h", "3 days", "2 years"]);
    }
}
