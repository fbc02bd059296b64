//! What tests of whole programs share: where the programs are, and skips that are seen.

use std::env;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set where all tools are installed: a test that lacks one fails instead of being skipped.
const REQUIRE_ALL: &str = "CONCILIUM_REQUIRE_ALL_TESTS";

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace is there")
}

/// Builds the programs, which no dependency of these tests does, and gives their folder.
pub(crate) fn programs(names: &[&str]) -> PathBuf {
    // <target>/<profile>/deps/<test>-<hash>
    let test = env::current_exe().expect("a test has a file");
    let folder = test.ancestors().nth(2).expect("the folder of the profile");
    let target = folder.parent().expect("the target folder");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("{} names no profile", folder.display()),
    };
    let built = Command::new(env!("CARGO"))
        // The whole workspace, so that features are what `cargo test --workspace` has built with.
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(root())
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the programs can't be built");
    for name in names {
        assert!(folder.join(name).exists(), "{name} is not in {}", folder.display());
    }
    folder.to_owned()
}

/// Says that a test is skipped, also when the output of tests is captured.
///
/// # Panics
/// Where all tests are required.
pub(crate) fn skip(test: &str, reason: &str) {
    let required = env::var_os(REQUIRE_ALL).is_some_and(|value| value == "1");
    assert!(!required, "{test}: {reason}, and {REQUIRE_ALL}=1 allows no skips");
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {reason}");
}
