use super::*;
use crate::parameter::NoiseScale;

fn rho(text: &str) -> NanoRho {
    text.parse().expect("a number")
}

fn gaussian(sigma: &str) -> Mechanism {
    Mechanism::DiscreteGaussian { sigma: sigma.parse().expect("a number") }
}

fn laplace(scale: &str) -> Mechanism {
    Mechanism::DiscreteLaplace { scale: scale.parse().expect("a number") }
}

fn policy() -> TaskPolicy {
    TaskPolicy {
        task: "digits".to_owned(),
        epoch: 1,
        release: Release::Histogram,
        mechanism: gaussian("5"),
        threshold: None,
        unit: PrivacyUnit::Record,
        models_per_owner: 10,
        bins: 10,
        cap_total: rho("1"),
        cap_per_client: Some(rho("0.5")),
        cap_per_client_all_tasks: None,
        window: None,
        delta: "1e-5".parse().expect("a number"),
        declaration: None,
    }
}

fn declared(basis: EpochBasis, attested_by: &str) -> Option<EpochDeclaration> {
    Some(EpochDeclaration { basis, attested_by: attested_by.to_owned() })
}

fn confident() -> TaskPolicy {
    let threshold = Some(Threshold { votes: 30, mechanism: gaussian("20") });
    TaskPolicy { release: Release::ConfidentLabel, threshold, ..policy() }
}

#[test]
fn every_field_counts_in_the_digest() {
    let mut seen = Vec::new();
    let changes: [fn(&mut TaskPolicy); 28] = [
        |_| {},
        |policy| policy.task.push('2'),
        |policy| policy.epoch = 2,
        |policy| policy.release = Release::Label,
        |policy| policy.release = Release::MeanProbability,
        |policy| policy.mechanism = gaussian("5.000001"),
        |policy| policy.mechanism = laplace("5"),
        |policy| policy.bins = 11,
        |policy| policy.unit = PrivacyUnit::Owner,
        |policy| policy.models_per_owner = 11,
        |policy| policy.threshold = Some(Threshold { votes: 0, mechanism: gaussian("5") }),
        |policy| policy.threshold = Some(Threshold { votes: 1, mechanism: gaussian("5") }),
        |policy| policy.threshold = Some(Threshold { votes: 1, mechanism: laplace("5") }),
        |policy| policy.threshold = Some(Threshold { votes: 1, mechanism: gaussian("6") }),
        |policy| policy.cap_total = rho("2"),
        |policy| policy.cap_per_client = None,
        |policy| policy.cap_per_client = Some(NanoRho::ZERO),
        |policy| policy.cap_per_client_all_tasks = Some(NanoRho::ZERO),
        |policy| policy.cap_per_client_all_tasks = Some(rho("0.5")),
        |policy| policy.window = Some(SpendingWindow { rho: NanoRho::ZERO, seconds: 0 }),
        |policy| policy.window = Some(SpendingWindow { rho: rho("0.5"), seconds: 0 }),
        |policy| policy.window = Some(SpendingWindow { rho: rho("0.5"), seconds: 3600 }),
        |policy| policy.delta = "1e-6".parse().expect("a number"),
        |policy| policy.declaration = declared(EpochBasis::Retrained, "Ann"),
        |policy| policy.declaration = declared(EpochBasis::CarriedOver, "Ann"),
        |policy| policy.declaration = declared(EpochBasis::Retrained, "Ben"),
        |policy| {
            policy.task = "digit".to_owned();
            policy.declaration = declared(EpochBasis::Retrained, "sAnn");
        },
        |policy| policy.declaration = declared(EpochBasis::Retrained, ""),
    ];
    for change in changes {
        let mut other = policy();
        change(&mut other);
        assert!(!seen.contains(&other.digest()), "{other:?}");
        seen.push(other.digest());
    }
    assert_eq!(seen[0], policy().digest());
}

#[test]
fn prices_follow_release_and_unit() {
    let prices = |policy: TaskPolicy| {
        let prices = policy.row_prices().expect("allowed");
        assert_eq!(policy.row_cost(), Ok(prices.total()));
        (prices.threshold.units(), prices.answer.units(), policy.price_in_words())
    };
    assert_eq!(prices(policy()), (0, 40_000_001, "1^2 / 5^2".to_owned()));
    for release in [Release::Label, Release::MeanProbability] {
        assert_eq!(prices(TaskPolicy { release, ..policy() }).1, 40_000_001, "{release}");
    }
    let owners = TaskPolicy { unit: PrivacyUnit::Owner, ..policy() };
    assert_eq!(prices(owners), (0, 4_000_000_001, "10^2 / 5^2".to_owned()));
    let one_each = TaskPolicy { unit: PrivacyUnit::Owner, models_per_owner: 1, ..policy() };
    assert_eq!(prices(one_each).1, 40_000_001);

    // 1 / (2 * 20^2) for the test, rounded up with the lattice term.
    let words = "1^2 / (2 * 20^2) + 1^2 / 5^2".to_owned();
    assert_eq!(prices(confident()), (1_250_001, 40_000_001, words));
    let owners = TaskPolicy { unit: PrivacyUnit::Owner, ..confident() };
    assert_eq!(prices(owners).0, 125_000_001);
    let mechanism = laplace("20");
    let laplace = TaskPolicy { threshold: Some(Threshold { votes: 30, mechanism }), ..confident() };
    assert_eq!(prices(laplace).0, 1_250_000);

    let (most, less) =
        (RowPrices { threshold: NanoRho::new(u64::MAX), answer: NanoRho::new(1) }, NanoRho::ZERO);
    assert_eq!(most.total(), NanoRho::new(u64::MAX));
    assert_eq!(RowPrices { threshold: less, ..most }.total(), NanoRho::new(1));
}

#[test]
fn unusable_policies_are_refused() {
    assert_eq!(policy().validate(), Ok(()));
    assert_eq!(confident().validate(), Ok(()));
    let with = |change: fn(&mut TaskPolicy)| {
        let mut policy = confident();
        change(&mut policy);
        policy.validate().expect_err("an unusable policy")
    };
    assert!(matches!(with(|policy| policy.task.clear()), PolicyError::Name { bytes: 0 }));
    for (cap, change) in [
        (Cap::TaskEpoch, (|policy| policy.cap_total = NanoRho::new(41_000_000)) as fn(&mut TaskPolicy)),
        (Cap::Client, |policy| policy.cap_per_client = Some(NanoRho::new(41_250_001))),
        (Cap::ClientAllTasks, |policy| policy.cap_per_client_all_tasks = Some(NanoRho::ZERO)),
        (Cap::Window, |policy| {
            policy.window = Some(SpendingWindow { rho: NanoRho::new(41_250_001), seconds: 3600 });
        }),
    ] {
        let error = with(change);
        assert!(matches!(&error, PolicyError::CapBelowOneRow { cap: found, .. } if *found == cap), "{error}");
        let text = error.to_string();
        assert!(text.contains("costs rho 0.041250002 = 1^2 / (2 * 20^2) + 1^2 / 5^2"), "{text}");
    }
    for (cap, within, change) in [
        (
            Cap::Client,
            Cap::TaskEpoch,
            (|policy| policy.cap_per_client = Some(rho("1.000000001"))) as fn(&mut TaskPolicy),
        ),
        (Cap::Window, Cap::TaskEpoch, |policy| {
            policy.window = Some(SpendingWindow { rho: rho("2"), seconds: 3600 });
        }),
        (Cap::Client, Cap::ClientAllTasks, |policy| policy.cap_per_client_all_tasks = Some(rho("0.4"))),
    ] {
        let error = with(change);
        let found = matches!(
            &error, PolicyError::CapsContradict { cap: a, within: b, .. } if (a, b) == (&cap, &within)
        );
        assert!(found, "{error}");
    }
    for text in ["0", "1", "1.5"] {
        let delta = text.parse().expect("a number");
        let refused = TaskPolicy { delta, ..policy() }.validate();
        assert!(matches!(refused, Err(PolicyError::Delta { .. })), "{text}");
    }
    for bytes in [0, MAX_NAME_BYTES + 1] {
        let declaration = declared(EpochBasis::Retrained, &"x".repeat(bytes));
        let refused = TaskPolicy { declaration, ..policy() }.validate();
        assert!(matches!(refused, Err(PolicyError::AttestedBy { bytes: found, .. }) if found == bytes));
    }
    let declaration = declared(EpochBasis::CarriedOver, "Ann");
    let refused = TaskPolicy { declaration: declaration.clone(), epoch: 0, ..policy() }.validate();
    assert!(matches!(refused, Err(PolicyError::FirstEpoch { .. })), "{refused:?}");
    assert_eq!(TaskPolicy { declaration, ..policy() }.validate(), Ok(()));
    assert!(matches!(with(|policy| policy.bins = 0), PolicyError::Mechanism { .. }));
    assert!(matches!(with(|policy| policy.threshold = None), PolicyError::ThresholdMissing { .. }));
    assert!(matches!(
        with(|policy| policy.threshold = Some(Threshold { votes: 0, mechanism: policy.mechanism })),
        PolicyError::ThresholdMissing { .. }
    ));
    assert!(matches!(
        with(|policy| policy.release = Release::Label),
        PolicyError::ThresholdUnused { release: Release::Label, .. }
    ));
    assert!(matches!(
        with(|policy| {
            let sigma = NoiseScale::from_millionths(1_999_999);
            policy.threshold = Some(Threshold { votes: 3, mechanism: Mechanism::DiscreteGaussian { sigma } });
        }),
        PolicyError::ThresholdMechanism { source: MechanismError::TooSmall { .. }, .. }
    ));
    for models in [0, MAX_MODELS_PER_OWNER + 1, u32::MAX] {
        let refused = TaskPolicy { models_per_owner: models, ..policy() }.validate();
        assert!(matches!(refused, Err(PolicyError::ModelsPerOwner { .. })), "{models}");
    }
    assert!(matches!(
        with(|policy| policy.window = Some(SpendingWindow { rho: rho("0.5"), seconds: 0 })),
        PolicyError::WindowLength { .. }
    ));
    let probabilities = TaskPolicy { release: Release::MeanProbability, mechanism: laplace("5"), ..policy() };
    assert!(matches!(probabilities.validate(), Err(PolicyError::LaplaceProbabilities { .. })));
}

#[test]
fn rows_left_counts_down_to_zero() {
    let policy = policy();
    assert_eq!(policy.rows_left(NanoRho::ZERO), Ok(24));
    assert_eq!(policy.rows_left(NanoRho::new(960_000_000)), Ok(0));
    assert_eq!(policy.rows_left(NanoRho::new(u64::MAX)), Ok(0));
}
