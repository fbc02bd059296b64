//! What noise does to answers, against the table of docs/privacy.md, which was computed elsewhere.

use concilium_privacy::{
    Mechanism, NanoRho, PrivacyUnit, Release, TaskPolicy, Threshold,
    utility::{self, Usefulness, Vote},
};

fn gaussian(sigma: &str) -> Mechanism {
    Mechanism::DiscreteGaussian { sigma: sigma.parse().expect("a number") }
}

fn policy(sigma: &str) -> TaskPolicy {
    TaskPolicy {
        task: "digits".to_owned(),
        epoch: 1,
        release: Release::Label,
        mechanism: gaussian(sigma),
        threshold: None,
        unit: PrivacyUnit::Record,
        models_per_owner: 1,
        bins: 10,
        cap_total: "1.229715".parse().expect("a number"),
        cap_per_client: None,
        cap_per_client_all_tasks: None,
        window: None,
        delta: "1e-5".parse().expect("a number"),
        declaration: None,
    }
}

#[test]
fn accuracy_is_that_of_the_table() {
    for (models, share, expected) in [
        (10, 0.6, [0.744, 0.311, 0.187, 0.140, 0.118]),
        (10, 0.9, [0.966, 0.493, 0.258, 0.167, 0.130]),
        (25, 0.9, [1.0, 0.959, 0.600, 0.309, 0.188]),
        (50, 0.6, [1.0, 0.995, 0.750, 0.381, 0.216]),
        (50, 0.9, [1.0, 1.0, 0.965, 0.617, 0.311]),
        (100, 0.9, [1.0, 1.0, 1.0, 0.964, 0.618]),
        (250, 0.6, [1.0, 1.0, 1.0, 1.0, 0.876]),
    ] {
        for (sigma, expected) in ["2", "5", "10", "20", "40"].into_iter().zip(expected) {
            let vote = Vote { models, share };
            let accuracy = utility::label_accuracy(vote, 10, gaussian(sigma)).expect("a vote");
            // The table counts ties of whole numbers, which matter where the noise is small.
            assert!(
                (accuracy - expected).abs() < 0.01,
                "{models} {share} {sigma}: {accuracy}, not {expected}"
            );
        }
    }
    for (models, share, labels) in
        [(0, 0.9, 10), (10, 0.1, 10), (10, 1.1, 10), (10, f64::NAN, 10), (10, 0.9, 1)]
    {
        assert!(utility::label_accuracy(Vote { models, share }, labels, gaussian("2")).is_err());
    }
}

#[test]
fn useless_pairs_are_not_called_useful() {
    let useful = |sigma: &str, models| {
        let vote = Vote { models, share: utility::CLEAR_SHARE };
        Usefulness::of(&policy(sigma), vote).expect("a vote").is_useful()
    };
    for (sigma, models, expected) in [
        ("2", 10, true),
        ("5", 10, false),
        ("5", 25, true),
        ("20", 25, false),
        ("40", 250, true),
        ("40", 100, false),
    ] {
        assert_eq!(useful(sigma, models), expected, "sigma {sigma}, {models} models");
    }
    // A threshold that nothing reaches makes the clearest label useless.
    let answered = |votes| {
        let threshold = Some(Threshold { votes, mechanism: gaussian("10") });
        let policy = TaskPolicy { release: Release::ConfidentLabel, threshold, ..policy("5") };
        let vote = Vote { models: 100, share: 0.9 };
        Usefulness::of(&policy, vote).expect("a vote")
    };
    assert!(answered(60).is_useful() && answered(60).answered > 0.99);
    assert!(!answered(95).is_useful() && answered(95).accuracy > 0.99);
    assert!((answered(90).answered - 0.5).abs() < 0.03);
}

#[test]
fn budgets_and_rows_are_those_of_the_table() {
    let delta = "1e-5".parse().expect("a number");
    for (epsilon, expected) in [(1.0, 0.030557), (2.0, 0.108256), (8.0, 1.229715), (20.0, 5.392038)] {
        let budget = utility::budget(epsilon, delta).expect("a sound delta");
        let rho = concilium_privacy::convert::rho(budget);
        assert!((rho / expected - 1.0).abs() < 3e-5, "epsilon {epsilon}: {rho}");
        let back = concilium_privacy::convert::epsilon(budget, delta).expect("finite");
        assert!(back <= epsilon, "{back} above {epsilon}");
    }
    assert_eq!(utility::budget(0.0, delta).expect("a sound delta"), NanoRho::ZERO);
    assert!(utility::budget(f64::INFINITY, delta).expect("a sound delta") > NanoRho::ZERO);

    let budget = policy("5").cap_total;
    for (sigma, rows) in [("2", 4), ("3", 11), ("5", 30), ("10", 122), ("20", 491), ("40", 1967)] {
        assert_eq!(utility::rows(&policy(sigma), budget), Ok(rows), "sigma {sigma}");
    }
    for rows in [1, 4, 30, 1_000, 100_000] {
        let sigma = utility::sigma_for(&policy("5"), budget, rows).expect("sound").expect("enough noise");
        let with = |sigma| TaskPolicy { mechanism: Mechanism::DiscreteGaussian { sigma }, ..policy("5") };
        assert!(utility::rows(&with(sigma), budget).expect("sound") >= rows, "{rows} rows");
        let less = concilium_privacy::NoiseScale::from_millionths(sigma.millionths() - 1_000);
        let fewer = utility::rows(&with(less), budget);
        assert!(
            fewer.is_err() || fewer.expect("sound") < rows,
            "{rows} rows: sigma {sigma} is not the least"
        );
    }
    assert_eq!(utility::sigma_for(&policy("5"), NanoRho::ZERO, 1), Ok(None));
}
