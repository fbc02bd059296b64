//! Models exported by PyTorch, scikit-learn's converter and other tools, against ONNX Runtime.

#![allow(clippy::print_stdout, reason = "a reader of a failure needs to see these")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use concilium_network::{
    Ending, ImportError, InputDomain, Network, Ring, Rounding, choose_fractional_bits, import_file, quantise,
};
use ndarray::{Array2, ArrayD, ArrayView2, Axis, Ix2};
use ndarray_npy::NpzReader;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Models whose name begins with `unsupported_` or not, by name.
fn models(unsupported: bool) -> BTreeMap<String, PathBuf> {
    fs::read_dir(folder())
        .expect("the folder of fixtures")
        .map(|entry| entry.expect("an entry of the folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "onnx"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .filter(|(name, _)| name.starts_with("unsupported_") == unsupported)
        .collect()
}

/// A float32 member of an archive as rows of doubles.
fn member(path: &Path, name: &str) -> Array2<f64> {
    let mut archive = NpzReader::new(File::open(path).expect("the expected values")).unwrap();
    let array: ArrayD<f32> = archive.by_name(&format!("{name}.npy")).unwrap();
    let rows = array.shape()[0];
    let array = array.mapv(f64::from);
    array.to_shape((rows, array.len() / rows)).unwrap().into_dimensionality::<Ix2>().unwrap().to_owned()
}

/// The outputs that the graph gives for these logits; of classical models, whose ending import does not
/// know, by what each of these files does.
fn outputs(name: &str, network: &Network, logits: ArrayView2<'_, f64>, columns: usize) -> Array2<f64> {
    let origin = network.origin().expect("an imported network knows its origin");
    match (origin.ending, columns) {
        // One tree's leaves hold the share of class 1, of which half is the border.
        _ if name == "sklearn_tree" => logits.dot(&ndarray::array![[0.0, 0.0], [-1.0, 1.0]]) + 0.5,
        (Ending::Unknown, 1) => Ending::SecondOfTwo.of(logits),
        (Ending::Unknown, 2) => Ending::Softmax.of(logits),
        (Ending::Unknown, _) if origin.operators.iter().any(|(operator, _)| operator == "Normalizer") => {
            Ending::Softmax.of(logits)
        }
        (ending, _) => ending.of(logits),
    }
}

#[test]
fn supported_models_agree_with_onnx_runtime() {
    let models = models(false);
    assert!(!models.is_empty(), "no fixtures in {}", folder().display());
    let mut failures = Vec::new();
    for (name, path) in &models {
        let network = match import_file(path) {
            Ok(network) => network,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        let inputs = member(&path.with_extension("npz"), "x");
        let expected = member(&path.with_extension("npz"), "y");
        let logits = network.evaluate(inputs.view());
        let found = outputs(name, &network, logits.view(), expected.ncols());
        assert_eq!(found.dim(), expected.dim(), "{name}");
        // ONNX Runtime computes in single precision.
        let scale = expected.iter().fold(1.0_f64, |largest, value| largest.max(value.abs()));
        let difference = (&found - &expected).iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        // What is quantised is not rounded to its grid here: half a step at each of six places.
        let allowed = if name == "runtime_quantised" { 0.02 } else { 2e-5 };
        if difference > allowed * scale {
            failures.push(format!("{name}: differs by {difference} of {scale}"));
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), models.len(), failures.join("\n"));
}

#[test]
fn fixed_point_stays_within_its_bound() {
    for (name, path) in &models(false) {
        let network = import_file(path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let inputs = member(&path.with_extension("npz"), "x");
        let bound = |pick: fn(f64, f64) -> f64| -> Vec<f64> {
            inputs.axis_iter(Axis(1)).map(|column| column.iter().copied().fold(column[0], pick)).collect()
        };
        let domain =
            InputDomain::new(network.input_shape().to_vec(), bound(f64::min), bound(f64::max)).unwrap();
        let bits = choose_fractional_bits(Ring::Bits64, [&network], &domain)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let fixed = quantise(&network, &domain, bits).unwrap();
        fixed.architecture().validate().unwrap_or_else(|error| panic!("{name}: {error}"));
        let exact = network.evaluate(inputs.view());
        let encoded = domain.encode(inputs.view(), bits).unwrap();
        for rounding in [Rounding::Down, Rounding::Nearest, Rounding::Up] {
            let logits = fixed.evaluate(encoded.view(), rounding);
            for ((row, class), &logit) in logits.indexed_iter() {
                let error = (logit as f64 * 2_f64.powi(-(bits as i32)) - exact[(row, class)]).abs();
                assert!(
                    error <= fixed.error_bounds()[class],
                    "{name}, {rounding:?}, row {row}, class {class}: {error} > {}",
                    fixed.error_bounds()[class]
                );
            }
        }
    }
}

/// The operators that each refused model must be refused for.
const REFUSED: &[(&str, &[&str])] =
    &[("unsupported_lstm", &["LSTM"]), ("unsupported_layer_norm", &["LayerNormalization"])];

#[test]
fn unsupported_models_are_refused_by_name() {
    let models = models(true);
    let mut seen = 0;
    for (name, path) in &models {
        let error = import_file(path).err().unwrap_or_else(|| panic!("{name} must be refused"));
        let ImportError::Unsupported(refused) = &error else { panic!("{name}: {error}") };
        println!("{name}: {error}");
        for node in &refused.nodes {
            assert!(!node.node.is_empty() && !node.domain.is_empty(), "{name}: {error}");
            assert!(node.opset.is_some(), "{name}: {error}");
            assert!(error.to_string().contains(&node.node), "{name}: {error}");
        }
        let Some((_, operators)) = REFUSED.iter().find(|(known, _)| known == name) else { continue };
        seen += 1;
        for operator in *operators {
            assert!(
                refused.nodes.iter().any(|node| node.operator == *operator),
                "{name} must be refused for {operator}: {error}"
            );
        }
    }
    assert_eq!(seen, REFUSED.len(), "some refused models are missing from {}", folder().display());
}
