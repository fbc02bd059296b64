use std::sync::LazyLock;

use concilium_mpc::PartyIndex;
use concilium_rpc::{
    certificates::Authority, identity::Identity, receipt::issue, signature::SignatureError, tls::TlsMaterial,
};
use ndarray::array;
use prost::Message as _;

use super::*;
use crate::task::tests::{announcement, task};

const ID: [u8; 16] = [9; 16];

/// Three servers' certificates of one authority.
static SERVERS: LazyLock<[TlsMaterial; 3]> = LazyLock::new(|| {
    let authority = Authority::create().unwrap();
    let folder = tempfile::tempdir().unwrap();
    [0, 1, 2].map(|server| {
        let identity = Identity::server(server).unwrap();
        authority.issue(&identity, &[], 1).unwrap().save(folder.path()).unwrap().load().unwrap()
    })
});

/// A time within the validity of the certificates, in milliseconds since 1970-01-01 UTC.
fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_millis() as i64
}

/// A server's reply under its signature.
fn reply(server: usize, receipt: v1::Receipt, components: ReleasedComponents) -> Reply {
    let signed = issue(&SERVERS[server], receipt, &components.own, &components.next, now_ms()).unwrap();
    Reply { signed, components }
}

/// Signs a changed receipt as `server` would.
fn change_receipt(reply: &mut Reply, server: usize, change: impl FnOnce(&mut v1::Receipt)) {
    let mut receipt = v1::Receipt::decode(&*reply.signed.receipt).unwrap();
    change(&mut receipt);
    let ReleasedComponents { own, next } = &reply.components;
    reply.signed = issue(&SERVERS[server], receipt, own, next, now_ms()).unwrap();
}

fn open(replies: &[Reply; 3], asked: &Asked<'_>) -> Result<(Receipt, Released), AnswerError> {
    super::open(replies, asked, &Authorities::of(&SERVERS[0]))
}

/// A receipt for two rows of the test task.
fn receipt() -> v1::Receipt {
    let task = announcement("digits");
    v1::Receipt {
        task: task.name,
        epoch: task.epoch,
        request_id: ID.to_vec().into(),
        release: task.release,
        rows: 2,
        classes: task.classes,
        mechanism: task.mechanism,
        charged_nano_rho: 80_000_002,
        caller_spent_nano_rho: 180_000_002,
        caller_budgets: vec![v1::CallerBudget {
            scope: v1::caller_budget::Scope::TaskEpoch.into(),
            cap_nano_rho: 1_000_000_000,
            left_nano_rho: 819_999_998,
        }],
        models: 26,
        owners: 25,
        model_set_digest: vec![5; 32].into(),
        encoding: ResultEncoding::ArithmeticU64.into(),
        client: "alice".into(),
        policy_digest: task.policy_digest,
        noise_standard_deviation: 6.1,
        delta: task.delta,
        charged_epsilon: 1.5,
        ..v1::Receipt::default()
    }
}

/// Replies that open to `counts`.
fn replies(counts: &[i64]) -> [Reply; 3] {
    let bytes = |numbers: Vec<u64>| numbers.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    let masks = |factor: u64| (1..=counts.len() as u64).map(|n| n.wrapping_mul(factor)).collect::<Vec<_>>();
    let (first, second) = (masks(0x9e37_79b9_7f4a_7c15), masks(0xbf58_476d_1ce4_e5b9));
    let third = counts
        .iter()
        .zip(first.iter().zip(&second))
        .map(|(&count, (&a, &b))| (count as u64).wrapping_sub(a).wrapping_sub(b))
        .collect();
    let components = [bytes(first), bytes(second), bytes(third)];
    [0, 1, 2].map(|server: usize| {
        let (own, next) = (components[server].clone(), components[(server + 1) % 3].clone());
        reply(server, receipt(), ReleasedComponents { own, next })
    })
}

fn asked(task: &Task) -> Asked<'_> {
    Asked { task, request_id: ID, rows: 2, client: "alice" }
}

#[test]
fn sums_of_probabilities_are_means_of_the_models() {
    let task = Task { release: Release::MeanProbability, ..task() };
    let one = 26 << 16;
    let mut replies = replies(&[one, 0, 0, -one / 2, one / 2, one / 4]);
    for (server, reply) in replies.iter_mut().enumerate() {
        change_receipt(reply, server, |receipt| receipt.release = v1::Release::MeanProbability.into());
    }
    let (_, released) = open(&replies, &asked(&task)).unwrap();
    assert_eq!(released.labels(), [Some(0), Some(1)]);
    let Released::Probabilities(sums) = released else { panic!("another release") };
    assert_eq!(sums.means(), array![[1.0, 0.0, 0.0], [-0.5, 0.5, 0.25]]);
}

#[test]
fn equal_replies_are_opened() {
    let task = task();
    let mut replies = replies(&[20, -3, 8, 1, 30, 29]);
    change_receipt(&mut replies[1], 1, |receipt| {
        receipt.caller_spent_nano_rho += 5;
        receipt.caller_budgets[0].left_nano_rho -= 5;
    });
    change_receipt(&mut replies[2], 2, |receipt| receipt.replayed = true);
    assert_eq!(asked(&task).component_bytes(), 48);
    let (receipt, released) = open(&replies, &asked(&task)).unwrap();
    assert_eq!(released, Released::Histograms(array![[20, -3, 8], [1, 30, 29]]));
    assert_eq!(released.labels(), [Some(0), Some(1)]);
    assert_eq!((receipt.models, receipt.owners, receipt.replayed), (26, 25, true));
    assert_eq!(receipt.charged, NanoRho::new(80_000_002));
    assert_eq!(receipt.caller_spent, NanoRho::new(180_000_007));
    assert_eq!(receipt.caller_budgets[0].left, NanoRho::new(819_999_993));
    assert_eq!(receipt.signed[1], replies[1].signed);
}

#[test]
fn labels_are_opened() {
    let mut task = task();
    task.release = Release::Label;
    let components = [[1_u16, 7], [3, 1], [0, 6]]
        .map(|labels| labels.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    let replies = [0, 1, 2].map(|server: usize| {
        let receipt = v1::Receipt {
            release: v1::Release::Label.into(),
            encoding: ResultEncoding::BooleanU16.into(),
            ..receipt()
        };
        let (own, next) = (components[server].clone(), components[(server + 1) % 3].clone());
        reply(server, receipt, ReleasedComponents { own, next })
    });
    let (_, released) = open(&replies, &asked(&task)).unwrap();
    assert_eq!(released, Released::Labels(vec![2, 0]));
    assert_eq!((released.rows(), asked(&task).component_bytes()), (2, 4));
}

/// The test task with a threshold of 20 votes, and replies of two rows of which one has a label.
fn confident(consenting_rows: Option<u32>, charged: u64) -> (Task, [Reply; 3]) {
    let mut task = task();
    task.release = Release::ConfidentLabel;
    task.threshold = Some(concilium_privacy::Threshold { votes: 20, mechanism: task.mechanism });
    let components = [[1_u16, 0xffff], [3, 0xff], [0, 0xff]]
        .map(|labels| labels.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    let replies = [0, 1, 2].map(|server: usize| {
        let (own, next) = (components[server].clone(), components[(server + 1) % 3].clone());
        let receipt = v1::Receipt {
            release: v1::Release::ConfidentLabel.into(),
            encoding: ResultEncoding::ConfidentU16.into(),
            charged_nano_rho: charged,
            consenting_rows,
            ..receipt()
        };
        reply(server, receipt, ReleasedComponents { own, next })
    });
    (task, replies)
}

/// Two tests and one answer are paid for: 2 (1 / (2 5^2) + lattice term) + 1 / 5^2 + lattice term.
const CONFIDENT_CHARGE: u64 = 2 * 20_000_001 + 40_000_001;

#[test]
fn rows_without_consensus_have_no_label_and_cost_the_test_alone() {
    let (task, replies) = confident(Some(1), CONFIDENT_CHARGE);
    let (receipt, released) = open(&replies, &asked(&task)).unwrap();
    assert_eq!(released, Released::ConfidentLabels(vec![Some(2), None]));
    assert_eq!((released.rows(), asked(&task).component_bytes()), (2, 4));
    assert_eq!((receipt.consenting_rows, receipt.charged.units()), (Some(1), CONFIDENT_CHARGE));
}

#[test]
fn a_price_or_a_number_of_labels_that_does_not_fit_is_refused() {
    let more = CONFIDENT_CHARGE + 40_000_001;
    for (consenting, charged) in [
        (Some(1), more),
        (Some(0), CONFIDENT_CHARGE),
        (Some(3), more + 40_000_001),
        (None, CONFIDENT_CHARGE),
        (None, 2 * 40_000_001),
    ] {
        let (task, replies) = confident(consenting, charged);
        let error = open(&replies, &asked(&task)).unwrap_err();
        assert!(matches!(error, AnswerError::NotAsked { field: "charged_nano_rho", .. }), "{error}");
    }
    // The charge fits what the receipts say, but not the labels.
    let (task, replies) = confident(Some(2), more);
    let error = open(&replies, &asked(&task)).unwrap_err();
    assert_eq!(error, AnswerError::Consensus { stated: 2, opened: 1 });
    // A release without a threshold has no such rows.
    let task = self::task();
    let mut replies = self::replies(&[0; 6]);
    for (server, reply) in replies.iter_mut().enumerate() {
        change_receipt(reply, server, |receipt| receipt.consenting_rows = Some(2));
    }
    assert!(open(&replies, &asked(&task)).is_err());
}

#[test]
fn receipts_about_something_else_are_refused() {
    type Change = fn(&mut v1::Receipt);
    let changes: [(&str, Change); 11] = [
        ("task", |receipt| receipt.task = "other".into()),
        ("epoch", |receipt| receipt.epoch += 1),
        ("request_id", |receipt| receipt.request_id = vec![8; 16].into()),
        ("release", |receipt| receipt.release = v1::Release::Label.into()),
        ("client", |receipt| receipt.client = "bob".into()),
        ("policy_digest", |receipt| receipt.policy_digest = vec![0; 32].into()),
        ("rows", |receipt| receipt.rows = 3),
        ("classes", |receipt| receipt.classes = 4),
        ("mechanism", |receipt| {
            receipt.mechanism.as_mut().unwrap().parameter_millionths = 4_000_000;
        }),
        ("encoding", |receipt| receipt.encoding = ResultEncoding::BooleanU16.into()),
        ("charged_nano_rho", |receipt| receipt.charged_nano_rho += 1),
    ];
    let task = task();
    for (name, change) in changes {
        for server in 0..3 {
            let mut replies = replies(&[0; 6]);
            change_receipt(&mut replies[server], server, change);
            let error = open(&replies, &asked(&task)).unwrap_err();
            let AnswerError::NotAsked { server: named, field, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!((usize::from(*named), *field), (server, name), "{error}");
        }
    }
}

#[test]
fn receipts_that_differ_are_refused() {
    type Change = fn(&mut v1::Receipt);
    let changes: [(&str, Change); 9] = [
        ("models", |receipt| receipt.models = 25),
        ("owners", |receipt| receipt.owners = 24),
        ("privacy_unit", |receipt| receipt.privacy_unit = v1::PrivacyUnit::Owner.into()),
        ("models_per_owner", |receipt| receipt.models_per_owner = 7),
        ("model_set_digest", |receipt| receipt.model_set_digest = vec![6; 32].into()),
        ("caller_budgets", |receipt| receipt.caller_budgets[0].cap_nano_rho += 1),
        ("noise_standard_deviation", |receipt| receipt.noise_standard_deviation = 5.0),
        ("delta", |receipt| receipt.delta = 1e-6),
        ("charged_epsilon", |receipt| receipt.charged_epsilon = 1.0),
    ];
    let task = task();
    for (name, change) in changes {
        let mut replies = replies(&[0; 6]);
        change_receipt(&mut replies[2], 2, change);
        let error = open(&replies, &asked(&task)).unwrap_err();
        let AnswerError::Disagree { field, first: 0, second: 2, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*field, name, "{error}");
    }
    let mut replies = replies(&[0; 6]);
    for (server, reply) in replies.iter_mut().enumerate() {
        change_receipt(reply, server, |receipt| receipt.model_set_digest = vec![1; 3].into());
    }
    assert!(open(&replies, &asked(&task)).is_err());
}

#[test]
fn receipts_that_do_not_hold_are_refused() {
    let task = task();
    let refused = |change: &dyn Fn(&mut [Reply; 3])| {
        let mut replies = replies(&[0; 6]);
        change(&mut replies);
        match open(&replies, &asked(&task)).unwrap_err() {
            AnswerError::Receipt { server: 1, source } => source,
            error => panic!("{error}"),
        }
    };
    assert_eq!(refused(&|replies| replies[1].signed.signature = None), ReceiptError::Unsigned);
    // A server that passes on another one's receipt, and one that sends other components.
    let other = ReceiptError::OtherServer { expected: 1, signer: 2 };
    assert_eq!(refused(&|replies| replies[1].signed = replies[2].signed.clone()), other);
    assert_eq!(refused(&|replies| replies[1].components.own[0] ^= 1), ReceiptError::OtherResult);
    // A receipt that was changed after it was signed.
    let changed = refused(&|replies| {
        let mut receipt = v1::Receipt::decode(&*replies[1].signed.receipt).unwrap();
        receipt.owners += 1;
        replies[1].signed.receipt = receipt.encode_to_vec().into();
    });
    assert!(matches!(changed, ReceiptError::Signature(SignatureError::Bytes { .. })), "{changed}");
    // Servers of another authority.
    let folder = tempfile::tempdir().unwrap();
    Authority::create().unwrap().save(folder.path()).unwrap();
    let elsewhere = Authorities::load(&folder.path().join("ca.pem")).unwrap();
    let error = super::open(&replies(&[0; 6]), &asked(&task), &elsewhere).unwrap_err();
    assert!(matches!(error, AnswerError::Receipt { server: 0, .. }), "{error}");
}

#[test]
fn copies_that_differ_are_refused() {
    let task = task();
    for server in 0..3 {
        for own in [false, true] {
            let mut changed = replies(&[1, 2, 3, 4, 5, 6]);
            let components = &mut changed[server].components;
            let copy = if own { &mut components.own } else { &mut components.next };
            copy[17] ^= 1;
            change_receipt(&mut changed[server], server, |_| ());
            let error = open(&changed, &asked(&task)).unwrap_err();
            assert!(matches!(error, AnswerError::Opening(OpeningError::Inconsistent { .. })), "{error}");
            let mut changed = replies(&[1, 2, 3, 4, 5, 6]);
            let components = &mut changed[server].components;
            let copy = if own { &mut components.own } else { &mut components.next };
            copy.pop();
            change_receipt(&mut changed[server], server, |_| ());
            let error = open(&changed, &asked(&task)).unwrap_err();
            let AnswerError::Opening(OpeningError::WrongLength { server: named, .. }) = error else {
                panic!("{error}");
            };
            assert_eq!(named, PartyIndex::ALL[server]);
        }
    }
}

#[test]
fn winners_are_the_first_of_the_largest() {
    for (counts, label, margin) in [
        (array![3, 9, 9, 1], 1, 0),
        (array![5, -2, 4], 0, 1),
        (array![-7, -2], 1, 5),
        (array![i64::MIN, i64::MAX], 1, i64::MAX),
        (array![i64::MIN, i64::MIN], 0, 0),
    ] {
        assert_eq!(winner(counts.view()), Winner { label, margin }, "{counts}");
    }
}
