//! The guarantee of a policy in words, in exactly the policy's terms.

use crate::{
    convert::{ConvertError, Guarantee},
    mechanism::Mechanism,
    policy::{PrivacyUnit, TaskPolicy},
};

/// The guarantee in one sentence: what is protected, how strongly, against whom.
///
/// # Errors
/// [`ConvertError::Delta`] when the policy's delta is not strictly between zero and one.
pub fn guarantee(policy: &TaskPolicy) -> Result<String, ConvertError> {
    let Guarantee { rho: _, epsilon, delta: _ } = Guarantee::new(policy.cap_total, policy.delta)?;
    let unit = match (policy.unit, policy.models_per_owner) {
        (_, 1) => "any one owner's model, and so any record behind it,".to_owned(),
        (PrivacyUnit::Record, models) => format!(
            "any one training record, if every owner trained its models, {models} at most, on disjoint parts \
             of its data,"
        ),
        (PrivacyUnit::Owner, models) => format!("any one owner with all its models, {models} at most,"),
    };
    // Rounded upwards, as a bound must be.
    let epsilon = (epsilon * 1_000.0).ceil() / 1_000.0;
    Ok(format!(
        "All answers of task {} epoch {} to all clients together are ({epsilon}, {})-differentially private \
         (rho {}) for {unit} even if all clients, all other owners and any one of the three servers pool \
         what they know, as long as the servers follow the program.",
        policy.task, policy.epoch, policy.delta, policy.cap_total,
    ))
}

/// What the policy says besides: price, noise, threshold and caps, one line each.
pub fn terms(policy: &TaskPolicy) -> Vec<String> {
    let noise = |mechanism: Mechanism| match mechanism {
        Mechanism::DiscreteGaussian { sigma } => format!("discrete Gaussian noise of sigma {sigma}"),
        Mechanism::DiscreteLaplace { scale } => format!("discrete Laplace noise of scale {scale}"),
    };
    let mut lines = vec![format!(
        "A row releases {} with {} on each count, guaranteed by any two servers; the noise of all three has \
         1.2247 times that standard deviation.",
        policy.release,
        noise(policy.mechanism)
    )];
    match policy.row_prices() {
        Ok(prices) => lines.push(format!(
            "A row costs rho {} = {}; the budget pays for {}.",
            prices.total(),
            policy.price_in_words(),
            policy.cap_total.units() / prices.total().units().max(1)
        )),
        Err(error) => lines.push(error.to_string()),
    }
    if let Some(threshold) = policy.threshold {
        lines.push(format!(
            "There is an answer if the largest count with {} is {} or more; else only the test is charged.",
            noise(threshold.mechanism),
            threshold.votes
        ));
    }
    if let Some(cap) = policy.cap_per_client {
        lines.push(format!("One client gets rho {cap} of it at most: fairness, no guarantee."));
    }
    if let Some(cap) = policy.cap_per_client_all_tasks {
        lines.push(format!(
            "One client gets rho {cap} of all tasks together at most: fairness, no guarantee."
        ));
    }
    if let Some(window) = policy.window {
        lines.push(format!(
            "At most rho {} is spent within any {} hours: pace, no guarantee.",
            window.rho,
            window.seconds / 3_600
        ));
    }
    if let Some(declaration) = &policy.declaration {
        lines.push(declaration.in_words(policy.epoch));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mechanism::Release,
        policy::{EpochBasis, EpochDeclaration, SpendingWindow},
    };

    fn policy() -> TaskPolicy {
        TaskPolicy {
            task: "digits".to_owned(),
            epoch: 3,
            release: Release::Label,
            mechanism: Mechanism::DiscreteGaussian { sigma: "5".parse().expect("a number") },
            threshold: None,
            unit: PrivacyUnit::Record,
            models_per_owner: 25,
            bins: 10,
            cap_total: "1.2297".parse().expect("a number"),
            cap_per_client: Some("0.5".parse().expect("a number")),
            cap_per_client_all_tasks: None,
            window: Some(SpendingWindow { rho: "0.2".parse().expect("a number"), seconds: 7_200 }),
            delta: "1e-5".parse().expect("a number"),
            declaration: Some(EpochDeclaration {
                basis: EpochBasis::Retrained,
                attested_by: "the board of the registry".to_owned(),
            }),
        }
    }

    #[test]
    fn the_sentence_has_the_terms_of_the_policy() {
        let records = guarantee(&policy()).expect("a sound delta");
        for part in ["digits epoch 3", "(8, 0.00001)", "rho 1.2297", "one training record", "25 at most"] {
            assert!(records.contains(part), "{part}: {records}");
        }
        let owners = TaskPolicy { unit: PrivacyUnit::Owner, ..policy() };
        let owners = guarantee(&owners).expect("a sound delta");
        assert!(owners.contains("one owner with all its models, 25 at most") && !owners.contains("record"));
        let single = guarantee(&TaskPolicy { models_per_owner: 1, ..policy() }).expect("a sound delta");
        assert!(single.contains("one owner's model, and so any record behind it"), "{single}");
        for unsound in ["0", "1"] {
            let delta = unsound.parse().expect("a number");
            assert!(guarantee(&TaskPolicy { delta, ..policy() }).is_err());
        }
        let terms = terms(&policy()).join("\n");
        for part in [
            "label",
            "sigma 5",
            "0.040000001 = 1^2 / 5^2",
            "pays for 30",
            "rho 0.5",
            "any 2 hours",
            "Epoch 3 began with nothing spent",
            "the board of the registry answers",
        ] {
            assert!(terms.contains(part), "{part}: {terms}");
        }
    }
}
