//! Mean probabilities from three server processes, against the softmax of the same models in the clear.

use concilium_client_library::probabilities::nearest_distribution;
use concilium_demo::data::{Data, Selection};
use concilium_rpc::identity::Role;
use ndarray::{Array1, Array2};

use super::world::{MEANS_TASK, OWNERS, World, example_rows, price};

/// Standard deviation of the noise of three servers on a sum: 1.2247 times sigma 2.
const NOISE: f64 = 2.449_489_742_783_178;

/// The sum of the models' probabilities for every row, in floating point.
fn sums_in_the_clear(data: &Data) -> Array2<f64> {
    let mut sums = Array2::zeros((data.inputs.nrows(), data.classes));
    for owner in &data.owners {
        let mut logits = owner.network.evaluate(data.inputs.view());
        for mut row in logits.rows_mut() {
            let largest = row.iter().copied().fold(f64::MIN, f64::max);
            row.mapv_inplace(|logit| (logit - largest).exp());
            let total = row.sum();
            row.mapv_inplace(|exponential| exponential / total);
        }
        sums += &logits;
    }
    sums
}

/// Least squares of `y` on `x`: the slope, and its distance from 1 in standard errors of the noise.
fn slope(x: &Array1<f64>, y: &Array1<f64>) -> (f64, f64) {
    let (x, y) = (x - x.mean().expect("values"), y - y.mean().expect("values"));
    let squares = x.dot(&x);
    let slope = x.dot(&y) / squares;
    (slope, (slope - 1.0) * squares.sqrt() / NOISE)
}

/// Every answer is a sum of softmaxes plus noise of a known variance, so over 2000 numbers the slope of
/// the answers on the sums in the clear is 1 and what remains has the noise's variance. Both are within six
/// standard errors; the test fails by chance with odds below 1e-8. What the protocol and 16
/// fractional bits lose, at most 0.01 a sum, moves neither by a tenth of a standard error.
#[tokio::test(flavor = "multi_thread")]
async fn mean_probabilities_are_those_of_the_models_in_the_clear() {
    let world = World::start().await;
    let alice = world.member(Role::Client, "alice");
    let report = world.predict(&alice, MEANS_TASK, &example_rows(), &["--rows", "0..200"]);
    let rows = |name: &str| -> Vec<Vec<f64>> {
        serde_json::from_value(report[name].clone()).expect("one list of numbers for each row")
    };
    let (means, nearest) = (rows("mean_probabilities"), rows("nearest_distributions"));
    let data = Data::load(&Selection { owners: Some(OWNERS), ..Selection::default() }).expect("the examples");
    let clear = sums_in_the_clear(&data);
    assert_eq!((means.len(), means[0].len()), clear.dim());
    assert_eq!(report["release"], "mean_probability");
    assert_eq!(world.spent(MEANS_TASK).await, price(means.len()));

    let opened = Array1::from_iter(means.iter().flatten().map(|mean| mean * OWNERS as f64));
    let clear = Array1::from_iter(clear);
    let (found, errors) = slope(&clear, &opened);
    let noise = &opened - &clear;
    let deviation = noise.std(0.0);
    println!("slope {found:.4}, {errors:+.2} standard errors from 1; noise {deviation:.4} for {NOISE:.4}");
    assert!(errors.abs() < 6.0);
    assert!((deviation / NOISE - 1.0).abs() < 6.0 / (2.0 * noise.len() as f64).sqrt());
    // Negative control: probabilities of the next class explain nothing.
    let shifted = Array1::from_iter((0..clear.len()).map(|i| clear[i / 10 * 10 + (i + 1) % 10]));
    assert!(slope(&shifted, &opened).1.abs() > 6.0);

    for (mean, nearest) in means.iter().zip(&nearest) {
        // JSON gives the means back to the last bit but one.
        let again = nearest_distribution(Array1::from_vec(mean.clone()).view());
        assert!(nearest.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-12), "{nearest:?} {again:?}");
        assert!((nearest.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}
