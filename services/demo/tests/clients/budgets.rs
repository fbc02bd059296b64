//! What owners, clients and operators are told of the budget by their programs.

use std::path::Path;

use concilium_rpc::identity::Role;

use super::support;
use super::world::{World, example_rows, told};

/// What a program says, which must succeed; cells of tables with one space between them.
fn said(world: &World, program: &str, config: &Path, arguments: &[&str]) -> String {
    let output =
        world.command(program).arg("--config").arg(config).args(arguments).output().expect("it runs");
    let text = told(&output);
    assert!(output.status.success(), "{arguments:?}: {text}");
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n");
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_show_what_is_left_to_whom() {
    let world = World::start().await;
    let (alice, owner) = (world.member(Role::Client, "alice"), world.member(Role::Owner, "ward-0"));
    let operator = world.member(Role::Operator, "operator");
    let listed = said(&world, "concilium-owner", &owner, &["list"]);
    assert!(!listed.contains("bound rho"), "no bound was set: {listed}");

    // A bound of two rows, of which the first request takes one.
    let model = support::root().join("examples/digits/owner_00.onnx");
    let model = model.to_str().expect("text");
    let share = ["share", model, "--task", "digits", "--replace", "--budget-rho", "0.500000134"];
    said(&world, "concilium-owner", &owner, &share);
    world.predict(&alice, "digits", &example_rows(), &["--rows", "0..1"]);

    let listed = said(&world, "concilium-owner", &owner, &["list"]);
    assert!(listed.contains("\nward-0 digits 1 0.500000134 0.250000067 0.250000067 1\n"), "{listed}");
    let shown = said(&world, "concilium-operator", &operator, &["budget", "--task", "digits"]);
    assert_eq!(
        shown.matches("\nward-0 digits 1 0.500000134 0.250000067 0.250000067 1\n").count(),
        3,
        "{shown}"
    );
    assert_eq!(shown.matches("\nalice digits 0.250000067 - 0.250000067 -\n").count(), 3, "{shown}");

    let shown = said(&world, "concilium-client", &alice, &["budget", "--task", "counts"]);
    assert!(shown.contains("\ncounts 4 0 "), "{shown}");
    assert!(shown.contains("\nalice counts 0 900 0.250000067 -\n"), "{shown}");
    assert!(!shown.contains("ward"), "a client is told of no owner: {shown}");
}
