use concilium_mpc::PartyIndex;
use ndarray::array;

use super::*;
use crate::task::tests::{announcement, task};

const ID: [u8; 16] = [9; 16];

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
        caller_cap_nano_rho: task.caller_cap_nano_rho,
        models: 26,
        owners: 25,
        model_set_digest: vec![5; 32].into(),
        encoding: ResultEncoding::ArithmeticU64.into(),
        replayed: false,
        statistics: None,
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
    [0, 1, 2].map(|server: usize| Reply {
        receipt: receipt(),
        components: ReleasedComponents {
            own: components[server].clone(),
            next: components[(server + 1) % 3].clone(),
        },
    })
}

fn asked(task: &Task) -> Asked<'_> {
    Asked { task, request_id: ID, rows: 2 }
}

#[test]
fn equal_replies_are_opened() {
    let task = task();
    let mut replies = replies(&[20, -3, 8, 1, 30, 29]);
    replies[1].receipt.caller_spent_nano_rho += 5;
    replies[2].receipt.replayed = true;
    assert_eq!(asked(&task).component_bytes(), 48);
    let (receipt, released) = open(&replies, &asked(&task)).unwrap();
    assert_eq!(released, Released::Histograms(array![[20, -3, 8], [1, 30, 29]]));
    assert_eq!(released.labels(), [0, 1]);
    assert_eq!((receipt.models, receipt.owners, receipt.replayed), (26, 25, true));
    assert_eq!(receipt.charged, NanoRho::new(80_000_002));
    assert_eq!(receipt.caller_spent, NanoRho::new(180_000_007));
}

#[test]
fn labels_are_opened() {
    let mut task = task();
    task.release = Release::Label;
    let components = [[1_u16, 7], [3, 1], [0, 6]]
        .map(|labels| labels.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    let replies = [0, 1, 2].map(|server: usize| Reply {
        receipt: v1::Receipt {
            release: v1::Release::Label.into(),
            encoding: ResultEncoding::BooleanU16.into(),
            ..receipt()
        },
        components: ReleasedComponents {
            own: components[server].clone(),
            next: components[(server + 1) % 3].clone(),
        },
    });
    let (_, released) = open(&replies, &asked(&task)).unwrap();
    assert_eq!(released, Released::Labels(vec![2, 0]));
    assert_eq!((released.rows(), asked(&task).component_bytes()), (2, 4));
}

#[test]
fn receipts_about_something_else_are_refused() {
    type Change = fn(&mut v1::Receipt);
    let changes: [(&str, Change); 9] = [
        ("task", |receipt| receipt.task = "other".into()),
        ("epoch", |receipt| receipt.epoch += 1),
        ("request_id", |receipt| receipt.request_id = vec![8; 16].into()),
        ("release", |receipt| receipt.release = v1::Release::Label.into()),
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
            change(&mut replies[server].receipt);
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
    let changes: [(&str, Change); 4] = [
        ("models", |receipt| receipt.models = 25),
        ("owners", |receipt| receipt.owners = 24),
        ("model_set_digest", |receipt| receipt.model_set_digest = vec![6; 32].into()),
        ("caller_cap_nano_rho", |receipt| receipt.caller_cap_nano_rho = None),
    ];
    let task = task();
    for (name, change) in changes {
        let mut replies = replies(&[0; 6]);
        change(&mut replies[2].receipt);
        let error = open(&replies, &asked(&task)).unwrap_err();
        let AnswerError::Disagree { field, first: 0, second: 2, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*field, name, "{error}");
    }
    let mut replies = replies(&[0; 6]);
    replies.iter_mut().for_each(|reply| reply.receipt.model_set_digest = vec![1; 3].into());
    assert!(open(&replies, &asked(&task)).is_err());
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
            let error = open(&changed, &asked(&task)).unwrap_err();
            assert!(matches!(error, AnswerError::Opening(OpeningError::Inconsistent { .. })), "{error}");
            let mut changed = replies(&[1, 2, 3, 4, 5, 6]);
            let components = &mut changed[server].components;
            let copy = if own { &mut components.own } else { &mut components.next };
            copy.pop();
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
