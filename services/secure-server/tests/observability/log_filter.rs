//! What a server logs is set by its operators, and nobody else.

use std::time::Duration;

use concilium_client_library::operations::{Servers, log_filters, set_log_filter, statuses};
use concilium_rpc::identity::Role;

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn operators_set_what_a_server_logs() {
    let world = World::start("10").await;
    let operator = world.member(Role::Operator, "operator").connection();
    let bad = set_log_filter(&operator, Servers::One(1), "info,concilium_server=loud", None).await;
    let [Err(error)] = &bad[..] else { panic!("a bad filter was taken: {bad:?}") };
    assert_eq!(error.refusal().map(|refusal| refusal.reason()), Some("INVALID_REQUEST"));
    assert!(error.to_string().contains("concilium_server=loud"), "{error}");
    let week = Duration::from_secs(604_801);
    let long = set_log_filter(&operator, Servers::One(1), "debug", Some(week)).await;
    assert!(long[0].as_ref().is_err_and(|error| error.to_string().contains("604800")), "{long:?}");

    let set = set_log_filter(&operator, Servers::One(1), "debug", Some(Duration::from_secs(2))).await;
    let told = set[0].as_ref().expect("the filter is set");
    assert_eq!((told.previous_filter.as_str(), told.filter.as_str()), ("info", "debug"));
    assert_eq!((told.reverts_to.as_str(), told.reverts_at_unix_ms.is_some()), ("info", true));
    let elsewhere = log_filters(&operator, Servers::One(0)).await;
    assert_eq!(elsewhere[0].as_ref().expect("an answer").filter, "info", "other servers keep theirs");
    let log = std::fs::read_to_string(world.cluster.log(1)).expect("a log");
    assert!(log.contains("the log filter was set") && log.contains("operator `operator`"), "{log}");
    // It ends by itself. Waiting is bounded by the test's patience, not by how fast the server is.
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = log_filters(&operator, Servers::One(1)).await;
        if now[0].as_ref().expect("an answer").filter == "info" {
            return;
        }
    }
    panic!("the temporary filter stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_operators_see_the_state_and_set_the_log() {
    let world = World::start("10").await;
    let operator = world.member(Role::Operator, "operator").connection();
    let states = statuses(&operator, Servers::All).await;
    for (server, state) in states.into_iter().enumerate() {
        assert_eq!(state.expect("operators see the state").party as usize, server);
    }
    for role in [Role::Owner, Role::Client] {
        let other = world.member(role, "ward").connection();
        let reason = |error: &concilium_client_library::ServerError| {
            error.refusal().map(|refusal| refusal.reason().to_owned())
        };
        for state in statuses(&other, Servers::All).await {
            assert_eq!(reason(&state.expect_err("not an operator")).as_deref(), Some("ROLE_NOT_ALLOWED"));
        }
        for told in set_log_filter(&other, Servers::All, "off", None).await {
            assert_eq!(reason(&told.expect_err("not an operator")).as_deref(), Some("ROLE_NOT_ALLOWED"));
        }
    }
}
