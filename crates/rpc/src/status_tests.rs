use std::{collections::BTreeSet, fs, path::Path};

use super::*;

/// One error of each kind.
fn examples() -> Vec<RpcError> {
    let text = |value: &str| value.to_owned();
    vec![
        RpcError::Unauthenticated { problem: text("no certificate") },
        RpcError::UnknownIdentity {
            identity: text("client `eve`"),
            configuration_key: text("identities.clients"),
        },
        RpcError::RoleNotAllowed { identity: text("owner `a`"), needed: text("client") },
        RpcError::UnknownTask { task: text("digit"), served: text("digits, mnist") },
        RpcError::InvalidRequest { field: text("request_id"), problem: text("has 3 bytes, not 16") },
        RpcError::ShapeMismatch { what: text("the input"), expected: text("[64]"), got: text("[63]") },
        RpcError::MalformedShares { what: text("component `own`"), problem: text("ends early") },
        RpcError::InconsistentDealer { dealer: text("client `a`"), what: text("request 00"), component: 2 },
        RpcError::ModelRejected { task: text("digits"), model: text("m"), problem: text("no layers") },
        RpcError::TooLarge { what: text("rows"), limit: 10, got: u64::MAX },
        RpcError::BudgetExhausted {
            task: text("digits"),
            epoch: 3,
            scope: text("client"),
            cap: text("of client `a`"),
            needed_nano_rho: 40_000_000,
            left_nano_rho: 7,
        },
        RpcError::BudgetPaced {
            task: text("digits"),
            epoch: 3,
            needed_nano_rho: 40_000_000,
            left_nano_rho: 7,
            retry_after_ms: 11_520_000,
            retry_at_unix_ms: 1_795_286_400_000,
        },
        RpcError::RequestConflict { request_id: text("00ff") },
        RpcError::ResultExpired { request_id: text("00ff") },
        RpcError::InProgress { request_id: text("00ff") },
        RpcError::PolicyMismatch {
            task: text("digits"),
            key: text("noise.sigma"),
            here: text("5"),
            there: text("6"),
            peer: text("server 2"),
        },
        RpcError::LedgerDiverged { task: text("digits"), problem: text("server 0 went back") },
        RpcError::NoModels { task: text("digits") },
        RpcError::TooFewModels { task: text("digits"), threshold: 35, models: 20, noise: text("sigma 10") },
        RpcError::ModelExists { task: text("digits"), model: text("m") },
        RpcError::UnknownModel { task: text("digits"), model: text("m"), owner: text("o") },
        RpcError::PeerUnavailable { peer: text("server 1"), step: text("waiting for the plan's reply") },
        RpcError::LedgerUnavailable { action: text("be read") },
        RpcError::Overloaded { what: text("the queue"), retry_after_ms: 250 },
        RpcError::Internal { problem: text("the ledger is read-only") },
    ]
}

#[test]
fn every_error_comes_back_from_its_status_and_refusal() {
    let examples = examples();
    let reasons: BTreeSet<_> = examples.iter().map(|error| error.reason().to_owned()).collect();
    let table: BTreeSet<_> = TABLE.iter().map(|(reason, ..)| (*reason).to_owned()).collect();
    assert_eq!(reasons, table, "one example for each row of the table");
    for error in examples {
        let status = Status::from(error.clone());
        assert_eq!(status.code(), error.code());
        assert_eq!(status.message(), error.to_string());
        assert_eq!(RpcError::from_status(&status), error);
        assert_eq!(RpcError::from_refusal(&error.to_refusal()), error);
    }
}

#[test]
fn rich_details_say_when_to_retry_and_which_quota_failed() {
    let overloaded = Status::from(RpcError::Overloaded { what: "the queue".to_owned(), retry_after_ms: 250 });
    let details = overloaded.get_error_details();
    let delay = details.retry_info().and_then(|retry| retry.retry_delay);
    assert_eq!(delay, Some(Duration::from_millis(250)));
    assert!(RpcError::from_status(&overloaded).retryable());

    let paced = examples().into_iter().find(|error| error.reason() == "BUDGET_PACED").unwrap();
    let status = Status::from(paced);
    let delay = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    assert_eq!(delay, Some(Duration::from_millis(11_520_000)));
    assert!(status.message().contains("call again in 3 h 12 min, at 2026-11-21 18:40 UTC, or"), "{status}");

    let exhausted = examples().into_iter().find(|error| error.reason() == "BUDGET_EXHAUSTED").unwrap();
    assert!(!exhausted.retryable());
    let details = Status::from(exhausted).get_error_details();
    let violation = &details.quota_failure().unwrap().violations[0];
    assert_eq!(violation.subject, "task digits epoch 3");
    assert_eq!(violation.description, "of client `a`");
}

#[test]
fn foreign_and_contradictory_statuses_keep_code_reason_and_message() {
    let lost = RpcError::from_status(&Status::unavailable("transport error"));
    assert_eq!(lost.code(), Code::Unavailable);
    assert_eq!(lost.to_string(), "transport error");
    assert!(lost.retryable());
    assert_eq!(Status::from(lost).code(), Code::Unavailable);

    let mut details = ErrorDetails::new();
    details.set_error_info("NEW_REASON", ERROR_DOMAIN, HashMap::new());
    let status = Status::with_error_details(Code::NotFound, "from a newer server", details);
    let error = RpcError::from_status(&status);
    assert_eq!(error.reason(), "NEW_REASON");
    assert!(!error.retryable());

    // A reason under a code that the table does not give it, and one with a field missing.
    let mut details = ErrorDetails::new();
    details.set_error_info("NO_MODELS", ERROR_DOMAIN, HashMap::from([("task".into(), "t".into())]));
    let status = Status::with_error_details(Code::Ok, "contradiction", details);
    assert!(matches!(RpcError::from_status(&status), RpcError::Unrecognised { .. }));
    let mut details = ErrorDetails::new();
    details.set_error_info("NO_MODELS", ERROR_DOMAIN, HashMap::new());
    let status = Status::with_error_details(Code::FailedPrecondition, "no field", details);
    assert!(matches!(RpcError::from_status(&status), RpcError::Unrecognised { .. }));
}

#[test]
fn what_a_caller_sent_cannot_swell_the_headers() {
    let long = "ä".repeat(1 << 20);
    let status = Status::from(RpcError::UnknownTask { task: long.clone(), served: long });
    assert!(status.message().len() <= MAX_MESSAGE_BYTES);
    // HTTP/2 headers are refused above 16 KiB by default; base64 adds a third to the details.
    assert!(status.details().len() < 3 * MAX_MESSAGE_BYTES, "{}", status.details().len());
    let RpcError::UnknownTask { task, .. } = RpcError::from_status(&status) else {
        panic!("another error came back")
    };
    assert!(task.ends_with("ä…"), "cut at a character: {task}");
}

/// A code as gRPC and the `.proto` files spell it.
fn spelled(code: Code) -> String {
    let letters = format!("{code:?}");
    let letters = letters.chars().enumerate().flat_map(|(position, letter)| {
        let gap = (position > 0 && letter.is_uppercase()).then_some('_');
        gap.into_iter().chain([letter.to_ascii_uppercase()])
    });
    letters.collect()
}

#[test]
fn statuses_without_a_reason_may_be_repeated_when_the_transport_made_them() {
    for code in (0..=16).map(Code::from_i32) {
        let error = RpcError::from_status(&Status::new(code, "lost"));
        assert_eq!(error.retryable(), TRANSPORT_CODES.contains(&code), "{code:?}");
        let mut details = ErrorDetails::new();
        details.set_error_info("NEW_REASON", ERROR_DOMAIN, HashMap::new());
        let error = RpcError::from_status(&Status::with_error_details(code, "newer", details));
        assert_eq!(error.retryable(), code == Code::Unavailable, "{code:?}");
    }
}

/// The rows of the table in a head comment that follows the line which begins with `title`: first word
/// and the rest.
fn rows<'a>(head: &'a str, title: &str) -> Vec<(&'a str, &'a str)> {
    let lines = head.lines().map(|line| line.trim_start_matches("//").trim());
    let after = lines.skip_while(|line| !line.starts_with(title)).skip(1).skip_while(|line| line.is_empty());
    let table = after.take_while(|line| !line.is_empty());
    table.map(|line| line.split_once(' ').map(|(first, rest)| (first, rest.trim())).unwrap()).collect()
}

#[test]
fn head_comments_of_the_proto_files_name_the_same_codes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/concilium/v1");
    let examples = examples();
    let mut documented = BTreeSet::new();
    let [all @ .., last] = TRANSPORT_CODES.map(spelled);
    let transport = format!("{} and {last} may then be repeated", all.join(", "));
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        // Only those who call a service meet a status.
        if !text.lines().any(|line| line.starts_with("service ")) {
            continue;
        }
        let head = text.split("syntax =").next().unwrap();
        let words: Vec<_> = head.split_whitespace().filter(|word| *word != "//").collect();
        assert!(words.join(" ").contains(&transport), "{name} does not say: {transport}");
        let codes = rows(head, "reason  ");
        assert!(codes.len() >= 6, "{name} has {} rows in its table", codes.len());
        for (reason, rest) in &codes {
            let (_, expected_code, expected_retry) = TABLE
                .iter()
                .find(|(candidate, ..)| candidate == reason)
                .unwrap_or_else(|| panic!("{name} documents the unknown reason {reason}"));
            let (code, retry) = rest.split_once(' ').unwrap();
            assert_eq!(code, spelled(*expected_code), "{name}, {reason}");
            let retry = match retry.trim() {
                "no" => Retry::Never,
                "yes" | "same id" => Retry::Repeat,
                text if text.contains("RetryInfo") => Retry::AfterDelay,
                text => panic!("{name}, {reason}: unknown retry rule {text}"),
            };
            assert_eq!(retry, *expected_retry, "{name}, {reason}");
            documented.insert((*reason).to_owned());
        }
        let metadata = rows(head, "ErrorInfo.metadata ");
        let reasons = |rows: &[(&str, &str)]| rows.iter().map(|row| row.0.to_owned()).collect::<Vec<_>>();
        assert_eq!(reasons(&metadata), reasons(&codes), "{name}: both tables have the same reasons");
        for (reason, fields) in metadata {
            let example = examples.iter().find(|error| error.reason() == reason).unwrap();
            let sent: BTreeSet<_> = example.fields().into_keys().collect();
            let fields: BTreeSet<_> = fields.split(", ").map(str::to_owned).collect();
            assert_eq!(fields, sent, "{name}, {reason}");
        }
        files += 1;
    }
    assert_eq!(files, 5, "one file for each service");
    let table: BTreeSet<_> = TABLE.iter().map(|(reason, ..)| (*reason).to_owned()).collect();
    assert_eq!(documented, table, "every reason is documented for a caller");
}
