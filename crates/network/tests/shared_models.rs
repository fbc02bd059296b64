//! The trained model families of the shared folder, in double precision and in fixed point, against
//! logits by ONNX Runtime. Skipped when the folder is absent.

#![allow(clippy::print_stdout, reason = "a reader of a failure needs to see these")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    thread,
};

use concilium_network::{
    Check, FixedNetwork, InputDomain, Network, Precision, QuantiseError, Ring, Rounding, argmax,
    choose_fractional_bits, import_file, quantise,
};
use flate2::read::GzDecoder;
use ndarray::{Array1, Array2, Array3, Array4, ArrayView2, Axis, s};
use ndarray_npy::NpzReader;

/// ONNX Runtime computes in single precision.
const SINGLE_PRECISION: f64 = 2e-5;

fn shared() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if folder.join("models").is_dir() && folder.join("data").is_dir() {
        return Some(folder);
    }
    println!("skipped: {} is absent", folder.display());
    None
}

/// Feature columns of the rows of a CSV file whose part passes `keep`.
fn csv_rows(text: &str, keep: impl Fn(&str) -> bool) -> Array2<f64> {
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').collect::<Vec<_>>())
        .filter(|cells| cells.last().is_some_and(|part| keep(part)))
        .map(|cells| cells[..cells.len() - 2].iter().map(|cell| cell.parse().unwrap()).collect())
        .collect();
    Array2::from_shape_vec((rows.len(), rows[0].len()), rows.concat()).unwrap()
}

fn is_test(part: &str) -> bool {
    part == "test"
}

fn unzip(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The first test images of MNIST.
fn mnist_test_rows(folder: &Path, count: usize) -> Array2<f64> {
    let bytes = unzip(&folder.join("data/mnist/t10k-images-idx3-ubyte.gz"));
    let pixels = bytes[16..16 + count * 784].iter().map(|&byte| f64::from(byte) / 255.0).collect();
    Array2::from_shape_vec((count, 784), pixels).unwrap()
}

/// Minimum and maximum of every column.
fn column_ranges(rows: &Array2<f64>) -> (Vec<f64>, Vec<f64>) {
    let fold = |pick: fn(f64, f64) -> f64| {
        rows.axis_iter(Axis(1)).map(|column| column.iter().copied().fold(column[0], pick)).collect()
    };
    (fold(f64::min), fold(f64::max))
}

fn owners(folder: &Path, family: &str) -> Vec<Network> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder.join("models").join(family))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "onnx"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| import_file(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))).collect()
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, value| most.max(value.abs()))
}

/// Fixed-point logits of every rounding lie within the bound of the real ones, and every step is
/// among the outcomes that truncation allows.
fn check_fixed(
    name: &str,
    network: &Network,
    fixed: &FixedNetwork,
    domain: &InputDomain,
    rows: &Array2<f64>,
) {
    let bits = fixed.fractional_bits();
    let exact = network.evaluate(rows.view());
    let encoded = domain.encode(rows.view(), bits).unwrap();
    for rounding in [Rounding::Down, Rounding::Nearest, Rounding::Up] {
        let steps = fixed.trace(encoded.view(), rounding);
        for (index, result) in steps.iter().enumerate() {
            let value = |&value: &usize| if value == 0 { encoded.view() } else { steps[value - 1].view() };
            let inputs: Vec<_> = fixed.steps()[index].inputs.iter().map(value).collect();
            let found = fixed.check_step(index, &inputs, result.view());
            found.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let real = steps[steps.len() - 1].mapv(|value| value as f64 * 2_f64.powi(-(bits as i32)));
        let error = largest((&real - &exact).into_iter());
        assert!(error <= fixed.error_bound(), "{name}: {error} > {}", fixed.error_bound());
    }
}

fn check_family(family: &str, rows: &Array2<f64>, domain: &InputDomain, folder: &Path) {
    let networks = owners(folder, family);
    let expected = File::open(folder.join("models").join(family).join("expected.npz")).unwrap();
    let mut expected = NpzReader::new(expected).unwrap();
    let logits: Array3<f32> = expected.by_name("logits.npy").unwrap();
    let votes: Array2<u8> = expected.by_name("votes.npy").unwrap();
    let first = logits.shape()[1].min(rows.nrows());

    let bits = choose_fractional_bits(Ring::Bits64, &networks, domain).unwrap();
    println!("{family}: {bits} fractional bits");
    for (owner, network) in networks.iter().enumerate() {
        let name = format!("{family} owner {owner}");
        let exact = network.evaluate(rows.view());
        let reference = logits.slice(s![owner, ..first, ..]).mapv(f64::from);
        let difference = largest((&exact.slice(s![..first, ..]) - &reference).into_iter());
        let scale = largest(reference.into_iter()).max(1.0);
        assert!(difference <= SINGLE_PRECISION * scale, "{name}: {difference} of {scale}");
        let wrong = argmax(exact.view())
            .iter()
            .zip(votes.slice(s![owner, ..rows.nrows()]))
            .filter(|(found, expected)| **found != usize::from(**expected))
            .count();
        assert_eq!(wrong, 0, "{name}: votes that differ from ONNX Runtime");

        let fixed = quantise(network, domain, bits).unwrap();
        fixed.architecture().validate().unwrap();
        println!(
            "{name}: logit error at most {:.4}, steps {:?}",
            fixed.error_bound(),
            fixed.ranges().iter().map(|range| (range.bound_bits, range.width)).collect::<Vec<_>>()
        );
        check_fixed(&name, network, &fixed, domain, rows);
    }
    check_narrow(family, &networks, rows, domain);
}

/// In the ring of 32 bits every step is what truncation allows, and of a hundred labels at most one is another
/// one than in double precision.
fn check_narrow(family: &str, networks: &[Network], rows: &Array2<f64>, domain: &InputDomain) {
    let fractional_bits = choose_fractional_bits(Ring::Bits32, networks, domain).unwrap();
    let precision = Precision { ring: Ring::Bits32, fractional_bits };
    let encoded = domain.encode(rows.view(), fractional_bits).unwrap();
    let (mut same, mut count) = (0, 0);
    for (owner, network) in networks.iter().enumerate() {
        let fixed = quantise(network, domain, precision).unwrap();
        fixed.architecture().validate().unwrap();
        check_fixed(&format!("{family} owner {owner} in 32 bits"), network, &fixed, domain, rows);
        let labels = network.votes(rows.view());
        for rounding in [Rounding::Down, Rounding::Up] {
            let found = argmax(fixed.evaluate(encoded.view(), rounding).view());
            same += found.iter().zip(&labels).filter(|(found, label)| found == label).count();
            count += labels.len();
        }
    }
    println!(
        "{family} in 32 bits: {fractional_bits} fractional bits, {same} of {count} labels stay the same"
    );
    assert!(100 * same >= 99 * count, "{family}: {same} of {count}");
}

#[test]
fn breast_cancer_raw_columns() {
    let Some(folder) = shared() else { return };
    let text = fs::read_to_string(folder.join("data/breast_cancer.csv")).unwrap();
    let (minimum, maximum) = column_ranges(&csv_rows(&text, |_| true));
    assert_eq!(maximum.iter().copied().fold(0.0, f64::max), 4254.0);
    let domain = InputDomain::new(vec![30], minimum, maximum).unwrap();
    check_family("breast_cancer", &csv_rows(&text, is_test), &domain, &folder);
}

#[test]
fn breast_cancer_standardised() {
    let Some(folder) = shared() else { return };
    let text = fs::read_to_string(folder.join("data/breast_cancer.csv")).unwrap();
    // Standardised by the rows that are not for testing.
    let train = csv_rows(&text, |part| !is_test(part));
    let mean: Array1<f64> = train.mean_axis(Axis(0)).unwrap();
    let rows = (csv_rows(&text, is_test) - mean) / train.std_axis(Axis(0), 0.0);
    let domain = InputDomain::new(vec![30], vec![-20.0], vec![20.0]).unwrap();
    check_family("breast_cancer_std", &rows, &domain, &folder);
}

#[test]
fn digits() {
    let Some(folder) = shared() else { return };
    let text = String::from_utf8(unzip(&folder.join("data/digits.csv.gz"))).unwrap();
    let rows = csv_rows(&text, is_test) / 16.0;
    let domain = InputDomain::new(vec![64], vec![0.0], vec![1.0]).unwrap();
    check_family("digits", &rows, &domain, &folder);
}

#[test]
fn mnist() {
    let Some(folder) = shared() else { return };
    let domain = InputDomain::new(vec![1, 28, 28], vec![0.0], vec![1.0]).unwrap();
    check_family("mnist_mlp", &mnist_test_rows(&folder, 50), &domain, &folder);
}

#[test]
fn exports_of_other_shapes() {
    let Some(folder) = shared() else { return };
    for name in ["gemm_flatten", "dynamo_reshape_mlp", "lenet5_avgpool_tanh"] {
        let path = folder.join("models/odd").join(name);
        let network = import_file(path.with_extension("onnx")).unwrap();
        assert_eq!(network.input_shape(), [1, 28, 28], "{name}");
        let mut archive = NpzReader::new(File::open(path.with_extension("npz")).unwrap()).unwrap();
        let inputs: Array4<f32> = archive.by_name("x.npy").unwrap();
        let expected: Array2<f32> = archive.by_name("y.npy").unwrap();
        let rows = inputs.mapv(f64::from).into_shape_with_order((inputs.shape()[0], 784)).unwrap();
        let difference = largest((network.evaluate(rows.view()) - expected.mapv(f64::from)).into_iter());
        assert!(difference < 1e-4, "{name}: {difference}");
        let domain = InputDomain::new(vec![28, 28], vec![0.0], vec![1.0]).unwrap();
        let bits = choose_fractional_bits(Ring::Bits64, [&network], &domain).unwrap();
        check_fixed(name, &network, &quantise(&network, &domain, bits).unwrap(), &domain, &rows);
        let report = Check::new(&network, &domain, Ring::Bits64, None).unwrap();
        assert!(report.accepted());
        assert_eq!(report.fractional_bits, bits);
        println!("{report}");
        let narrow = choose_fractional_bits(Ring::Bits32, [&network], &domain);
        if name == "lenet5_avgpool_tanh" {
            let refusal = narrow.unwrap_err();
            assert!(matches!(refusal, QuantiseError::NeedsWideRing { .. }), "{refusal}");
        } else {
            println!("{name}: {} fractional bits in a ring of 32", narrow.unwrap());
        }
        let labels: Array1<i64> = archive.by_name("label.npy").unwrap();
        let fixed = quantise(&network, &domain, bits).unwrap();
        let logits = fixed.evaluate(domain.encode(rows.view(), bits).unwrap().view(), Rounding::Nearest);
        let logits = logits.mapv(|value| value as f64 * 2_f64.powi(-(bits as i32)));
        println!(
            "{name}: fixed point differs by {:.5}",
            largest((&logits - &expected.mapv(f64::from)).into_iter())
        );
        let found: Vec<i64> = argmax(logits.view()).into_iter().map(|label| label as i64).collect();
        assert_eq!(found, labels.to_vec(), "{name}");
    }
}

/// Over all 10 000 test images, fixed point gives the label of the network in double precision, whichever
/// way truncation goes: at least 99.9 % for a perceptron, in the ring of 32 bits as well, 99.5 % for a
/// convolutional network with Tanh.
#[test]
fn labels_agree_over_the_whole_test_set() {
    let Some(folder) = shared() else { return };
    let rows = mnist_test_rows(&folder, 10_000);
    let domain = InputDomain::new(vec![1, 28, 28], vec![0.0], vec![1.0]).unwrap();
    for (name, ring, least) in [
        ("mnist_mlp/owner_00", Ring::Bits64, 9_990),
        ("mnist_mlp/owner_00", Ring::Bits32, 9_990),
        ("odd/lenet5_avgpool_tanh", Ring::Bits64, 9_950),
    ] {
        let network = import_file(folder.join("models").join(name).with_extension("onnx")).unwrap();
        let bits = choose_fractional_bits(ring, [&network], &domain).unwrap();
        let fixed = quantise(&network, &domain, Precision { ring, fractional_bits: bits }).unwrap();
        // In parts, because values of all rows at once take gigabytes.
        let counted = |part: ArrayView2<'_, f64>| {
            let exact = network.evaluate(part);
            let (labels, encoded) = (argmax(exact.view()), domain.encode(part, bits).unwrap());
            [Rounding::Down, Rounding::Up].map(|rounding| {
                let logits = fixed.evaluate(encoded.view(), rounding);
                let found = argmax(logits.view());
                let agreeing = found.iter().zip(&labels).filter(|(found, label)| found == label).count();
                let real = logits.mapv(|logit| logit as f64 * 2_f64.powi(-(bits as i32)));
                (agreeing, (&real - &exact).sum())
            })
        };
        let halves = thread::scope(|scope| {
            let (counted, rows) = (&counted, &rows);
            let workers = [0, 1].map(|worker| {
                let parts = rows.axis_chunks_iter(Axis(0), 250).skip(worker).step_by(2);
                scope.spawn(move || parts.map(counted).collect::<Vec<_>>())
            });
            workers.map(|worker| worker.join().expect("no part fails")).concat()
        });
        let agreeing = [0, 1].map(|way| halves.iter().map(|part| part[way].0).sum::<usize>());
        let sum: f64 = halves.iter().flatten().map(|(_, sum)| sum).sum();
        println!(
            "{name}: {bits} fractional bits in a ring of {ring}; of 10000 labels {agreeing:?} agree when truncation goes down, up; \
             mean error of both {:.2e}",
            sum / (2.0 * 10.0 * 10_000.0)
        );
        assert!(agreeing.iter().all(|&count| count >= least), "{name}: {agreeing:?} of 10000");
    }
}
