//! The program as an owner runs it, as far as no server is needed: `check` on real models, exit codes.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use assert_cmd::Command;

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_concilium-owner"))
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env_remove("CONCILIUM_CONFIG")
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs the program, which must fail with this code and one line on standard error.
fn failure(arguments: &[&str], code: i32) -> String {
    let message = failure_of_lines(arguments, code);
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

fn failure_of_lines(arguments: &[&str], code: i32) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    message
}

fn check(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let arguments: Vec<&str> = ["check"].iter().chain(arguments).copied().collect();
    let output = run(folder.path(), &arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{message}");
    String::from_utf8(output.stdout).unwrap()
}

fn example(name: &str) -> String {
    format!("{WORKSPACE}/examples/digits/{name}")
}

fn fixture(name: &str) -> String {
    format!("{WORKSPACE}/crates/network/tests/fixtures/{name}")
}

const UNIT: [&str; 4] = ["--input-minimum", "0", "--input-maximum", "1"];

#[test]
fn a_real_model_is_checked_and_run() {
    let model = example("owner_00.onnx");
    let text = check(&[&[model.as_str()], &UNIT[..], &["--rows", "3", "--seed", "5"]].concat());
    for needle in [
        "accepted",
        "Gemm",
        "headroom",
        "3 random rows, --seed 5",
        "tract",
        "labels",
        "rounds",
        "data centre",
    ] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
}

#[test]
fn a_task_file_sets_ranges_classes_and_precision() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasks.toml");
    let task = |classes: usize, bits: u32| {
        format!(
            "[tasks.digits]\nepoch = 1\ninput_shape = [64]\ninput_minimum = 0\ninput_maximum = 1\n\
             fractional_bits = {bits}\nclasses = {classes}\nrelease = \"label\"\nsigma = 5\n"
        )
    };
    let model = example("owner_01.onnx");
    let arguments = [model.as_str(), "--task-file", path.to_str().unwrap(), "--task", "digits"];
    fs::write(&path, task(10, 11)).unwrap();
    assert!(check(&arguments).contains("fractional bits 11"));
    fs::write(&path, task(10, 11).replace("fractional", "ring_bits = 32\nfractional")).unwrap();
    let narrow = check(&arguments);
    assert!(narrow.contains("ring            32 bits\nfractional bits 11"), "{narrow}");
    let checked = |text: String| {
        fs::write(&path, text).unwrap();
        failure(&[&["check"][..], &arguments].concat(), 2)
    };
    assert!(checked(task(3, 11)).contains("10 classes"));
    assert!(checked(task(10, 11).replace("[64]", "[63]")).contains("63"));
    assert!(checked(task(10, 99)).contains("fractional bits"));
}

#[test]
fn the_ring_of_32_bits_is_shown_beside_that_of_64() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let (inputs, json) = (example("test_inputs.npy"), report.to_str().unwrap());
    let narrow = |model: &str, arguments: &[&str]| {
        let text = check(&[&[model, "--json", json][..], &UNIT, arguments].concat());
        let found: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        (text, found)
    };
    let model = example("owner_00.onnx");
    let (text, found) = narrow(&model, &["--inputs", &inputs]);
    assert!(text.contains("beside that of 64") && text.contains("server memory"), "{text}");
    assert!(text.contains("ring of 32 bits  does: no label of these rows is lost"), "{text}");
    let (wide, narrow_ring) = (&found, &found["narrow_ring"]);
    assert_eq!((&wide["ring_bits"], &narrow_ring["fits"]), (&64.into(), &true.into()), "{found}");
    assert_eq!((&narrow_ring["recommended"], &narrow_ring["reason"]), (&true.into(), &().into()), "{found}");
    assert!(narrow_ring["labels_agree"].as_u64() >= wide["labels_agree"].as_u64(), "{found}");
    assert!(narrow_ring["rounds"].as_u64() <= wide["rounds"].as_u64(), "{found}");
    let upload = 4 * wide["parameters"].as_u64().unwrap();
    assert_eq!(narrow_ring["upload_bytes"], upload);
    for server in 0..3 {
        let of = |report: &serde_json::Value, key: &str| report[key][server].as_u64().unwrap();
        for key in ["bytes", "memory_bytes"] {
            assert!(of(narrow_ring, key) < of(wide, key), "{key} of server {server}: {found}");
        }
    }
    // Random rows say nothing about labels.
    let (text, found) = narrow(&model, &["--rows", "2", "--seed", "3"]);
    assert!(text.contains("ring of 32 bits  may do") && text.contains("--inputs"), "{text}");
    assert_eq!(found["narrow_ring"]["recommended"], false);
    // What does not fit says why.
    let (text, found) = narrow(&fixture("legacy_tanh.onnx"), &["--rows", "2"]);
    assert!(text.contains("ring of 32 bits  does not do") && text.contains("it is tanh"), "{text}");
    assert_eq!(found["narrow_ring"]["fits"], false, "{found}");
    assert!(found["narrow_ring"]["reason"].as_str().unwrap().contains("64 bits"), "{found}");
    // A report for that ring alone.
    let (text, found) = narrow(&model, &["--ring-bits", "32", "--rows", "2"]);
    assert!(text.contains("ring            32 bits") && !text.contains("beside that of 64"), "{text}");
    assert_eq!((&found["ring_bits"], &found["narrow_ring"]), (&32.into(), &().into()), "{found}");
    let tanh = fixture("legacy_tanh.onnx");
    let message = failure(&[&["check", &tanh, "--ring-bits", "32"][..], &UNIT].concat(), 2);
    assert!(message.contains("the task's ring has 32 bits") && message.contains("it is tanh"), "{message}");
}

#[test]
fn refused_models_say_why() {
    let refused = |model: &str| failure(&[&["check", model][..], &UNIT[..]].concat(), 2);
    // All unsupported nodes are listed, one line each.
    let several = fixture("unsupported_lstm.onnx");
    let message = failure_of_lines(&[&["check", &several][..], &UNIT[..]].concat(), 2);
    for needle in ["unsupported_lstm.onnx", "LSTM", "Transpose", "feed-forward"] {
        assert!(message.contains(needle), "{needle}: {message}");
    }
    assert!(refused("missing.onnx").contains("missing.onnx"));
    let model = example("owner_00.onnx");
    // So wide a range that the ring has no room for the products.
    let wide = ["check", model.as_str(), "--input-minimum", "0", "--input-maximum", "1e12"];
    assert!(failure(&wide, 2).contains("refused") || failure(&wide, 2).contains("2^40"));
}

#[test]
fn several_models_need_different_names() {
    let model = example("owner_00.onnx");
    let message = failure(&["share", &model, &model, "--task", "digits"], 2);
    assert!(message.contains("owner-00") && message.contains("--name"), "{message}");
    let message = failure(&["share", &model, &model, "--task", "digits", "--name", "x"], 2);
    assert!(message.contains("--name"), "{message}");
    let message = failure(&["share", &model, "--task", "digits"], 2);
    assert!(message.contains("owner.toml"), "{message}");
}

#[test]
fn models_of_the_development_set_are_checked() {
    let models = PathBuf::from(WORKSPACE).join("../shared/models");
    if !models.exists() {
        eprintln!("skipped: {} is absent", models.display());
        return;
    }
    for (folder, minimum, maximum) in
        [("mnist_mlp", "0", "1"), ("breast_cancer", "0", "4254"), ("digits", "0", "1")]
    {
        let model = models.join(folder).join("owner_00.onnx");
        let ranges = ["--input-minimum", minimum, "--input-maximum", maximum, "--rows", "2", "--seed", "1"];
        let text = check(&[&[model.to_str().unwrap()], &ranges[..]].concat());
        assert!(text.contains("accepted"), "{folder}: {text}");
    }
}

#[test]
fn without_ranges_the_usual_ones_are_assumed_and_said() {
    let (folder, model) = (tempfile::tempdir().unwrap(), example("owner_00.onnx"));
    let output = run(folder.path(), &["check", &model]);
    let note = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{note}");
    assert!(note.contains("from -1 to 1") && note.contains("--input-minimum"), "{note}");
    let given = ["--input-minimum", "-1", "--input-maximum", "1"];
    let fractional_bits =
        |text: &str| text.lines().find(|line| line.contains("fractional bits")).map(str::to_owned);
    let assumed = fractional_bits(&String::from_utf8(output.stdout).unwrap());
    assert!(assumed.is_some());
    assert_eq!(assumed, fractional_bits(&check(&[&[model.as_str()][..], &given].concat())));
}

/// A file of `rows` rows of `features` numbers from 0 to 1.
fn write_inputs(path: &Path, rows: usize, shape: &[usize]) {
    let shape: Vec<usize> = [&[rows], shape].concat();
    let count: usize = shape.iter().product();
    let numbers = (0..count).map(|index| (index * 7919 % 101) as f32 / 100.0).collect();
    ndarray_npy::write_npy(path, &ndarray::ArrayD::from_shape_vec(shape, numbers).unwrap()).unwrap();
}

#[test]
fn given_rows_are_run_and_the_report_is_json() {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, report) = (folder.path().join("x.npy"), folder.path().join("report.json"));
    write_inputs(&inputs, 4, &[1, 8, 8]);
    for name in ["legacy_convolution", "legacy_tanh", "sklearn_forest"] {
        let model = fixture(&format!("{name}.onnx"));
        let shape: &[usize] = if name == "legacy_convolution" { &[1, 8, 8] } else { &[64] };
        write_inputs(&inputs, 4, shape);
        let text = check(&[&model, "--inputs", inputs.to_str().unwrap(), "--json", report.to_str().unwrap()]);
        assert!(text.contains("4 given rows"), "{text}");
        let found: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        assert_eq!(found["ok"], true, "{found}");
        assert_eq!((&found["rows"], &found["labels_agree"]), (&4.into(), &4.into()), "{name}");
        assert!(found["operators"].as_object().unwrap().values().all(serde_json::Value::is_u64));
        assert!(found["parameters"].as_u64().unwrap() > 0);
        assert!(found["headroom_bits"].as_i64().unwrap() >= 24);
        assert!(found["rounds"].as_u64().unwrap() > 5);
        assert_eq!(found["bytes"].as_array().unwrap().len(), 3);
        assert!(found["oracle"].as_str().unwrap().starts_with("tract, in single precision"), "{found}");
        assert_eq!(found["outputs_are_the_files"], true);
        let steps = found["steps"].as_array().unwrap();
        assert_eq!(steps.len(), found["check"]["steps"].as_array().unwrap().len());
        assert!(steps.iter().all(|step| step["last_places"].as_i64().unwrap() <= 1 << 12), "{found}");
        let costs = found["cost"].as_array().unwrap();
        assert_eq!((&costs[0]["rows"], &costs[1]["rows"]), (&1.into(), &4.into()));
        let far = costs[0]["estimated_ms"]["over the internet"].as_f64().unwrap();
        assert!(far > 20.0 * found["rounds"].as_f64().unwrap(), "{found}");
        let (secure, oracle) = (&found["outputs_mpc"], &found["outputs_oracle"]);
        let mut largest: f64 = 0.0;
        for row in 0..4 {
            for class in 0..10 {
                let number = |outputs: &serde_json::Value| outputs[row][class].as_f64().unwrap();
                largest = largest.max((number(secure) - number(oracle)).abs());
            }
        }
        let stated = found["max_abs_error"].as_f64().unwrap();
        assert!((largest - stated).abs() < 1e-12, "{largest} for {stated}");
        assert!(stated > 0.0 && stated < 0.05, "{name}: {stated}");
    }
}

#[test]
fn outputs_are_those_of_the_file_behind_a_softmax_too() {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, report) = (folder.path().join("x.npy"), folder.path().join("report.json"));
    write_inputs(&inputs, 3, &[64]);
    for name in ["legacy_softmax", "dynamo_softmax"] {
        let arguments = [
            &fixture(&format!("{name}.onnx")),
            "--inputs",
            inputs.to_str().unwrap(),
            "--json",
            report.to_str().unwrap(),
        ];
        let text = check(&arguments);
        assert!(text.contains("softmax of the logits"), "{text}");
        let found: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        assert!(found["oracle"].as_str().unwrap().starts_with("tract, in"), "{found}");
        for outputs in ["outputs_mpc", "outputs_fixed_point", "outputs_oracle"] {
            let sum: f64 = found[outputs][2].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{name}, {outputs}: {sum}");
        }
        assert!(found["max_abs_error"].as_f64().unwrap() < 0.01, "{found}");
        assert_eq!(found["labels_agree"], 3, "{name}");
    }
}

#[test]
fn a_refusal_is_in_the_report_too() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let message = failure_of_lines(
        &["check", &fixture("unsupported_lstm.onnx"), "--json", report.to_str().unwrap()],
        2,
    );
    let found: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(found["ok"], false);
    assert!(found["reason"].as_str().unwrap().contains("LSTM"), "{found}");
    assert!(message.contains("LSTM"), "{message}");
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = folder.path().join("x.npy");
    let model = fixture("legacy_mlp.onnx");
    let path = inputs.to_str().unwrap().to_owned();
    let refused = || failure(&["check", &model, "--inputs", &path], 2);
    assert!(refused().contains("x.npy"));
    write_inputs(&inputs, 3, &[63]);
    assert!(refused().contains("has shape [3, 63], the network takes rows of 64 features"));
    write_inputs(&inputs, 0, &[64]);
    assert!(refused().contains("1 to 10000 of them"));
    fs::write(&inputs, b"no array").unwrap();
    assert!(refused().contains("write it with numpy.save"));
    let integers = ndarray::Array2::<i64>::zeros((2, 64));
    ndarray_npy::write_npy(&inputs, &integers).unwrap();
    assert!(refused().contains("write it with numpy.save"));
    write_inputs(&inputs, 2, &[64]);
    assert!(failure_of_lines(&["check", &model, "--inputs", &path, "--rows", "3"], 2).contains("--rows"));
}
