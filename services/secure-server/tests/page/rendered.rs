//! The page of real servers as a real browser renders it, after real queries.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use concilium_privacy::{
    Charge, Clock as _, ContentDigest, Ledger as _, ManualClock, Mechanism, NanoRho, PrivacyUnit, RedbLedger,
    Release, RequestId, RequestKey, ResultBytes, Settlement, SystemClock, TaskPolicy,
};
use concilium_rpc::identity::Role;
use concilium_rpc::v1::budget_client::BudgetClient;
use concilium_rpc::v1::operations_client::OperationsClient;
use concilium_rpc::v1::{GetBudgetRequest, GetStatusRequest, TaskBudget};

use crate::browser::{self, Browser};
use crate::support::{CLASSES, Caller, World, all, query, rows, share_model, shifted_network, task_file};

const HOUR_MS: u64 = 3_600_000;
/// A budget that pays for 400 rows.
const BUDGET_RHO: &str = "100.0000084";

fn policy() -> TaskPolicy {
    TaskPolicy {
        task: "votes".to_owned(),
        epoch: 1,
        release: Release::Histogram,
        mechanism: Mechanism::DiscreteGaussian { sigma: "2".parse().expect("a number") },
        threshold: None,
        unit: PrivacyUnit::Record,
        models_per_owner: 100,
        bins: CLASSES,
        cap_total: BUDGET_RHO.parse().expect("a number"),
        cap_per_client: None,
        cap_per_client_all_tasks: None,
        window: None,
        delta: "1e-5".parse().expect("a number"),
        declaration: None,
    }
}

/// Three days of charges, one row each hour, as an older run of the server has left them.
fn spend_in_the_past(world: &World, hours: u64) {
    for server in 0..3 {
        let clock = Arc::new(ManualClock::new(SystemClock.now_ms() - hours * HOUR_MS));
        let path = world.cluster.home(server).join("data").join("ledger.redb");
        // A new one: the times of a log never go back, and the first start has written to it.
        fs::remove_file(&path).expect("the first start's ledger");
        let ledger = RedbLedger::create(&path).expect("the ledger").with_clock(Arc::clone(&clock));
        for hour in 0..hours {
            let key = RequestKey {
                task: "votes".to_owned(),
                epoch: 1,
                client: "clinic-of-the-past".to_owned(),
                request: RequestId(u128::from(hour).to_le_bytes()),
            };
            let charge = Charge::new(key, ContentDigest([1; 32]), 1, &policy(), &[]).expect("a valid charge");
            let reserved = ledger.reserve(&[charge]).remove(0).expect("within the budget");
            ledger.commit(vec![Settlement::in_full(reserved, ResultBytes::from(vec![0]))]).expect("a commit");
            clock.advance_ms(HOUR_MS);
        }
    }
}

async fn budget(operator: &Caller, server: usize) -> TaskBudget {
    let mut client = BudgetClient::new(operator.channels[server].clone());
    let answer = client.get_budget(GetBudgetRequest { task: "votes".into() }).await.expect("budget");
    answer.into_inner().tasks.remove(0)
}

fn rho(nano: u64) -> String {
    NanoRho::new(nano).to_string()
}

/// What the page says about the budget is what the budget service says.
fn assert_shows(browser: &mut Browser, budget: &TaskBudget) {
    // The page may show a moment before the last request.
    let charged = format!("in {} requests", budget.requests);
    browser.wait_for(&format!("document.querySelector('#detail').innerText.includes('{charged}')"));
    let detail = browser.text("#detail");
    let spent = budget.spent_nano_rho.expect("operators see totals");
    let left = budget.cap_nano_rho - spent;
    for expected in [
        format!("spent {} rho", rho(spent)),
        format!("{} of {} rho left", rho(left), rho(budget.cap_nano_rho)),
        format!("{}\nin {} requests", budget.rows, budget.requests),
    ] {
        assert!(detail.contains(&expected), "{expected:?} is missing in:\n{detail}");
    }
    let clients = browser.text("#clients");
    for client in &budget.clients {
        let expected = format!("{} rho", rho(client.spent_nano_rho));
        assert!(clients.contains(&client.client) && clients.contains(&expected), "{expected} in:\n{clients}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_the_ledger_says() {
    let Some(mut browser) = browser::start("the_page_shows_what_the_ledger_says") else { return };
    let tasks = task_file("votes", BUDGET_RHO);
    let mut world = World::start_with([&tasks, &tasks, &tasks], "").await;
    (0..3).for_each(|server| world.cluster.kill_server(server));
    spend_in_the_past(&world, 72);
    (0..3).for_each(|server| world.cluster.start_server(server).expect("the server starts"));
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("servers connect");
    let address = world.cluster.web_address(1).to_owned();
    let origin = format!("http://{address}/");

    // Before any query and model.
    browser.resize(1440, 900, false);
    browser.open(&origin);
    assert!(browser.text("#requests").contains("No data yet"));
    assert!(browser.text("#models").contains("No data yet"));
    assert!(browser.text("#alerts").contains("votes has no ready model"));

    let (north, south) = (world.member(Role::Owner, "ward-north"), world.member(Role::Owner, "ward-south"));
    for model in 0..3 {
        share_model(&north, &format!("m{model}"), &shifted_network(1)).await;
    }
    share_model(&south, "m0", &shifted_network(2)).await;
    let task = north.task(0, "votes").await;
    for (name, requests) in [("alice", 3), ("bob", 1)] {
        let client = world.member(Role::Client, name);
        for _ in 0..requests {
            all(query(&task, &rows(2)).send(&client).await);
        }
    }
    let mut refused = query(&task, &rows(2));
    refused.headers.iter_mut().for_each(|header| header.rows = 1000);
    let client = world.member(Role::Client, "alice");
    assert!(refused.send(&client).await.iter().all(Result::is_err));

    let operator = world.member(Role::Operator, "operator");
    let spent = budget(&operator, 1).await;
    assert_eq!(spent.requests, 72 + 4);
    let mut operations = OperationsClient::new(operator.channels[1].clone());
    let status = operations.get_status(GetStatusRequest {}).await.expect("the status").into_inner();
    let now_ms = SystemClock.now_ms() as i64;
    let not_after_ms = status.certificate.expect("a certificate").not_after_unix_ms;
    let valid = format!("{} days", (not_after_ms - now_ms) / (24 * HOUR_MS as i64));
    for (width, name) in [(1440, "wide"), (390, "narrow")] {
        for dark in [false, true] {
            browser.resize(width, 900, dark);
            browser.open(&origin);
            assert_eq!(browser.text("#title"), "Concilium server 1");
            assert_shows(&mut browser, &spent);
            // Three days of the past and the present in one curve, and a forecast from the last day's rate.
            let points =
                browser.evaluate("Number(document.querySelector('#burn-down .line.a').dataset.points)");
            assert!(points.as_u64().expect("a number") > 50, "{points} points");
            assert_eq!(browser.count("#burn-down .line.forecast"), 1);
            let text = browser.text("#detail-tiles");
            // Whole hours of the last 24, of which the present one has only begun.
            let basis = ["23 h", "24 h"].map(|hours| format!("days at the rate of the last {hours}"));
            assert!(basis.iter().any(|basis| text.contains(basis)), "{text}");
            let requests = browser.text("#requests");
            assert!(requests.contains("4 answered, 1 refused"), "{requests}");
            assert!(requests.contains("1 TOO_LARGE"), "{requests}");
            assert!(browser.count("#requests .block") >= 2);
            assert!(browser.count("#latency .point, #latency .line") >= 2);
            assert!(browser.text("#latency").contains("ms"));
            let models = browser.text("#models");
            for expected in ["4 models of 2 owners", "4 ready", "ward-north", "3 ready", "ward-south"] {
                assert!(models.contains(expected), "{expected} in:\n{models}");
            }
            assert_eq!(browser.count("[data-peer][data-connected=true]"), 2);
            let servers = browser.text("#servers");
            assert!(servers.contains(&valid), "{valid} in:\n{servers}");
            browser.assert_no_overflow(name);
            browser.screenshot(&format!("real-{name}-{}.png", if dark { "dark" } else { "light" }));
        }
    }
    // The other servers say the same.
    browser.open(&format!("http://{}/", world.cluster.web_address(2)));
    browser.wait_for("document.querySelector('#title')?.innerText === 'Concilium server 2'");
    assert_shows(&mut browser, &budget(&operator, 2).await);
    browser.open(&origin);
    assert_eq!(browser.complaints, [""; 0], "errors on the console");
    let ours = [origin.clone(), format!("http://{}/", world.cluster.web_address(2))];
    assert!(browser.fetched.len() > 10);
    for url in &browser.fetched {
        assert!(ours.iter().any(|origin| url.starts_with(origin)) || url == "about:blank", "{url}");
    }

    // One more query appears without a reload.
    let bob = world.member(Role::Client, "bob");
    all(query(&task, &rows(1)).send(&bob).await);
    browser.wait_for("document.querySelector('#detail').innerText.includes('77 requests')");
    assert_shows(&mut browser, &budget(&operator, 1).await);

    world.cluster.kill_server(2);
    browser.wait_for("document.querySelectorAll('[data-peer=\"2\"][data-connected=false]').length === 1");
    let alerts = browser.text("#alerts");
    assert!(
        alerts.contains("Server 2 is not connected") && alerts.to_lowercase().contains("critical"),
        "{alerts}"
    );
    assert!(browser.text("#status").contains("critical"));
    browser.screenshot("real-peer-down.png");
    world.cluster.start_server(2).expect("the server starts");
    browser.wait_for("document.querySelectorAll('[data-peer][data-connected=true]').length === 2");
    browser.wait_for("!document.querySelector('#alerts').innerText.includes('is not connected')");

    world.cluster.kill_server(1);
    browser.wait_for("document.documentElement.dataset.state === 'stale'");
    assert!(browser.text("#stale").contains("does not answer"));
    world.cluster.start_server(1).expect("the server starts");
    browser.wait_for("document.documentElement.dataset.state === 'ready'");
    // What was remembered in memory is gone, what the ledger knows is not.
    browser.wait_for("document.querySelector('#detail').innerText.includes('77 requests')");
    assert!(browser.text("#requests").contains("No data yet"));
}
