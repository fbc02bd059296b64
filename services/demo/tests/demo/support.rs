//! Running the program, and what its figures must be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use concilium_demo::data::Data;
use concilium_demo::figures::{agreement, count, majorities, single_owners};
use concilium_privacy::{Mechanism, Release, Sensitivity, convert};
use ndarray::Array2;
use serde_json::Value;
use tempfile::TempDir;

/// How long processes may take to end. A bound on waiting: nothing is said about speed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The shipped models and rows.
pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits")
}

/// The program with a folder of its own for temporary files, by which everything that it starts and
/// leaves can be found.
pub(crate) struct Demo {
    folder: TempDir,
}

impl Demo {
    pub(crate) fn new() -> Self {
        Demo { folder: tempfile::Builder::new().prefix("demo-test-").tempdir().unwrap() }
    }

    /// For the test's own files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder in which the program makes its temporary ones.
    pub(crate) fn temporary(&self) -> PathBuf {
        let path = self.folder.path().join("tmp");
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_concilium-demo"));
        command.args(arguments.split_whitespace()).env("TMPDIR", self.temporary()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the program to its end and reads its JSON.
    pub(crate) fn report(&self, arguments: &str) -> Value {
        let path = self.folder().join("report.json");
        let output = self.run(&format!("{arguments} --json {}", path.display()));
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {messages}");
        println!("{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// Command lines of the servers that run in this test's folder.
    pub(crate) fn servers(&self) -> Vec<String> {
        let mark = self.folder().display().to_string();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&mark) && line.contains(" server "))
            .collect()
    }

    /// Waits until no server runs.
    pub(crate) fn wait_until_servers_end(&self) {
        let begin = Instant::now();
        while !self.servers().is_empty() {
            assert!(begin.elapsed() < PATIENCE, "still running: {:#?}", self.servers());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// No process and no temporary file is left.
    pub(crate) fn check_nothing_is_left(&self) {
        assert_eq!(self.servers(), Vec::<String>::new());
        let left: Vec<_> =
            fs::read_dir(self.temporary()).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Plaintext counts `[queries, classes]`.
pub(crate) fn counts(data: &Data) -> Array2<i64> {
    count(data.votes().view(), data.classes)
}

pub(crate) fn labels_of(json: &Value) -> Vec<usize> {
    serde_json::from_value(json["labels"].clone()).unwrap()
}

fn close(json: &Value, expected: f64) {
    let found = json.as_f64().unwrap_or_else(|| panic!("{json} is no number"));
    assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{found} instead of {expected}");
}

/// Every figure that does not depend on noise or time is what the data says.
pub(crate) fn check_report(json: &Value, data: &Data, release: Release, mechanism: Mechanism, batch: usize) {
    let queries = data.inputs.nrows();
    assert_eq!(json["task"], data.task.as_str());
    assert_eq!(json["owners"], data.owners.len());
    assert_eq!((&json["queries"], &json["batch"]), (&queries.into(), &batch.into()));
    assert_eq!(json["release"], if release == Release::Label { "label" } else { "histogram" });

    let labels = labels_of(json);
    assert_eq!(labels.len(), queries);
    assert!(labels.iter().all(|&label| label < data.classes));
    let histograms = json.get("histograms").map(|value| value.as_array().unwrap());
    assert_eq!(histograms.map(Vec::len), (release == Release::Histogram).then_some(queries));

    let votes = data.votes();
    let plaintext = majorities(counts(data).view());
    assert_eq!(json["plaintext_labels"], serde_json::json!(plaintext));
    if let Some(truth) = &data.labels {
        close(&json["accuracy"], agreement(&labels, truth));
        close(&json["plaintext_accuracy"], agreement(&plaintext, truth));
        close(&json["single_owner_accuracy"], single_owners(votes.view(), truth).mean);
        assert!((0.0..=1.0).contains(&json["simulated_accuracy"].as_f64().unwrap()));
    }

    let row = mechanism.cost(Sensitivity::OF_ONE_VOTE, data.classes).unwrap();
    let spent = row.checked_mul(queries as u64).unwrap();
    let delta = "1e-5".parse().unwrap();
    for server in json["spent"].as_array().unwrap() {
        close(&server["rho"], convert::rho(spent));
        close(&server["epsilon"], convert::epsilon(spent, delta).unwrap());
        close(&server["delta"], 1e-5);
    }
    assert_eq!(json["spent"].as_array().unwrap().len(), 3);

    let bytes: Vec<u64> = serde_json::from_value(json["bytes_per_query"].clone()).unwrap();
    assert!(bytes.len() == 3 && bytes.iter().all(|&bytes| bytes > 0), "{bytes:?}");
    assert!(json["rounds"].as_u64().unwrap() > 0);
    let latency = |name: &str| json["latency_ms"][name].as_f64().unwrap();
    assert!(0.0 < latency("p50") && latency("p50") <= latency("p95"));
}

/// The released labels agree with the plaintext majorities as often as the noise predicts.
///
/// The test: given the plaintext counts, query i agrees with probability p_i, computed here from the
/// distribution of three servers' noise without any sampling, and queries are independent. So the
/// number of agreements is Poisson-binomial. Its exact distribution must give at least 1e-9 to
/// numbers that are as small as the observed one, and to those that are as large: as strict as
/// |z| < 6 of a normal variable. Odds of a false alarm: 2e-9.
pub(crate) fn check_agreement(json: &Value, data: &Data, mechanism: Mechanism) {
    const SMALLEST_TAIL: f64 = 1e-9;
    let counts = counts(data);
    let plaintext = majorities(counts.view());
    let noise = three_shares(mechanism);
    let probabilities: Vec<f64> = counts
        .outer_iter()
        .zip(&plaintext)
        .map(|(row, &class)| winning_probability(&row.to_vec(), class, &noise))
        .collect();
    let agreed = labels_of(json).iter().zip(&plaintext).filter(|(ours, theirs)| ours == theirs).count();
    let distribution = probabilities.iter().fold(vec![1.0], |sum, p| convolve(&sum, &[1.0 - p, *p]));
    let at_most: f64 = distribution[..=agreed].iter().sum();
    let at_least: f64 = distribution[agreed..].iter().sum();
    let predicted: f64 = probabilities.iter().sum();
    println!("{agreed} agree, {predicted:.2} predicted, tails {at_most:.3e} and {at_least:.3e}");
    assert!(at_most >= SMALLEST_TAIL && at_least >= SMALLEST_TAIL, "{agreed} agree, {predicted} predicted");

    // The program's own prediction comes from simulations: the mean of `repeats` of them. The second
    // term is for rare disagreements, whose number is far from normal.
    let found = &json["agreement"];
    let repeats = json["simulation"]["repeats"].as_f64().unwrap();
    let variance: f64 = probabilities.iter().map(|p| p * (1.0 - p)).sum();
    let tolerance = 6.0 * (variance / repeats).sqrt() + 5.0 / repeats;
    let simulated = found["predicted"].as_f64().unwrap() * plaintext.len() as f64;
    assert!((simulated - predicted).abs() <= tolerance, "{simulated} simulated, {predicted} computed");
    let observed = found["observed"].as_f64().unwrap() * plaintext.len() as f64;
    assert!((observed - agreed as f64).abs() < 1e-9);
}

/// Probabilities of the sum of three servers' shares of one count, at -reach ..= reach.
fn three_shares(mechanism: Mechanism) -> Vec<f64> {
    let share = match mechanism {
        Mechanism::DiscreteGaussian { sigma } => {
            let sigma = convert::votes(sigma);
            // Variance sigma^2 / 2 each.
            symmetric(|value| (-value * value / (sigma * sigma)).exp(), 12.0 * sigma)
        }
        Mechanism::DiscreteLaplace { scale } => {
            // A share is the difference of two negative binomials of shape 1/2.
            let ratio = (-1.0 / convert::votes(scale)).exp();
            let reach = (40.0 * convert::votes(scale)) as usize;
            let mut one = vec![(1.0 - ratio).sqrt()];
            for value in 1..=reach {
                let last = one[value - 1];
                one.push(last * ratio * (value as f64 - 0.5) / value as f64);
            }
            let reversed: Vec<f64> = one.iter().rev().copied().collect();
            convolve(&one, &reversed)
        }
        other => panic!("{other:?} is not tested"),
    };
    convolve(&convolve(&share, &share), &share)
}

fn symmetric(weight: impl Fn(f64) -> f64, reach: f64) -> Vec<f64> {
    let reach = reach.ceil() as i32;
    let weights: Vec<f64> = (-reach..=reach).map(|value| weight(f64::from(value))).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

fn convolve(first: &[f64], second: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; first.len() + second.len() - 1];
    for (i, a) in first.iter().enumerate() {
        for (j, b) in second.iter().enumerate() {
            sum[i + j] += a * b;
        }
    }
    sum
}

/// Probability that `class` has the largest noisy count, a tie going to the lower class.
fn winning_probability(counts: &[i64], class: usize, noise: &[f64]) -> f64 {
    let reach = (noise.len() / 2) as i64;
    let mut cumulative = vec![0.0];
    for probability in noise {
        cumulative.push(cumulative[cumulative.len() - 1] + probability);
    }
    // P(noise <= limit)
    let at_most = |limit: i64| cumulative[(limit + reach + 1).clamp(0, noise.len() as i64) as usize];
    let mut probability = 0.0;
    for (index, own) in noise.iter().enumerate() {
        let total = counts[class] + index as i64 - reach;
        let others = counts.iter().enumerate().filter(|&(other, _)| other != class);
        probability += own
            * others.map(|(other, count)| at_most(total - count - i64::from(other < class))).product::<f64>();
    }
    probability
}
