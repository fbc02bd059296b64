//! What three real servers open is the sum over the models and all three servers' noise, exactly: the
//! noise is known here, and too wide to be missing unnoticed.

mod support;

use concilium_mpc::opening::{open_confident_labels, open_labels, open_sums};
use concilium_privacy::{Mechanism, Release};
use concilium_rpc::identity::Role;
use ndarray::Array2;
use support::known_noise::{known, program, serve_if_asked};
use support::{
    CLASSES, Caller, Part, World, all, query, rows, share_model_of, shifted_network, task_file, vote,
};

const SIGMA_2: &str = "2";
/// How the models vote, see [`shifted_network`].
const SHIFTS: [usize; 5] = [0, 0, 0, 1, 2];
/// Requests of so many rows each.
const REQUESTS: [usize; 3] = [3, 1, 2];
/// About the median of the largest count and the noise on it: some rows pass, some do not.
const THRESHOLD: u32 = 1;

fn gaussian() -> Mechanism {
    Mechanism::DiscreteGaussian { sigma: SIGMA_2.parse().expect("a number") }
}

/// The noise of the given servers together, for the n-th row of a pool.
fn noise(servers: &[usize], mechanism: Mechanism, row: u64, bins: usize) -> Vec<i64> {
    let shares = servers.iter().map(|&server| known(server, mechanism, row, bins));
    shares.fold(vec![0; bins], |sum, share| sum.iter().zip(share).map(|(a, b)| a + b).collect())
}

/// Votes for each class, noise added.
fn noisy_votes(inputs: &Array2<f64>, row: usize, noise: &[i64]) -> Vec<i64> {
    let mut counts = noise.to_vec();
    for shift in SHIFTS {
        counts[vote(&inputs.row(row).to_vec(), shift)] += 1;
    }
    counts
}

fn argmax(counts: &[i64]) -> usize {
    (0..counts.len()).rev().max_by_key(|&class| counts[class]).expect("classes")
}

fn task_name(release: Release) -> String {
    release.name().replace('_', "-")
}

async fn ask(client: &Caller, task: &str, inputs: &Array2<f64>) -> [Part; 3] {
    all(query(&client.task(0, task).await, inputs).send(client).await)
}

fn components(parts: &[Part; 3]) -> [concilium_mpc::release::ReleasedComponents; 3] {
    parts.each_ref().map(|part| part.components.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn opened_words_are_the_sum_and_the_known_noise() {
    serve_if_asked().await;
    let releases = [Release::Histogram, Release::Label, Release::ConfidentLabel, Release::MeanProbability];
    let tasks: String = releases
        .iter()
        .map(|release| {
            let mut text = format!("release = \"{release}\"");
            if *release == Release::ConfidentLabel {
                text += &format!("\nconfidence_votes = {THRESHOLD}\nconfidence_sigma = {SIGMA_2}");
            }
            task_file(&task_name(*release), "100").replace("release = \"histogram\"", &text)
        })
        .collect();
    let world = World::start_program(
        program("opened_words_are_the_sum_and_the_known_noise"),
        [&tasks, &tasks, &tasks],
        "",
    )
    .await;
    let (owner, client) = (world.member(Role::Owner, "ward"), world.member(Role::Client, "alice"));
    for release in releases {
        for (index, shift) in SHIFTS.into_iter().enumerate() {
            share_model_of(&owner, &task_name(release), &format!("m{index}"), &shifted_network(shift)).await;
        }
    }
    // Rows of each pool that are used up, counted for each release apart.
    let mut used = 0;
    let mut passed_before = 0;
    let mut decisions = [0, 0];
    for count in REQUESTS {
        let inputs = rows(count);
        let parts = ask(&client, "histogram", &inputs).await;
        let opened = open_sums(&components(&parts), count * CLASSES).expect("copies agree");
        for row in 0..count {
            let words = &opened[row * CLASSES..][..CLASSES];
            let with = |servers: &[usize]| {
                noisy_votes(&inputs, row, &noise(servers, gaussian(), used + row as u64, CLASSES))
            };
            assert_eq!(words, with(&[0, 1, 2]), "row {row}");
            // Nobody's noise is missing, and none is another row's.
            for some in [&[0, 1][..], &[1, 2], &[0, 2], &[]] {
                assert_ne!(words, with(some), "row {row}: only the noise of {some:?}");
            }
        }

        let parts = ask(&client, "label", &inputs).await;
        let opened = open_labels(&components(&parts), count, CLASSES).expect("copies agree");
        for (row, label) in opened.into_iter().enumerate() {
            let noise = noise(&[0, 1, 2], gaussian(), used + row as u64, CLASSES);
            assert_eq!(label, argmax(&noisy_votes(&inputs, row, &noise)), "row {row}");
        }

        let parts = ask(&client, "confident-label", &inputs).await;
        let opened = open_confident_labels(&components(&parts), count, CLASSES).expect("copies agree");
        for (row, label) in opened.into_iter().enumerate() {
            let test = noise(&[0, 1, 2], gaussian(), used + row as u64, 1)[0];
            let votes = noisy_votes(&inputs, row, &[0; CLASSES]);
            let passes = votes.iter().max().expect("classes") + test >= i64::from(THRESHOLD);
            decisions[usize::from(passes)] += 1;
            let expected = passes.then(|| {
                let noise = noise(&[0, 1, 2], gaussian(), passed_before, CLASSES);
                passed_before += 1;
                argmax(&noisy_votes(&inputs, row, &noise))
            });
            assert_eq!(label, expected, "row {row}");
        }

        let parts = ask(&client, "mean-probability", &inputs).await;
        let opened = open_sums(&components(&parts), count * CLASSES).expect("copies agree");
        for row in 0..count {
            let mechanism = gaussian().on_lattice(Release::MeanProbability.fraction_bits());
            let noise = noise(&[0, 1, 2], mechanism, used + row as u64, CLASSES);
            let sums: Vec<i64> =
                (0..CLASSES).map(|class| opened[row * CLASSES + class] - noise[class]).collect();
            assert_probabilities(&inputs, row, &sums);
        }
        used += count as u64;
    }
    eprintln!("threshold tests: {} failed, {} passed", decisions[0], decisions[1]);
    assert!(decisions.iter().all(|&rows| rows > 0), "one outcome is not tested: {decisions:?}");
}

/// The sums of the models' probabilities are those of the softmax, within 2^-10 for each model.
fn assert_probabilities(inputs: &Array2<f64>, row: usize, sums: &[i64]) {
    const ONE: f64 = 65_536.0;
    let models = SHIFTS.len() as f64;
    for (class, &sum) in sums.iter().enumerate() {
        let expected: f64 = SHIFTS
            .iter()
            .map(|shift| {
                // What feature f says goes to class f + shift.
                let logit = |class: usize| inputs[[row, (class + CLASSES - shift) % CLASSES]];
                let all: f64 = (0..CLASSES).map(|class| logit(class).exp()).sum();
                logit(class).exp() / all
            })
            .sum();
        let apart = (sum as f64 / ONE - expected).abs();
        assert!(
            apart <= models / 1_024.0,
            "row {row}, class {class}: {} against {expected}",
            sum as f64 / ONE
        );
    }
    let whole: i64 = sums.iter().sum();
    assert!(sums.iter().all(|&sum| sum >= 0) && whole as f64 <= models * ONE, "row {row}: {sums:?}");
}
