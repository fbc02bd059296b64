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
    for needle in
        ["accepted", "Gemm", "headroom", "3 random rows, --seed 5", "votes", "rounds", "server memory"]
    {
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
    let checked = |text: String| {
        fs::write(&path, text).unwrap();
        failure(&[&["check"][..], &arguments].concat(), 2)
    };
    assert!(checked(task(3, 11)).contains("10 classes"));
    assert!(checked(task(10, 11).replace("[64]", "[63]")).contains("63"));
    assert!(checked(task(10, 99)).contains("fractional bits"));
}

#[test]
fn refused_models_say_why() {
    let refused = |model: &str| failure(&[&["check", model][..], &UNIT[..]].concat(), 2);
    // All unsupported nodes are listed, one line each.
    let several = fixture("unsupported_several.onnx");
    let message = failure_of_lines(&[&["check", &several][..], &UNIT[..]].concat(), 2);
    for needle in ["unsupported_several.onnx", "Erf", "LayerNormalization", "Elu"] {
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
