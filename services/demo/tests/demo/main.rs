//! The built program, run as a user runs it: real processes, real certificates, real models.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "a reader of a failure needs to see these")]

mod bench;
mod families;
mod interruption;
mod support;

use std::fs;

use concilium_demo::data::{Data, Selection};
use concilium_privacy::{Mechanism, Release};
use ndarray::Array2;
use support::{Demo, check_agreement, check_report, counts, labels_of};

fn gaussian(sigma: &str) -> Mechanism {
    Mechanism::DiscreteGaussian { sigma: sigma.parse().unwrap() }
}

#[test]
fn shipped_owners_release_noisy_histograms() {
    let demo = Demo::new();
    let json = demo.report("--owners 12 --queries 20 --batch 8 --sigma 2 --release histogram");
    let selection = Selection { owners: Some(12), queries: Some(20), ..Selection::default() };
    let data = Data::load(&selection).unwrap();
    check_report(&json, &data, Release::Histogram, gaussian("2"), 8);
    assert_eq!(json["requests"], 3);

    // Noise of each count has mean 0 and variance 1.5 sigma^2 = 6, so the mean square of 200 of them
    // is 6 with a standard deviation of 0.6, and their sum has one of 34.6. Odds of a
    // false alarm: below 1e-6.
    let released: Vec<Vec<i64>> = serde_json::from_value(json["histograms"].clone()).unwrap();
    let released = Array2::from_shape_vec((20, 10), released.concat()).unwrap();
    let noise = (released - counts(&data)).mapv(|value| value as f64);
    let (sum, mean_square) = (noise.sum(), noise.mapv(|value| value * value).mean().unwrap());
    assert!(sum.abs() < 6.0 * 34.6, "sum of the noise {sum}");
    assert!((2.4..9.6).contains(&mean_square), "mean square of the noise {mean_square}");
    check_agreement(&json, &data, gaussian("2"));
    demo.check_nothing_is_left();
}

#[test]
fn laplace_noise_and_a_kept_folder() {
    let demo = Demo::new();
    let keep = demo.folder().join("kept");
    let arguments =
        format!("--owners 9 --queries 10 --laplace 2 --fractional-bits 12 --keep {}", keep.display());
    let json = demo.report(&arguments);
    let selection = Selection { owners: Some(9), queries: Some(10), ..Selection::default() };
    let data = Data::load(&selection).unwrap();
    let mechanism = Mechanism::DiscreteLaplace { scale: "2".parse().unwrap() };
    check_report(&json, &data, Release::Label, mechanism, 16);
    check_agreement(&json, &data, mechanism);
    assert_eq!((&json["mechanism"], &json["scale"]), (&"discrete_laplace".into(), &2.0.into()));
    assert!(json["sigma"].is_null());
    assert_eq!(json["fractional_bits"], 12);
    for server in 0..3 {
        for file in [format!("server-{server}.log"), format!("server-{server}/data/ledger.redb")] {
            assert!(fs::metadata(keep.join(&file)).unwrap().len() > 0, "{file}");
        }
    }
    let again = demo.run(&arguments);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"), "{again:?}");
    fs::remove_dir_all(&keep).unwrap();
    demo.check_nothing_is_left();
}

#[test]
fn few_owners_under_much_noise_are_told_so() {
    let demo = Demo::new();
    let output = demo.run("--owners 3 --queries 4 --sigma 10");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for figure in [
        "3 owners",
        "noisy labels",
        "same noise in plaintext",
        "plaintext majority",
        "single owner, mean",
        "p50",
        "p95",
        "bytes per query",
        "rounds",
        "rho",
        "epsilon",
    ] {
        assert!(text.contains(figure), "{figure} in\n{text}");
    }
    assert!(text.contains("3 owners are few for sigma 10"), "{text}");
    demo.check_nothing_is_left();
}

#[test]
fn rounds_do_not_depend_on_owners_or_rows() {
    let demo = Demo::new();
    let rounds = |arguments: &str| demo.report(arguments)["rounds"].as_u64().unwrap();
    assert_eq!(rounds("--owners 1 --queries 1"), rounds("--owners 25 --queries 16"));
    demo.check_nothing_is_left();
}

#[test]
fn what_does_not_fit_is_refused_before_a_server_starts() {
    let demo = Demo::new();
    let write = |name: &str, bytes: &[u8]| {
        let path = demo.folder().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let example = |name: &str| fs::read(support::examples().join(name)).unwrap();
    write("good/a.onnx", &example("owner_00.onnx"));
    write("cut/a.onnx", &example("owner_00.onnx")[..2000]);
    fs::create_dir(demo.folder().join("empty")).unwrap();
    let rows = write("rows.csv", format!("{}\n", ["0.5"; 64].join(",")).as_bytes());
    let narrow = write("narrow.csv", b"1,2,3\n");
    let missing = write("missing.csv", format!("nan,{}\n", ["0.5"; 63].join(",")).as_bytes());
    let labels = write("labels.csv", b"10\n");
    let many = write("many.csv", b"1\n2\n");
    let folder = |name: &str| demo.folder().join(name).display().to_string();
    for (arguments, told) in [
        (format!("--models {} --inputs {rows}", folder("empty")), "holds no *.onnx file"),
        (format!("--models {} --inputs {rows}", folder("absent")), "absent"),
        (format!("--models {} --inputs {rows}", folder("cut")), "a.onnx"),
        (format!("--models {} --inputs {narrow}", folder("good")), "takes 64 features"),
        (format!("--models {} --inputs {missing}", folder("good")), "NaN"),
        (format!("--inputs {rows} --labels {labels}"), "label 10"),
        (format!("--inputs {rows} --labels {many}"), "2 labels for the 1 rows"),
        (format!("--inputs {}", folder("absent.npy")), "absent.npy"),
        ("--queries 100000".to_owned(), "at most 397"),
        ("--sigma 1.9".to_owned(), "below the floor 2"),
    ] {
        let output = demo.run(&arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {message}");
        assert!(message.to_lowercase().contains(&told.to_lowercase()), "{arguments}: {message}");
        assert!(output.stdout.is_empty() && !message.contains("servers run"), "{arguments}: {message}");
    }
    demo.check_nothing_is_left();
}

#[test]
fn inputs_without_labels_leave_accuracies_open() {
    let demo = Demo::new();
    let inputs = support::examples().join("test_inputs.npy");
    let json = demo.report(&format!("--owners 2 --inputs {} --queries 3", inputs.display()));
    for key in ["accuracy", "plaintext_accuracy", "single_owner_accuracy", "simulated_accuracy"] {
        assert!(json[key].is_null(), "{key}");
    }
    assert_eq!(labels_of(&json).len(), 3);
    demo.check_nothing_is_left();
}
