use std::time::Duration;

use concilium_client_library::{
    answer::Receipt,
    predict::Timing,
    terminal::{Failure, Output},
};
use concilium_network::{InputDomain, Ring};
use concilium_privacy::{Mechanism, NoiseScale, PrivacyUnit, Release};
use concilium_rpc::v1::EvaluationStatistics;
use ndarray::array;

use super::*;

fn task(release: Release) -> Task {
    Task {
        name: "pets".into(),
        epoch: 2,
        domain: InputDomain::new(vec![2], vec![0.0], vec![1.0]).unwrap(),
        ring: Ring::Bits64,
        fractional_bits: 12,
        classes: 2,
        class_names: vec!["cat".into(), "dog".into()],
        release,
        mechanism: Mechanism::DiscreteGaussian { sigma: NoiseScale::from_millionths(5_000_000) },
        cost_per_row: NanoRho::new(40_000_001),
        policy_digest: [1; 32],
        owners_ready: 10,
        models_ready: 10,
        max_rows_per_request: 2,
        delta: "1e-5".parse().unwrap(),
        caller_spent: NanoRho::ZERO,
        caller_cap: Some(NanoRho::new(1_000_000_000)),
        caller_cap_all_tasks: None,
        window: None,
        declaration: None,
        threshold: None,
        unit: PrivacyUnit::Record,
        models_per_owner: 1,
        task_cap: NanoRho::new(2_000_000_000),
    }
}

fn answer(task: &Task, rows: std::ops::Range<usize>, released: Released) -> RequestAnswer {
    let count = rows.len() as u32;
    let receipt = Receipt {
        task: task.name.clone(),
        epoch: task.epoch,
        request_id: [3; 16],
        release: task.release,
        rows: count,
        classes: task.classes,
        mechanism: task.mechanism,
        charged: task.cost_per_row.checked_mul(count.into()).unwrap(),
        caller_spent: task.cost_per_row.checked_mul(rows.end as u64).unwrap(),
        charged_epsilon: 1.158,
        delta: 1e-5,
        noise_standard_deviation: 6.124,
        caller_budgets: vec![CallerBudget {
            scope: Scope::TaskEpoch,
            cap: task.caller_cap.unwrap(),
            left: NanoRho::new(879_999_997),
        }],
        models: 10,
        owners: 10,
        consenting_rows: None,
        model_set_digest: [0xab; 32],
        replayed: false,
        statistics: [0, 1, 2].map(|server| EvaluationStatistics {
            server_microseconds: 1_500,
            rounds: 20,
            bytes_sent: 100 + server,
            batch_rows: count,
        }),
        signed: Default::default(),
    };
    let timing = Timing { sharing: Duration::from_millis(1), latency: Duration::from_millis(40) };
    RequestAnswer { rows, released, receipt, timing, attempts: 1 }
}

fn selection() -> Selection {
    Selection { first: 7, rows: Array2::zeros((3, 2)), labels: Some(vec![0, 1, 1]) }
}

fn printed(print: impl FnOnce(&mut Output<&mut Vec<u8>>) -> Result<(), Failure>) -> String {
    let mut bytes = Vec::new();
    print(&mut Output::new(&mut bytes)).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn histograms_are_printed_with_margin_and_counts() {
    let task = task(Release::Histogram);
    let answers = [
        answer(&task, 0..2, Released::Histograms(array![[9, -2], [4, 4]])),
        answer(&task, 2..3, Released::Histograms(array![[0, 11]])),
    ];
    let report = Report::new(&task, &selection(), &answers);
    let table = printed(|output| report.table(&task, output));
    // Noise of standard deviation 6.1 on each count: 10 models cannot make a label sure.
    let expected = "row  label  margin     sure  lead (95 %)  cat  dog\n\
                    7      cat      11  88.74 %     -9 to 10    9   -2\n\
                    8      cat       0  47.69 %    -10 to 10    4    4\n\
                    9      dog      11  88.74 %     -9 to 10    0   11\n";
    assert_eq!(table, expected);
    let receipt = printed(|output| report.receipt(&task, output));
    for needle in
        ["66.67 % of 3", "rho 0.120000003", "rho 0.879999997", "10 models of 10 owners", "20 rounds"]
    {
        assert!(receipt.contains(needle), "{needle}: {receipt}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["histograms"], serde_json::json!([[9, -2], [4, 4], [0, 11]]));
    assert_eq!(json["labels"], serde_json::json!([0, 0, 1]));
    assert_eq!(json["requests"][1]["bytes_sent"], serde_json::json!([100, 101, 102]));
}

#[test]
fn rows_without_consensus_are_told_with_the_reason() {
    let mechanism = Mechanism::DiscreteGaussian { sigma: NoiseScale::from_millionths(4_000_000) };
    let task = Task {
        threshold: Some(concilium_privacy::Threshold { votes: 7, mechanism }),
        ..task(Release::ConfidentLabel)
    };
    let answers = [answer(&task, 0..3, Released::ConfidentLabels(vec![Some(1), None, Some(1)]))];
    let report = Report::new(&task, &selection(), &answers);
    let table = printed(|output| report.table(&task, output));
    assert_eq!(table, "row         label\n7             dog\n8    no consensus\n9             dog\n");
    let receipt = printed(|output| report.receipt(&task, output));
    for needle in ["50.00 % of 2 rows", "2 of 3 rows reached 7 votes", "rho 0.031250001 each", "0.040000001"]
    {
        assert!(receipt.contains(needle), "{needle}: {receipt}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["labels"], serde_json::json!([1, null, 1]));
    assert_eq!(json["consensus"]["rows_without"], serde_json::json!(1));
}

#[test]
fn mean_probabilities_are_printed_as_they_are() {
    let task = task(Release::MeanProbability);
    let sums = ProbabilitySums { sums: array![[9 << 16, -(1 << 16)], [5 << 16, 6 << 16]], models: 10 };
    let report = Report::new(&task, &selection(), &[answer(&task, 0..2, Released::Probabilities(sums))]);
    assert_eq!(
        printed(|output| report.table(&task, output)),
        "row  label     cat      dog\n7      cat  0.9000  -0.1000\n8      dog  0.5000   0.6000\n"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["mean_probabilities"], serde_json::json!([[0.9, -0.1], [0.5, 0.6]]));
    assert_eq!(json["nearest_distributions"][0], serde_json::json!([1.0, 0.0]));
    assert!(json.get("histograms").is_none());
}

#[test]
fn repeated_requests_are_told() {
    let task = task(Release::Label);
    let mut answers =
        [answer(&task, 0..2, Released::Labels(vec![1, 0])), answer(&task, 2..3, Released::Labels(vec![1]))];
    let receipt = |answers: &[RequestAnswer]| {
        let report = Report::new(&task, &selection(), answers);
        printed(|output| report.receipt(&task, output))
    };
    assert!(!receipt(&answers).contains("repeated"));
    answers[1].receipt.replayed = true;
    let text = receipt(&answers);
    assert!(text.contains("repeated   1 of 2 requests"), "{text}");
}

#[test]
fn labels_are_printed_without_counts() {
    let task = task(Release::Label);
    let answers = [answer(&task, 0..3, Released::Labels(vec![1, 0, 1]))];
    let report = Report::new(&task, &Selection { labels: None, ..selection() }, &answers);
    assert_eq!(
        printed(|output| report.table(&task, output)),
        "row  label\n7      dog\n8      cat\n9      dog\n"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert!(json.get("histograms").is_none() && json.get("accuracy").is_none());
}

#[test]
fn tasks_show_what_is_left() {
    let shared = Task { caller_cap: None, name: "other".into(), ..task(Release::Label) };
    let text = printed(|output| tasks(&[task(Release::Histogram), shared], output));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("pets") && lines[1].contains("24"), "{text}");
    assert!(lines[2].starts_with("other") && lines[2].contains('-'), "{text}");
}
