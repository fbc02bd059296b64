//! The table of operators in the documentation is the one that import goes by.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path};

use concilium_network::import::{SUPPORTED, operator_table};

#[test]
fn the_documented_table_is_the_one_in_use() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operators.md");
    let text = fs::read_to_string(path).unwrap();
    let table = operator_table();
    assert!(text.contains(&table), "docs/operators.md must hold this table:\n{table}");
    let names: Vec<_> = SUPPORTED.iter().map(|operator| (operator.domain, operator.name)).collect();
    assert!(names.is_sorted(), "the table is in alphabetical order");
}
