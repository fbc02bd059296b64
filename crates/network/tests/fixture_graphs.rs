//! Graphs that `fixtures/make_graphs.py` writes, against what ONNX Runtime computes: scores, and the label where the
//! model gives one of its own.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "a reader wants to see how far off pieces are")]

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use concilium_network::{
    ImportError, ImportOptions, InputDomain, Network, Ring, Rounding, argmax, choose_fractional_bits,
    import_file, import_file_with, quantise,
};
use ndarray::{Array1, Array2, ArrayD, Ix2};
use ndarray_npy::NpzReader;

struct Expected {
    inputs: Array2<f64>,
    scores: Array2<f64>,
    labels: Vec<usize>,
}

fn file(name: &str, extension: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/graphs").join(name).with_extension(extension)
}

fn expected(name: &str) -> Expected {
    let mut archive = NpzReader::new(File::open(file(name, "npz")).unwrap()).unwrap();
    let mut rows = |member: &str| {
        let array: ArrayD<f32> = archive.by_name(member).unwrap();
        let count = array.shape()[0];
        let array = array.mapv(f64::from);
        array.to_shape((count, array.len() / count)).unwrap().into_dimensionality::<Ix2>().unwrap().to_owned()
    };
    let (inputs, scores) = (rows("x.npy"), rows("y.npy"));
    let labels: Array1<i64> = archive.by_name("label.npy").unwrap();
    Expected { inputs, scores, labels: labels.iter().map(|&label| label as usize).collect() }
}

/// Labels in real numbers and in fixed point, and the fixed-point logits within their proven bounds.
#[track_caller]
fn check_labels(name: &str, network: &Network, expected: &Expected) {
    assert_eq!(network.votes(expected.inputs.view()).to_vec(), expected.labels, "{name}");
    let features = expected.inputs.ncols();
    let column = |pick: fn(f64, f64) -> f64, start: f64| -> Vec<f64> {
        (0..features).map(|column| expected.inputs.column(column).fold(start, |a, &b| pick(a, b))).collect()
    };
    let (minimum, maximum) = (column(f64::min, f64::INFINITY), column(f64::max, f64::NEG_INFINITY));
    // A column that never changes has no range.
    let maximum = maximum.iter().zip(&minimum).map(|(high, low)| high.max(low + 0.125)).collect();
    let domain = InputDomain::new(network.input_shape().to_vec(), minimum, maximum).unwrap();
    let bits = choose_fractional_bits(Ring::Bits64, [network], &domain)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let fixed = quantise(network, &domain, bits).unwrap();
    let encoded = domain.encode(expected.inputs.view(), bits).unwrap();
    let logits = fixed.evaluate(encoded.view(), Rounding::Nearest);
    let exact = network.evaluate(expected.inputs.view());
    let mut furthest: f64 = 0.0;
    for ((row, class), &logit) in logits.indexed_iter() {
        let error = (logit as f64 * 2_f64.powi(-(bits as i32)) - exact[(row, class)]).abs();
        assert!(error <= fixed.error_bounds()[class], "{name}: {error} > {}", fixed.error_bounds()[class]);
        furthest = furthest.max(error);
    }
    let agree =
        argmax(logits.view()).iter().zip(&expected.labels).filter(|(found, label)| found == label).count();
    println!("{name}: {bits} bits, {furthest:.2e} off, {agree} of {} labels agree", expected.labels.len());
    assert_eq!(agree, expected.labels.len(), "{name}: labels in fixed point");
}

#[test]
fn scores_are_those_of_onnx_runtime() {
    for name in ["encoder", "encoder_two_heads", "mixer", "decoder"] {
        let network = import_file(file(name, "onnx")).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = expected(name);
        let found = network.evaluate(expected.inputs.view());
        for ((row, class), score) in expected.scores.indexed_iter() {
            let difference = (found[(row, class)] - score).abs();
            assert!(
                difference < 2e-5,
                "{name}, row {row}, class {class}: {} for {score}",
                found[(row, class)]
            );
        }
        check_labels(name, &network, &expected);
    }
}

#[test]
fn support_vector_machines_vote_as_onnx_runtime_labels() {
    for name in ["svc_iris", "svc_cancer", "svc_digits", "svc_cancer_probabilities", "linear_svc_iris"] {
        let network = import_file(file(name, "onnx")).unwrap_or_else(|error| panic!("{name}: {error}"));
        check_labels(name, &network, &expected(name));
        // Only what a model needs is shared: one product for two classes, whatever the number of vectors.
        if name.contains("cancer") {
            assert_eq!(network.steps().len(), 1, "{name}");
        }
    }
    for (name, remedy) in
        [("refused_svc_radial", "kernel RBF"), ("refused_svc_probabilities", "probability=False")]
    {
        let error = import_file(file(name, "onnx")).err().unwrap_or_else(|| panic!("{name} must be refused"));
        let text = error.to_string();
        assert!(matches!(error, ImportError::Unsupported(_)), "{name}: {text}");
        assert!(text.contains("SVMClassifier (ai.onnx.ml") && text.contains(remedy), "{name}: {text}");
    }
}

#[test]
fn either_of_two_outputs_is_chosen_by_name() {
    let path = file("two_outputs", "onnx");
    let text = import_file(&path).err().unwrap().to_string();
    assert!(text.contains("\"y\", \"z\"") && text.contains("--output NAME"), "{text}");
    let chosen = |name: &str| {
        import_file_with(&path, &ImportOptions::with_output(Some(name.to_owned())))
            .unwrap_or_else(|error| panic!("{error}"))
    };
    check_labels("two_outputs", &chosen("y"), &expected("two_outputs"));
    assert_eq!((chosen("y").classes(), chosen("z").classes()), (10, 3));
}
