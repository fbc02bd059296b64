//! The trained model families of the shared folder, with noise as small as policy allows. Skipped
//! when the folder is absent.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use concilium_client_library::inputs::Source;
use concilium_demo::data::{Data, Selection};
use concilium_inference::{Ensemble, SharedModel, flatten, logits};
use concilium_mpc::Shares;
use concilium_mpc::local::{reconstruct, run, share};
use concilium_network::{InputDomain, Ring, choose_fractional_bits, import_file, quantise};
use concilium_privacy::Release;
use concilium_ring::{Element as _, Z64};
use flate2::read::GzDecoder;
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, s};
use ndarray_npy::{NpzReader, write_npy};

use super::gaussian;
use super::support::{Demo, check_agreement, check_report};

const QUERIES: usize = 40;

fn shared() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if folder.join("models").is_dir() && folder.join("data").is_dir() {
        return Some(folder);
    }
    println!("skipped: {} is absent", folder.display());
    None
}

fn unzip(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The values of an idx file of bytes: 00 00 08 N, N dimensions, the values; leading axis and rest.
fn idx(path: &Path) -> Array2<f64> {
    let bytes = unzip(path);
    assert_eq!(bytes[..3], [0, 0, 8]);
    let axes = usize::from(bytes[3]);
    let dimension = |axis: usize| u32::from_be_bytes(bytes[4 + 4 * axis..][..4].try_into().unwrap()) as usize;
    let (rows, columns) = (dimension(0), (1..axes).map(dimension).product());
    let values = bytes[4 + 4 * axes..].iter().map(|&byte| f64::from(byte)).collect();
    Array2::from_shape_vec((rows, columns), values).unwrap()
}

/// Rows of a table with the columns features, label, part: the test part, or all others.
fn table(text: &str, test: bool) -> (Array2<f64>, Array1<i64>) {
    let cells = text.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>());
    let rows: Vec<_> = cells.filter(|cells| (cells[cells.len() - 1] == "test") == test).collect();
    let features = rows[0].len() - 2;
    let values = rows.iter().flat_map(|cells| &cells[..features]).map(|cell| cell.parse().unwrap()).collect();
    let labels = rows.iter().map(|cells| cells[features].parse().unwrap()).collect();
    (Array2::from_shape_vec((rows.len(), features), values).unwrap(), labels)
}

/// Runs the program on a family and compares with the plaintext votes, which in turn are those of
/// `expected.npz` by ONNX Runtime.
fn check(family: &str, inputs: &Array2<f64>, labels: &Array1<i64>, folder: &Path) {
    let demo = Demo::new();
    let models = folder.join("models").join(family);
    let (rows_file, labels_file) = (demo.folder().join("rows.npy"), demo.folder().join("labels.npy"));
    write_npy(&rows_file, inputs).unwrap();
    write_npy(&labels_file, labels).unwrap();
    let json = demo.report(&format!(
        "--models {} --inputs {} --labels {} --sigma 2 --queries {QUERIES} --batch 20",
        models.display(),
        rows_file.display(),
        labels_file.display()
    ));
    let source = |path: &Path| Source::parse(path.to_str().unwrap()).unwrap();
    let data = Data::load(&Selection {
        models: Some(models.clone()),
        inputs: Some(source(&rows_file)),
        labels: Some(source(&labels_file)),
        owners: None,
        queries: Some(QUERIES),
    })
    .unwrap();
    let mut expected = NpzReader::new(File::open(models.join("expected.npz")).unwrap()).unwrap();
    let votes: Array2<u8> = expected.by_name("votes.npy").unwrap();
    assert_eq!(data.votes(), votes.slice(s![.., ..QUERIES]).mapv(usize::from), "{family}");
    assert_eq!(json["task"], family.replace('_', "-"));
    check_report(&json, &data, Release::Label, gaussian("2"), 20);
    check_agreement(&json, &data, gaussian("2"));
    demo.check_nothing_is_left();
}

/// Un-noised logits of all owners of a family, computed together by three parties in this process,
/// against those of ONNX Runtime in `expected.npz`: within the bound that the range analysis proves,
/// and the single precision of ONNX Runtime.
fn check_logits(family: &str, inputs: &Array2<f64>, folder: &Path) {
    const ROWS: usize = 10;
    let models = folder.join("models").join(family);
    let mut paths: Vec<_> = fs::read_dir(&models).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    paths.sort();
    let networks: Vec<_> = paths.iter().map(|path| import_file(path).unwrap()).collect();
    let fold = |pick: fn(f64, f64) -> f64| -> Vec<f64> {
        inputs.axis_iter(Axis(1)).map(|column| column.iter().copied().fold(column[0], pick)).collect()
    };
    let domain = InputDomain::new(vec![inputs.ncols()], fold(f64::min), fold(f64::max)).unwrap();
    let bits = choose_fractional_bits(Ring::Bits64, &networks, &domain).unwrap();
    let fixed: Vec<_> = networks.iter().map(|network| quantise(network, &domain, bits).unwrap()).collect();
    let rows = domain.encode(inputs.slice(s![..ROWS, ..]), bits).unwrap().mapv(Z64::from_signed);
    let shares = share(1, &rows);
    let dealt: Vec<[Shares<Z64>; 3]> = fixed
        .iter()
        .enumerate()
        .map(|(owner, network)| {
            share(2 + owner as u64, &Array1::from(flatten::<Z64>(network)).insert_axis(Axis(0)))
        })
        .collect();
    let logits = reconstruct(&run(3, |party| {
        let place = party.index().number();
        let models = fixed.iter().zip(&dealt).map(|(network, dealt)| {
            let component = |view: ArrayView2<'_, Z64>| view.iter().copied().collect::<Vec<_>>();
            let (own, next) = (component(dealt[place].own()), component(dealt[place].next()));
            Arc::new(SharedModel::new(network.architecture(), &own, &next).unwrap())
        });
        let classes = fixed[0].architecture().classes;
        let ensemble = Ensemble::new(models.collect(), inputs.ncols(), classes, bits).unwrap();
        logits(party, &ensemble, &shares[place]).unwrap()
    }));
    let mut expected = NpzReader::new(File::open(models.join("expected.npz")).unwrap()).unwrap();
    let expected: Array3<f32> = expected.by_name("logits.npy").unwrap();
    let unit = 2f64.powi(-(bits as i32));
    let mut largest = 0f64;
    for (owner, network) in fixed.iter().enumerate() {
        let mine = logits.slice(s![owner * ROWS..(owner + 1) * ROWS, ..]);
        for (secure, &plain) in mine.iter().zip(expected.slice(s![owner, ..ROWS, ..])) {
            let difference = (secure.to_signed() as f64 * unit - f64::from(plain)).abs();
            let bound = network.error_bound() + 2e-5 * f64::from(plain).abs().max(1.0);
            assert!(difference <= bound, "{family} owner {owner}: off by {difference}, bound {bound}");
            largest = largest.max(difference);
        }
    }
    println!("{family}: {bits} fractional bits, logits off by at most {largest:.6}");
}

#[test]
fn mnist() {
    let Some(folder) = shared() else { return };
    let inputs = idx(&folder.join("data/mnist/t10k-images-idx3-ubyte.gz")) / 255.0;
    let labels = idx(&folder.join("data/mnist/t10k-labels-idx1-ubyte.gz"));
    let first = inputs.slice(s![..2 * QUERIES, ..]).to_owned();
    let labels = labels.slice(s![..2 * QUERIES, 0]).mapv(|label| label as i64);
    check_logits("mnist_mlp", &first, &folder);
    check("mnist_mlp", &first, &labels, &folder);
}

#[test]
fn breast_cancer() {
    let Some(folder) = shared() else { return };
    let text = fs::read_to_string(folder.join("data/breast_cancer.csv")).unwrap();
    let (inputs, labels) = table(&text, true);
    check_logits("breast_cancer", &inputs, &folder);
    check("breast_cancer", &inputs, &labels, &folder);
    // The second family takes the same columns, standardised by the training rows.
    let (training, _) = table(&text, false);
    let (mean, deviation) = (training.mean_axis(Axis(0)).unwrap(), training.std_axis(Axis(0), 0.0));
    let standardised = (inputs - mean) / deviation;
    check_logits("breast_cancer_std", &standardised, &folder);
    check("breast_cancer_std", &standardised, &labels, &folder);
}

#[test]
fn digits() {
    let Some(folder) = shared() else { return };
    let text = String::from_utf8(unzip(&folder.join("data/digits.csv.gz"))).unwrap();
    let (inputs, labels) = table(&text, true);
    let inputs = inputs / 16.0;
    check_logits("digits", &inputs, &folder);
    check("digits", &inputs, &labels, &folder);
}
