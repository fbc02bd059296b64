//! Spending windows on three real servers, and what each caller is shown of the budget.

mod support;

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use concilium_client_library::budget::Budgets;
use concilium_client_library::operations::Servers;
use concilium_privacy::{
    Charge, ContentDigest, Ledger as _, ManualClock, RedbLedger, RequestId, RequestKey, ResultBytes,
    Settlement,
};
use concilium_rpc::identity::Role;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::TaskBudget;
use concilium_server::config::TaskFile;
use support::{Caller, ROW_COST_NANO_RHO, World, all, query, rows, share_on_terms, task_file};

/// Length of the window, in milliseconds: the least that a task file takes.
const WINDOW_MS: u64 = 3_600_000;

/// A window for two rows, and for each client two rows of the whole budget.
fn tasks() -> String {
    task_file("votes", "10")
        + "budget_window_rho = 0.6\nbudget_window_hours = 1\nbudget_per_client_rho = 0.6\n\
           [tasks.others]\nepoch = 1\ninput_shape = [4]\ninput_minimum = 0\ninput_maximum = 1\nfractional_bits = 12\n\
           classes = 3\nrelease = \"label\"\nsigma = 2\nbudget_rho = 1\ndelta = 1e-5\n"
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// Gives every server a new ledger in which `client` was charged two rows at `time_ms`.
fn charge_at(world: &World, client: &str, time_ms: u64) {
    for server in 0..3 {
        let home = world.cluster.home(server);
        let policies = TaskFile::load(&home.join("tasks.toml")).expect("the task file").policies();
        let policy = policies.iter().find(|policy| policy.task == "votes").expect("the task");
        let path = home.join("data/ledger.redb");
        fs::remove_file(&path).expect("the ledger was there");
        let ledger = RedbLedger::create(&path).expect("a ledger").with_clock(ManualClock::new(time_ms));
        let key = RequestKey {
            task: "votes".to_owned(),
            epoch: 1,
            client: client.to_owned(),
            request: RequestId([7; 16]),
        };
        let charge = Charge::new(key, ContentDigest([7; 32]), 2, policy, &[]).expect("a charge");
        let reservation = ledger.reserve(&[charge]).remove(0).expect("within the budget");
        let settlement = Settlement::in_full(reservation, ResultBytes::from(vec![7]));
        ledger.commit(vec![settlement]).expect("a commit");
    }
}

async fn refusals(client: &Caller, count: usize) -> [RpcError; 3] {
    let asked = query(&client.task(0, "votes").await, &rows(count));
    asked.send(client).await.map(|part| part.err().expect("refused"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_refuses_until_enough_has_left_it_and_hides_no_other_cap() {
    let tasks = tasks();
    let begin = Instant::now();
    let mut world = World::start_with([&tasks, &tasks, &tasks], "").await;
    let owner = world.member(Role::Owner, "ward");
    share_on_terms(&owner, "m", 1, None).await;
    // What must happen before the window opens takes about as long as what has happened till here.
    let margin = 3 * begin.elapsed() + Duration::from_secs(5);
    for server in 0..3 {
        world.cluster.kill_server(server);
    }
    let charged_ms = now_ms() - WINDOW_MS + margin.as_millis() as u64;
    charge_at(&world, "alice", charged_ms);
    for server in 0..3 {
        world.cluster.start_server(server).expect("it starts");
    }
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("they join");
    println!("the window opens {margin:?} after the charge was written");

    let (alice, bob) = (world.member(Role::Client, "alice"), world.member(Role::Client, "bob"));
    for refusal in refusals(&bob, 1).await {
        let RpcError::BudgetPaced { retry_after_ms, retry_at_unix_ms, left_nano_rho, .. } = refusal else {
            panic!("{refusal}")
        };
        assert_eq!(retry_at_unix_ms, charged_ms + WINDOW_MS);
        assert!(retry_after_ms <= margin.as_millis() as u64, "{retry_after_ms}");
        assert_eq!(left_nano_rho, 600_000_000 - 2 * ROW_COST_NANO_RHO);
        let text = refusal.to_string();
        assert!(text.contains("call again in ") && text.contains(" UTC, or send fewer rows"), "{text}");
    }
    // What no time mends is told as such: a request above the window, and a client's own cap.
    for refusal in refusals(&bob, 3).await {
        assert_eq!((refusal.reason(), refusal.retry_after()), ("BUDGET_EXHAUSTED", None));
        assert!(refusal.to_string().contains("the cap per client"), "{refusal}");
    }
    for refusal in refusals(&alice, 1).await {
        assert_eq!((refusal.reason(), refusal.retry_after()), ("BUDGET_EXHAUSTED", None));
        assert!(refusal.to_string().contains("the cap per client"), "{refusal}");
    }
    let operator = world.member(Role::Operator, "operator").connection();
    let window = |tasks: &[TaskBudget]| {
        tasks.iter().find(|task| task.task == "votes").and_then(|task| task.window).expect("a window")
    };
    let seen =
        window(&Budgets::read(&operator, Servers::All, Some("votes")).await.agreed().expect("budgets"));
    assert_eq!((seen.seconds, seen.cap_nano_rho), (3600, 600_000_000));
    assert_eq!(seen.spent_nano_rho, 2 * ROW_COST_NANO_RHO);
    assert_eq!(seen.next_row_at_unix_ms, Some((charged_ms + WINDOW_MS) as i64));

    let [refusal, ..] = refusals(&bob, 2).await;
    tokio::time::sleep(refusal.retry_after().expect("a time")).await;
    all(query(&bob.task(0, "votes").await, &rows(2)).send(&bob).await);
    let seen =
        window(&Budgets::read(&operator, Servers::All, Some("votes")).await.agreed().expect("budgets"));
    assert_eq!(seen.spent_nano_rho, 2 * ROW_COST_NANO_RHO, "the older charge has left the window");
    // It stays spent all the same, and the new charge fills the window.
    let carol = world.member(Role::Client, "carol");
    assert_eq!(refusals(&carol, 1).await.map(|refusal| refusal.reason().to_owned()), ["BUDGET_PACED"; 3]);
    assert_eq!(support::spent(&world).await, [4 * ROW_COST_NANO_RHO; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_show_everything_to_operators_and_to_others_their_own() {
    let tasks = format!("budget_per_client_all_tasks_rho = 0.9\n{}", tasks());
    let world = World::start_with([&tasks, &tasks, &tasks], "").await;
    let (north, south) = (world.member(Role::Owner, "north"), world.member(Role::Owner, "south"));
    share_on_terms(&north, "m", 1, Some(5 * ROW_COST_NANO_RHO)).await;
    share_on_terms(&south, "m", 1, None).await;
    let (alice, bob) = (world.member(Role::Client, "alice"), world.member(Role::Client, "bob"));
    all(query(&alice.task(0, "votes").await, &rows(2)).send(&alice).await);

    let read = async |caller: &Caller| {
        let budgets = Budgets::read(&caller.connection(), Servers::All, None).await;
        let tasks = budgets.agreed().expect("the servers agree");
        <[TaskBudget; 2]>::try_from(tasks).expect("two tasks")
    };
    let clients = |task: &TaskBudget| -> Vec<(String, u64, u64)> {
        let clients = task.clients.iter();
        clients.map(|c| (c.client.clone(), c.spent_nano_rho, c.spent_all_tasks_nano_rho)).collect()
    };
    let owners = |task: &TaskBudget| -> Vec<(String, u64, u64)> {
        task.owners.iter().map(|o| (o.owner.clone(), o.cap_nano_rho, o.spent_nano_rho)).collect()
    };
    let spent = 2 * ROW_COST_NANO_RHO;
    let bound = vec![("north".to_owned(), 5 * ROW_COST_NANO_RHO, spent)];

    let [others, votes] = read(&world.member(Role::Operator, "operator")).await;
    assert_eq!(
        (votes.spent_nano_rho, votes.cap_per_client_all_tasks_nano_rho),
        (Some(spent), Some(900_000_000))
    );
    assert_eq!((clients(&votes), owners(&votes)), (vec![("alice".to_owned(), spent, spent)], bound.clone()));
    assert_eq!((clients(&others), owners(&others), others.window), (vec![], vec![], None));
    assert!(votes.stopped.is_none() && votes.window.is_some());

    for (client, own) in [(&alice, ("alice", spent)), (&bob, ("bob", 0))] {
        let [others, votes] = read(client).await;
        assert_eq!(clients(&votes), [(own.0.to_owned(), own.1, own.1)]);
        // On the other task it has spent nothing, and its sum over all tasks is the same.
        assert_eq!(clients(&others), [(own.0.to_owned(), 0, own.1)]);
        assert_eq!((owners(&votes), votes.spent_nano_rho), (vec![], None));
    }
    for (owner, own) in [(&north, bound), (&south, vec![])] {
        let [_, votes] = read(owner).await;
        assert_eq!((clients(&votes), owners(&votes)), (vec![], own));
        assert_eq!(votes.spent_nano_rho, Some(spent));
    }
}
