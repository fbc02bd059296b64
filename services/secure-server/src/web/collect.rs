//! Fills the overview from the state of the server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use concilium_privacy::convert::{delta_value, epsilon, rho};
use concilium_privacy::{
    BurnDown, Fits, Forecast, LedgerError, NanoRho, Participant, SpendingCurve, WindowState,
};
use concilium_rpc::v1::ModelState;

use super::alerts::{about, alerts};
use super::overview::{
    BudgetView, CertificateView, ClientView, ForecastView, LaneView, LedgerView, MinuteView, ModelsView,
    Overview, OwnerView, PeerView, ServerView, StopView, TaskView, TrafficView, WaitView, WindowView,
};
use crate::budget_service::describe;
use crate::context::Context;
use crate::history::{MINUTES_KEPT, MinuteSummary};
use crate::owners;
use crate::task::Task;

/// Most clients and owners of a task that are sent; a page with more shows nothing to anybody.
const MOST_CLIENTS: usize = 100;
const MOST_OWNERS: usize = 500;
/// Most points of a curve that are sent: more than a chart has pixels for is waste.
const MOST_POINTS: usize = 160;
/// Entries of the ledger's log that are read for one overview; a long log takes several.
const MOST_ENTRIES: usize = 65_536;

/// What the overview is made from.
pub(super) struct Source {
    context: Arc<Context>,
    /// `host:port` of the three servers' peer ports.
    peers: [String; 3],
    stall_warning: Duration,
    burn_down: Mutex<BurnDown>,
}

impl Source {
    pub(super) fn new(context: Arc<Context>, peers: [String; 3], stall_warning: Duration) -> Self {
        let epochs = context.tasks.all().map(|task| (task.name().to_owned(), task.policy.epoch));
        let burn_down = Mutex::new(BurnDown::new(epochs.collect::<Vec<_>>()));
        Source { context, peers, stall_warning, burn_down }
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The overview of this moment. Reads the ledger, so call it where blocking is allowed.
    pub(super) fn overview(&self) -> Result<Overview, LedgerError> {
        let context = &self.context;
        let now_ms = context.clock.now_ms();
        let mut burn_down = self.burn_down.lock().unwrap_or_else(PoisonError::into_inner);
        burn_down.read(context.ledger.as_ref(), MOST_ENTRIES)?;
        let head = context.ledger.head()?;
        let mut overview = Overview {
            server: ServerView {
                index: context.here.number() as u8,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                now_ms,
                uptime_ms: u64::try_from(context.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                history_since_ms: context.history.since_ms(),
                queued_requests: context.tasks.all().map(|task| context.room.count(task.name()) as u64).sum(),
                most_queued_requests: context.limits.waiting_requests as u64,
            },
            severity: None,
            alerts: Vec::new(),
            peers: self.peers(context.history.since_ms()),
            lane: self.lane(),
            certificate: self.certificate(),
            ledger: LedgerView {
                entries: head.entries,
                entries_read: burn_down.entries_read(),
                head: hex::encode(head.hash),
            },
            tasks: context
                .tasks
                .all()
                .map(|task| self.task(task, &burn_down, now_ms))
                .collect::<Result<_, _>>()?,
        };
        overview.alerts = alerts(&overview);
        overview.severity = overview.alerts.iter().map(|alert| alert.severity).max();
        Ok(overview)
    }

    fn peers(&self, started_ms: u64) -> Vec<PeerView> {
        let peers = self.context.lane.peers_to_wire(self.context.here).into_iter();
        peers
            .map(|peer| PeerView {
                server: peer.party as u8,
                connected: peer.connected,
                // Before the first attempt there is nothing but the start.
                since_ms: u64::try_from(peer.since_unix_ms).unwrap_or_default().max(started_ms),
                address: self.peers.get(peer.party as usize).cloned().unwrap_or_default(),
                version: peer.version,
                last_error: peer.last_error,
            })
            .collect()
    }

    fn lane(&self) -> LaneView {
        let status = self.context.lane.to_wire();
        LaneView {
            batches: status.batches,
            failed_batches: status.failed_batches,
            failed_at_ms: self.context.lane.failed_at_ms(),
            last_error: status.last_error,
            wait: status.wait.map(|wait| WaitView {
                stalled: u128::from(wait.waited_ms) > self.stall_warning.as_millis(),
                step: wait.step,
                peer: wait.peer,
                waited_ms: wait.waited_ms,
            }),
        }
    }

    fn certificate(&self) -> CertificateView {
        let material = self.context.tls.current();
        let (own, authority) = (material.info(), material.authority());
        let ms = |seconds: i64| u64::try_from(seconds).unwrap_or_default().saturating_mul(1000);
        CertificateView {
            identity: material.identity().to_string(),
            expires_ms: ms(own.not_after),
            authority: authority.subject.clone(),
            authority_expires_ms: ms(authority.not_after),
            refusal: self.context.tls.refusal(),
        }
    }

    fn task(&self, task: &Task, burn_down: &BurnDown, now_ms: u64) -> Result<TaskView, LedgerError> {
        let context = &self.context;
        let keys = &task.keys;
        Ok(TaskView {
            name: task.name().to_owned(),
            epoch: task.policy.epoch,
            release: keys.get("release").cloned().unwrap_or_default(),
            mechanism: describe(task),
            declaration: task
                .policy
                .declaration
                .as_ref()
                .map(|declaration| declaration.in_words(task.policy.epoch)),
            disagreement: context.tasks.check_agreement(task).err().map(|error| error.to_string()),
            stop: context
                .watch
                .stop_of(task.name())
                .map(|stop| StopView { reason: stop.reason, since_ms: stop.since_ms }),
            budget: self.budget(task, burn_down, now_ms)?,
            models: self.models(task)?,
            traffic: self.traffic(task, now_ms),
            noise_rows_ready: task.noise.ready() as u64,
            noise_rows_wanted: context.limits.noise_rows_ready as u64,
        })
    }

    fn budget(&self, task: &Task, burn_down: &BurnDown, now_ms: u64) -> Result<BudgetView, LedgerError> {
        let policy = &task.policy;
        let spending = self.context.ledger.spent(task.name(), policy.epoch)?;
        let spent = spending.total.rho;
        let left = policy.cap_total.saturating_sub(spent);
        let row = policy.row_cost().unwrap_or(NanoRho::new(u64::MAX));
        let mut clients: Vec<_> = spending.by_client.into_iter().collect();
        clients.sort_by(|a, b| b.1.rho.cmp(&a.1.rho).then_with(|| a.0.cmp(&b.0)));
        let clients_left_out = clients.len().saturating_sub(MOST_CLIENTS);
        clients.truncate(MOST_CLIENTS);
        let client_cap = policy.cap_per_client.unwrap_or(policy.cap_total);
        let clients = clients.into_iter().map(|(client, total)| ClientView {
            client,
            spent_rho: total.rho.to_string(),
            spent_fraction: fraction(total.rho, client_cap),
            exhausted: policy.cap_per_client.is_some_and(|cap| cap.saturating_sub(total.rho) < row),
            requests: total.requests,
            rows: total.rows,
        });
        // What is left but pays for no row is as good as nothing.
        let usable = if left < row { NanoRho::ZERO } else { left };
        let forecast = burn_down.forecast(task.name(), policy.epoch, usable, now_ms);
        let curve = burn_down.curve(task.name(), policy.epoch);
        // The policy was checked when it was read: its delta converts.
        let epsilon = |rho| epsilon(rho, policy.delta).unwrap_or(f64::MAX);
        Ok(BudgetView {
            cap_rho: policy.cap_total.to_string(),
            spent_rho: spent.to_string(),
            left_rho: left.to_string(),
            left_fraction: fraction(left, policy.cap_total),
            spent_epsilon: epsilon(spent),
            cap_epsilon: epsilon(policy.cap_total),
            delta: delta_value(policy.delta),
            row_rho: row.to_string(),
            rows_left: left.units().checked_div(row.units()).unwrap_or_default(),
            requests: spending.total.requests,
            rows: spending.total.rows,
            window: self.window(task, row)?,
            cap_per_client_rho: policy.cap_per_client.map(|cap| cap.to_string()),
            clients: clients.collect(),
            clients_left_out,
            curve: curve.map_or_else(Vec::new, |curve| points(curve, now_ms)),
            forecast: forecast_view(forecast, now_ms),
        })
    }

    fn window(&self, task: &Task, row: NanoRho) -> Result<Option<WindowView>, LedgerError> {
        let Some(window) = task.policy.window else { return Ok(None) };
        let WindowState { spent, fits } =
            self.context.ledger.window(task.name(), task.policy.epoch, window, row)?;
        Ok(Some(WindowView {
            length_ms: window.seconds.saturating_mul(1000),
            cap_rho: window.rho.to_string(),
            spent_rho: spent.to_string(),
            left_fraction: fraction(window.rho.saturating_sub(spent), window.rho),
            next_row_at_ms: match fits {
                Fits::Now => None,
                Fits::At(time_ms) => Some(time_ms),
                Fits::Never => Some(u64::MAX),
            },
        }))
    }

    fn models(&self, task: &Task) -> Result<ModelsView, LedgerError> {
        let mut view = ModelsView::default();
        let mut owners: BTreeMap<String, OwnerView> = BTreeMap::new();
        for entry in self.context.models.present(task.name()) {
            let owner = owners
                .entry(entry.key.owner.clone())
                .or_insert_with(|| OwnerView { owner: entry.key.owner.clone(), ..OwnerView::default() });
            let (sum, own) = match entry.state {
                ModelState::Ready => (&mut view.ready, &mut owner.ready),
                ModelState::Rejected => {
                    if owner.reason.is_empty() {
                        owner.reason = format!("{}: {}", entry.key.model, entry.reason);
                    }
                    (&mut view.rejected, &mut owner.rejected)
                }
                ModelState::Retired => (&mut view.retired, &mut owner.retired),
                _ => (&mut view.staged, &mut owner.staged),
            };
            *sum += 1;
            *own += 1;
        }
        let spending = self.context.ledger.spent(task.name(), task.policy.epoch)?;
        let ready = self.context.models.ready(task.name());
        for Participant { owner, cap } in owners::participants(&ready) {
            if let (Some(view), Some(cap)) = (owners.get_mut(&owner), cap) {
                let spent = owners::spent_on(&spending, &owner);
                view.bound = Some(format!("own bound: {spent} of {cap} rho spent"));
            }
        }
        for (owner, reason) in owners::left(task, &ready, &spending) {
            if let Some(view) = owners.get_mut(&owner).filter(|view| view.reason.is_empty()) {
                view.reason = reason;
            }
        }
        view.owners_left_out = owners.len().saturating_sub(MOST_OWNERS);
        view.owners = owners.into_values().take(MOST_OWNERS).collect();
        Ok(view)
    }

    fn traffic(&self, task: &Task, now_ms: u64) -> TrafficView {
        let (name, history) = (task.name(), &self.context.history);
        let minutes = history.minutes(name, now_ms, MINUTES_KEPT as u64);
        TrafficView {
            queued: self.context.room.count(name) as u64,
            minutes: minutes.into_iter().map(minute_view).collect(),
            hour: minute_view(history.together(name, now_ms, 60)),
            refusals: history.refusals(name).into_iter().collect(),
        }
    }
}

fn fraction(part: NanoRho, whole: NanoRho) -> f64 {
    if whole == NanoRho::ZERO { 0.0 } else { part.units() as f64 / whole.units() as f64 }
}

fn minute_view(minute: MinuteSummary) -> MinuteView {
    let ms = |latency: Option<Duration>| latency.map(|latency| latency.as_secs_f64() * 1e3);
    MinuteView {
        start_ms: minute.start_ms,
        answered: u64::from(minute.answered),
        rows: minute.rows,
        refused: u64::from(minute.refused),
        p50_ms: ms(minute.latency_p50),
        p95_ms: ms(minute.latency_p95),
    }
}

/// The curve up to now, thinned to what a chart can show; its last point is the present total.
fn points(curve: &SpendingCurve, now_ms: u64) -> Vec<(u64, f64)> {
    let points = curve.points();
    let last = points.len() - 1;
    let stride = points.len().div_ceil(MOST_POINTS);
    // The last step may not have ended yet.
    let point = |(time, spent): (u64, NanoRho)| (time.min(now_ms.max(curve.first_ms())), rho(spent));
    let kept = points.into_iter().enumerate().filter(|(index, _)| index % stride == 0 || *index == last);
    let mut kept: Vec<_> = kept.map(|(_, at)| point(at)).collect();
    if let Some(&(_, spent)) = kept.last().filter(|(time, _)| *time < now_ms) {
        kept.push((now_ms, spent));
    }
    kept
}

fn forecast_view(forecast: Forecast, now_ms: u64) -> ForecastView {
    let mut view = ForecastView::default();
    view.text = match forecast {
        Forecast::Exhausted => {
            view.exhausted = true;
            "exhausted".to_owned()
        }
        Forecast::NothingSpent => "nothing was spent yet".to_owned(),
        Forecast::TooLittleData { charges, age } => format!(
            "no forecast: too little data ({charges} {} in the last 7 days, the first ever {} ago)",
            if charges == 1 { "charge" } else { "charges" },
            about(age)
        ),
        Forecast::Idle => "no forecast: nothing was spent in the last 7 days".to_owned(),
        Forecast::At { time_ms, basis, .. } => {
            view.exhausted_at_ms = Some(time_ms);
            let left = Duration::from_millis(time_ms.saturating_sub(now_ms));
            format!("gone in about {} at the rate of the last {}", about(left), about(basis))
        }
    };
    view
}
