//! Numbers as people write them in configuration files, and where binary fractions may occur.

use std::{fs, path::Path};

use concilium_privacy::{Delta, Mechanism, NanoRho, Release};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    release: Release,
    budget: NanoRho,
    delta: Delta,
    mechanism: Mechanism,
}

fn task(budget: &str, delta: &str, mechanism: &str) -> Result<Task, toml::de::Error> {
    toml::from_str(&format!(
        "release = \"histogram\"\nbudget = {budget}\ndelta = {delta}\nmechanism = {mechanism}\n"
    ))
}

#[test]
fn numbers_and_texts_are_read_alike_and_exactly() {
    let expected = Task {
        release: Release::Histogram,
        budget: NanoRho::new(100_000_000),
        delta: "0.00001".parse().expect("a number"),
        mechanism: Mechanism::DiscreteGaussian { sigma: "2.3".parse().expect("a number") },
    };
    for (budget, delta, sigma) in
        [("0.1", "1e-5", "2.3"), ("\"0.1\"", "0.00001", "\"2.30\""), ("1e-1", "\"1e-5\"", "23e-1")]
    {
        let mechanism = format!("{{ kind = \"discrete_gaussian\", sigma = {sigma} }}");
        assert_eq!(task(budget, delta, &mechanism).expect("a task"), expected);
    }
    let whole = task("3", "1e-9", "{ kind = \"discrete_laplace\", scale = 20 }").expect("a task");
    assert_eq!(whole.budget, NanoRho::new(3_000_000_000));
    assert_eq!(whole.mechanism, Mechanism::DiscreteLaplace { scale: "20".parse().expect("a number") });

    let text = toml::to_string(&whole).expect("text");
    assert_eq!(toml::from_str::<Task>(&text).expect("a task"), whole);
}

#[test]
fn every_short_decimal_survives_the_way_through_a_binary_fraction() {
    for millionths in (0..50_000_000_u64).step_by(7_919) {
        let text = format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
        let mechanism = format!("{{ kind = \"discrete_gaussian\", sigma = {text} }}");
        let Mechanism::DiscreteGaussian { sigma } = task("1", "1e-5", &mechanism).expect("a task").mechanism
        else {
            panic!("another mechanism");
        };
        assert_eq!(sigma.millionths(), millionths);
    }
}

#[test]
fn what_cannot_be_held_is_refused_with_its_name() {
    let gaussian = "{ kind = \"discrete_gaussian\", sigma = 5 }";
    for (budget, delta, mechanism, named) in [
        ("-1", "1e-5", gaussian, "rho"),
        ("-0.5", "1e-5", gaussian, "rho"),
        ("nan", "1e-5", gaussian, "rho"),
        ("inf", "1e-5", gaussian, "rho"),
        ("0.0000000001", "1e-5", gaussian, "9 decimal places"),
        ("1e30", "1e-5", gaussian, "greater"),
        ("true", "1e-5", gaussian, "rho"),
        ("1", "1e-19", gaussian, "delta"),
        ("1", "1e-5", "{ kind = \"discrete_gaussian\", scale = 5 }", "scale"),
        ("1", "1e-5", "{ kind = \"gaussian\", sigma = 5 }", "gaussian"),
    ] {
        let error = task(budget, delta, mechanism).expect_err("refused").to_string();
        assert!(error.contains(named), "{budget} {delta} {mechanism}: {error}");
    }
}

/// Code without comments and texts, so that only what is compiled is searched.
fn bare_code(source: &str) -> String {
    source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .map(|line| line.split('"').step_by(2).collect::<String>() + "\n")
        .collect()
}

/// Whether the code names a binary floating-point type or holds a number with a point or exponent.
fn has_floating_point(code: &str) -> bool {
    let bytes = code.as_bytes();
    let is_digit = |index: usize| bytes.get(index).is_some_and(u8::is_ascii_digit);
    let point =
        (1..bytes.len()).any(|index| bytes[index] == b'.' && is_digit(index - 1) && is_digit(index + 1));
    point || code.contains("f64") || code.contains("f32")
}

/// Where numbers for people are: nothing there decides about a request.
const INFORMATIONAL: &str = "convert";

#[test]
fn binary_fractions_stay_in_the_conversions_for_people() {
    assert!(has_floating_point(&bare_code("let x: f64 = y;")));
    assert!(has_floating_point(&bare_code("let x = 2.5;")));
    assert!(!has_floating_point(&bare_code("let x = pair.0; // 2.5\nlet y = \"2.5\";")));

    let (mut searched, mut exempt) = (0, 0);
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                let informational = path.file_name().is_some_and(|name| name == INFORMATIONAL);
                exempt += usize::from(informational);
                if !informational {
                    folders.push(path);
                }
            } else {
                let source = fs::read_to_string(&path).expect("source text");
                assert!(
                    !has_floating_point(&bare_code(&source)),
                    "{} uses binary floating point",
                    path.display()
                );
                searched += 1;
            }
        }
    }
    assert_eq!(exempt, 1, "one folder is exempt");
    assert!(searched >= 30, "only {searched} files were searched");
}
