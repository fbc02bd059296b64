//! The page with more, and with less, than a test can make real servers hold.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::header;
use axum::routing::get;
use concilium_server::web::{self, overview::*};

use crate::browser;

const NOW: u64 = 1_790_000_000_000;
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// Would run if it were ever taken as markup.
const HOSTILE: &str = "<img src=x onerror=\"window.taken=1\"><script>window.taken=1</script>";

fn server(now_ms: u64) -> Overview {
    let peer = |server| PeerView {
        server,
        connected: true,
        since_ms: now_ms - 3 * HOUR,
        address: "s:1".into(),
        ..PeerView::default()
    };
    Overview {
        server: ServerView {
            index: 0,
            version: "0.1.0".into(),
            now_ms,
            uptime_ms: 3 * HOUR,
            history_since_ms: now_ms - 3 * HOUR,
            queued_requests: 12,
            most_queued_requests: 1024,
        },
        peers: vec![peer(1), peer(2)],
        certificate: CertificateView {
            identity: "server `server-0`".into(),
            expires_ms: now_ms + 200 * DAY,
            authority: "CN=consortium".into(),
            authority_expires_ms: now_ms + 2000 * DAY,
            refusal: None,
        },
        ledger: LedgerView { entries: 9, entries_read: 9, head: "ab".repeat(32) },
        ..Overview::default()
    }
}

fn forecast(text: &str, exhausted_at_ms: Option<u64>) -> ForecastView {
    ForecastView { text: text.into(), exhausted_at_ms, exhausted: false }
}

/// A task of which `spent` of one is spent, over some weeks with quiet weekends.
fn task(name: &str, spent: f64, clients: usize, owners: u64) -> TaskView {
    let days = 30_u32;
    let weights: Vec<f64> =
        (0..days * 4).map(|step| if step / 4 % 7 < 5 { 1.0 + f64::from(step % 4) } else { 0.1 }).collect();
    let sum: f64 = weights.iter().sum();
    let mut total = 0.0;
    let curve = weights.iter().enumerate().map(|(step, weight)| {
        total += weight / sum * spent * 40.0;
        (NOW - (u64::from(days) * 4 - step as u64) * 6 * HOUR + 6 * HOUR, total)
    });
    let minutes = (0..180_u64).filter(|minute| minute % 37 > 3).map(|minute| MinuteView {
        start_ms: (NOW / 60_000 - 179 + minute) * 60_000,
        answered: 40 + (minute * 7919) % 61,
        rows: 100,
        refused: if minute % 29 == 0 { 17 } else { 0 },
        p50_ms: Some(6.0 + ((minute * 31) % 17) as f64 / 5.0),
        p95_ms: Some(14.0 + ((minute * 71) % 43) as f64),
    });
    TaskView {
        name: name.into(),
        epoch: 3,
        release: "label".into(),
        mechanism: "discrete Gaussian, sigma 5".into(),
        declaration: Some(
            "Epoch 3 began with nothing spent. The board of the registry answers for that.".into(),
        ),
        disagreement: None,
        stop: None,
        budget: BudgetView {
            cap_rho: "40".into(),
            spent_rho: format!("{:.9}", spent * 40.0),
            left_rho: format!("{:.9}", (1.0 - spent) * 40.0),
            left_fraction: 1.0 - spent,
            spent_epsilon: 58.3 * spent,
            cap_epsilon: 84.2,
            delta: 1e-5,
            row_rho: "0.040000001".into(),
            rows_left: ((1.0 - spent) * 1000.0) as u64,
            requests: 4711,
            rows: (spent * 1000.0) as u64,
            window: Some(WindowView {
                length_ms: DAY,
                cap_rho: "0.5".into(),
                spent_rho: "0.480000012".into(),
                left_fraction: 0.04,
                next_row_at_ms: Some(NOW + 3 * HOUR),
            }),
            cap_per_client_rho: Some("4".into()),
            clients: (0..clients)
                .map(|client| ClientView {
                    client: format!("hospital-{client}-department-of-radiology-{}", "x".repeat(client % 30)),
                    spent_rho: format!("{:.9}", 4.0 / (client + 1) as f64),
                    spent_fraction: 1.0 / (client + 1) as f64,
                    exhausted: client == 0,
                    requests: 10,
                    rows: 20,
                })
                .collect(),
            clients_left_out: 0,
            curve: curve.collect(),
            forecast: forecast("gone in about 12 days at the rate of the last 24 h", Some(NOW + 12 * DAY)),
        },
        models: ModelsView {
            ready: owners * 2,
            staged: 1,
            retired: 0,
            rejected: 1,
            owners: (0..owners)
                .map(|owner| OwnerView {
                    owner: format!("ward-{owner}"),
                    ready: 1 + owner % 3,
                    staged: u64::from(owner == 3),
                    retired: 0,
                    rejected: u64::from(owner == 5),
                    bound: (owner == 7).then(|| "own bound: 0.25 of 0.5 rho spent".into()),
                    reason: if owner == 5 { "m1: another copy on server 2".into() } else { String::new() },
                })
                .collect(),
            owners_left_out: 0,
        },
        traffic: TrafficView {
            queued: 12,
            minutes: minutes.collect(),
            hour: MinuteView {
                start_ms: NOW - HOUR,
                answered: 4000,
                rows: 9000,
                refused: 34,
                p50_ms: Some(7.3),
                p95_ms: Some(41.0),
            },
            refusals: vec![("BUDGET_EXHAUSTED".into(), 85), ("NO_MODELS".into(), 3)],
        },
        noise_rows_ready: 512,
        noise_rows_wanted: 512,
    }
}

/// Much of everything, with the longest names and some that try to be markup.
fn much() -> Overview {
    let mut overview = server(NOW);
    overview.tasks = (0..20_u32)
        .map(|index| {
            let name = if index % 4 == 1 {
                format!("{}-{index}", "retinopathy-screening-".repeat(2))
            } else {
                format!("task-{index}")
            };
            task(&name, f64::from(index) / 20.0, 50, 100)
        })
        .collect();
    overview.tasks[0].name = "chest-x-ray".into();
    overview.tasks[0].budget.clients[1].client = HOSTILE.into();
    overview.tasks[0].models.owners[5].reason = HOSTILE.into();
    overview.severity = Some(Severity::Critical);
    let alert = |severity, what: &str, since_ms| Alert {
        severity,
        what: what.into(),
        remedy: "Ask its operator whether it runs.".into(),
        since_ms,
    };
    overview.alerts = vec![
        alert(
            Severity::Critical,
            "Server 2 is not connected, so no request can be answered",
            Some(NOW - HOUR),
        ),
        alert(Severity::Warning, &format!("Only 5.0 % of the budget of task {HOSTILE} is left"), None),
        alert(Severity::Notice, &format!("A word without a break: {}", "y".repeat(200)), None),
    ];
    overview.peers[1].connected = false;
    overview.certificate.expires_ms = NOW + 12 * DAY;
    overview
}

fn exhausted() -> Overview {
    let mut overview = server(NOW);
    let mut task = task("votes", 1.0, 3, 5);
    task.budget.forecast = ForecastView { text: "exhausted".into(), exhausted_at_ms: None, exhausted: true };
    overview.tasks = vec![task];
    overview.severity = Some(Severity::Critical);
    overview.alerts = vec![Alert {
        severity: Severity::Critical,
        what: "The budget of task votes is exhausted".into(),
        remedy: "Queries are refused until a new epoch.".into(),
        since_ms: None,
    }];
    overview
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_bears_much_nothing_and_hostile_names() {
    let Some(mut browser) = browser::start("the_page_bears_much_nothing_and_hostile_names") else { return };
    let shown = Arc::new(Mutex::new(Overview::default()));
    let source = Arc::clone(&shown);
    let answer = move || async move {
        let overview = source.lock().unwrap_or_else(PoisonError::into_inner);
        ([(header::CONTENT_TYPE, "application/json")], serde_json::to_string(&*overview).expect("JSON"))
    };
    let router: Router = web::files().route("/api/overview", get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let origin = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });

    let mut nothing = task("votes", 0.0, 0, 0);
    nothing.budget.curve.clear();
    (nothing.budget.window, nothing.declaration) = (None, None);
    nothing.budget.forecast = forecast("nothing was spent yet", None);
    nothing.traffic = TrafficView::default();
    nothing.models = ModelsView::default();
    let empty = Overview { tasks: vec![nothing], ..server(NOW) };
    for (name, overview) in [("much", much()), ("nothing", empty), ("exhausted", exhausted())] {
        *shown.lock().unwrap_or_else(PoisonError::into_inner) = overview;
        for (width, size) in [(1440, "wide"), (390, "narrow")] {
            for dark in [false, true] {
                browser.resize(width, 900, dark);
                browser.open(&origin);
                browser.assert_no_overflow(&format!("{name} {size}"));
                browser.screenshot(&format!("{name}-{size}-{}.png", if dark { "dark" } else { "light" }));
            }
        }
        match name {
            "much" => {
                assert_eq!(browser.count("#task-list a"), 20);
                let tiles = browser.text("#detail-tiles");
                for expected in ["4.0 % left", "0.480000012 of 0.5 rho", "next row in 3 h"] {
                    assert!(tiles.contains(expected), "{expected} in:\n{tiles}");
                }
                assert!(browser.text("#detail-about").contains("The board of the registry answers"));
                assert!(
                    browser
                        .evaluate("document.querySelector('#models').textContent")
                        .to_string()
                        .contains("own bound: 0.25 of 0.5 rho spent")
                );
                assert!(browser.text("#alerts").contains(HOSTILE), "a hostile name is shown as it is");
                assert_eq!(browser.count("main img, main script"), 0, "a hostile name became markup");
                assert_eq!(browser.evaluate("window.taken === undefined"), true);
                assert!(browser.text("#status").contains("1 critical, 1 warning, 1 notice"));
                // A list stays open when the page draws itself anew.
                browser.evaluate("document.querySelector('#clients summary').click()");
                browser.wait_for_update();
                assert_eq!(browser.count("#clients details[open]"), 1);
                assert!(browser.text("#clients").contains("hospital-49-"));
                // Another task, as a keyboard reaches it, and the address that shows it.
                browser.evaluate("document.querySelector('[data-task=\"task-12\"]').click()");
                browser.wait_for("document.querySelector('#detail-title').innerText === 'Task task-12'");
                assert!(browser.evaluate("location.hash") == "#task=task-12");
                assert!(browser.text("#detail-tiles").contains("40 %"));
                let blocks = browser.count("#requests .block");
                browser.evaluate("document.querySelector('input[value=\"360\"]').click()");
                assert!(browser.count("#requests .block") > blocks, "six hours have more than one");
                // Charts are told to those who don't see them.
                assert_eq!(browser.count("svg.chart:not([aria-label])"), 0);
                assert!(browser.count("svg.chart[role=img]") >= 3);
                browser.evaluate("history.replaceState(null, '', location.pathname)");
            }
            "nothing" => {
                for chart in ["burn-down", "requests", "latency", "models", "clients"] {
                    assert!(browser.text(&format!("#{chart}")).contains("No data yet"), "{chart}");
                }
                assert_eq!(browser.text("#status"), "all is well");
                assert!(!browser.text("#detail-tiles").contains("indow"));
                assert!(browser.text("#detail-tiles").contains("100 %"));
            }
            _ => {
                assert!(
                    browser.text("#detail-tiles").contains("0 %")
                        && browser.text("#detail-tiles").contains("gone")
                );
                assert_eq!(browser.count("#burn-down .line.forecast"), 0);
            }
        }
    }
    assert_eq!(browser.complaints, [""; 0], "errors on the console");
}
