//! Networks in the ring of 32 bits: what fits, what is refused, and how many labels stay the same.

#![allow(clippy::print_stdout, reason = "a reader of a failure needs to see these")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::{fs::File, path::Path};

use concilium_network::{
    Check, Function, InputDomain, Network, Operation, Precision, QuantiseError, Ring, Rounding, Step, argmax,
    choose_fractional_bits, import_file, quantise,
};
use ndarray::{Array1, Array2, array};
use ndarray_npy::ReadNpyExt as _;

fn narrow(fractional_bits: u32) -> Precision {
    Precision { ring: Ring::Bits32, fractional_bits }
}

fn unit_domain(features: usize) -> InputDomain {
    InputDomain::new(vec![features], vec![-1.0], vec![1.0]).unwrap()
}

/// Fifty owners' networks on all test images: with the most fractional bits that fit them all, no label is
/// another one than in double precision, whichever way truncation goes, but for single ones.
#[test]
fn the_example_models_keep_their_labels() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits");
    let rows = Array2::<f32>::read_npy(File::open(folder.join("test_inputs.npy")).unwrap()).unwrap();
    let rows = rows.mapv(f64::from);
    let networks: Vec<Network> =
        (0..50).map(|owner| import_file(folder.join(format!("owner_{owner:02}.onnx"))).unwrap()).collect();
    let domain = InputDomain::new(networks[0].input_shape().to_vec(), vec![0.0], vec![1.0]).unwrap();
    let [wide, bits] =
        [Ring::Bits64, Ring::Bits32].map(|ring| choose_fractional_bits(ring, &networks, &domain).unwrap());
    let encoded = domain.encode(rows.view(), bits).unwrap();
    let (mut same, mut count) = (0, 0);
    for network in &networks {
        let labels = network.votes(rows.view());
        let fixed = quantise(network, &domain, narrow(bits)).unwrap();
        fixed.architecture().validate().unwrap();
        for rounding in [Rounding::Down, Rounding::Nearest, Rounding::Up] {
            let found = argmax(fixed.evaluate(encoded.view(), rounding).view());
            same += found.iter().zip(&labels).filter(|(found, label)| found == label).count();
            count += labels.len();
        }
    }
    println!("{bits} fractional bits instead of {wide}: {same} of {count} labels stay the same");
    assert!(bits >= 10, "{bits} fractional bits");
    assert!(same * 1000 >= count * 999, "{same} of {count} labels stay the same");
}

#[test]
fn too_little_room_is_refused_with_step_bound_limit_and_remedy() {
    let layer = |weight: f64| (array![[weight, 0.0], [weight, 1.0]], array![0.0, 0.0]);
    let network = Network::perceptron(vec![2], vec![layer(1.0), layer(40.0)]).unwrap();
    let domain = unit_domain(2);
    // At most 2 and 1 after the first layer and 120 after the second, so 2^(7 + 2f).
    let bits = choose_fractional_bits(Ring::Bits32, [&network], &domain).unwrap();
    assert_eq!(bits, 11);
    assert!(quantise(&network, &domain, narrow(11)).is_ok());
    let error = quantise(&network, &domain, narrow(12)).err().unwrap();
    assert!(
        matches!(error, QuantiseError::Headroom { step: 2, bound_bits: 31, headroom_bits: 0, .. }),
        "{error}"
    );
    let told = error.to_string();
    for part in ["step 2", "2^31", "2^30 in a ring of 32 bits", "1 needed", "task with a ring of 64 bits"] {
        assert!(told.contains(part), "{told}");
    }
    // The ring of 64 bits takes it, and the report says which ring it is about.
    assert!(quantise(&network, &domain, 16).is_ok());
    let report = Check::new(&network, &domain, Ring::Bits32, Some(12)).unwrap();
    assert!(!report.accepted() && report.to_string().contains("ring            32 bits"), "{report}");
    let report = Check::new(&network, &domain, Ring::Bits32, None).unwrap();
    assert_eq!((report.fractional_bits, report.accepted()), (11, true), "{report}");
    assert!(report.to_string().contains("headroom is at least 1 bits"), "{report}");
}

/// Sums are not rescaled, so only their window says that they leave the ring.
#[test]
fn sums_that_leave_the_window_are_refused() {
    let matrix = Array2::from_elem((2, 2), 0.5);
    let steps = vec![
        Step::dense("fc", 0, matrix, Array1::zeros(2)),
        Step::plain("scaled", vec![1], Operation::Combine { coefficients: vec![4096] }),
    ];
    let network = Network::new(vec![2], steps).unwrap();
    assert!(quantise(&network, &unit_domain(2), 12).is_ok());
    let error = quantise(&network, &unit_domain(2), narrow(10)).err().unwrap();
    assert!(matches!(error, QuantiseError::Window { step: 1, width: 24, .. }), "{error}");
    let told = error.to_string();
    for part in ["step 1 (scaled)", "24 bits", "22 in a ring of 32 bits with 10 fractional bits"] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn fractional_bits_have_limits_of_their_own() {
    let network = Network::perceptron(vec![1], vec![(array![[0.5, -0.5]], array![0.0, 0.0])]).unwrap();
    let domain = unit_domain(1);
    for bits in [5, 15, 20, u32::MAX] {
        let error = quantise(&network, &domain, narrow(bits)).err().unwrap();
        assert_eq!(error, QuantiseError::FractionalBits { fractional_bits: bits, ring: Ring::Bits32 });
        assert!(error.to_string().contains("in a ring of 32 bits; choose 6 to 14"), "{error}");
    }
    for bits in 6..=14 {
        assert!(quantise(&network, &domain, narrow(bits)).is_ok(), "{bits}");
    }
    let hopeless = Network::perceptron(vec![1], vec![(array![[1e7, 0.0]], array![0.0, 0.0])]).unwrap();
    let error = choose_fractional_bits(Ring::Bits32, [&network, &hopeless], &domain).unwrap_err();
    assert!(matches!(error, QuantiseError::NoFractionalBits { network: 1, .. }), "{error}");
    assert!(error.to_string().contains("network 1 does not fit even 6 fractional bits"), "{error}");
}

#[test]
fn operators_that_need_the_ring_of_64_bits_are_refused_by_name() {
    let dense = |name: &str, value| Step::dense(name, value, Array2::eye(2), Array1::zeros(2));
    let refused = |steps: Vec<Step>| {
        let network = Network::new(vec![2], steps).unwrap();
        assert!(quantise(&network, &unit_domain(2), 12).is_ok());
        let error = quantise(&network, &unit_domain(2), narrow(10)).err().unwrap();
        assert!(matches!(error, QuantiseError::NeedsWideRing { .. }), "{error}");
        // Fewer fractional bits do not help, so that is not what the choice of bits says.
        let chosen = choose_fractional_bits(Ring::Bits32, [&network], &unit_domain(2)).unwrap_err();
        assert_eq!(chosen.to_string(), error.to_string());
        let told = error.to_string();
        assert!(told.contains("the task's ring has 32 bits"), "{told}");
        assert!(told.contains("share it for a task with a ring of 64 bits"), "{told}");
        told
    };
    let tanh = Step::plain("act", vec![1], Operation::Function(Function::Tanh));
    let told = refused(vec![dense("first", 0), tanh, dense("last", 2)]);
    assert!(told.contains("step 1 (act)") && told.contains("it is tanh"), "{told}");
    let told = refused(vec![dense("first", 0), dense("second", 1)]);
    assert!(told.contains("step 1 (second)") && told.contains("what step 0 has rescaled"), "{told}");
}
