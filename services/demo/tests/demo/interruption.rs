//! However the program ends, its servers end with it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use super::support::Demo;

/// Long work, and how the line begins that says that the servers run and the client asks.
const DEMONSTRATION: (&str, &str) = ("--owners 25 --queries 397 --batch 1", "predicting");
const MEASUREMENT: (&str, &str) =
    ("bench --network mlp:64-32-10 --owners 3 --repeat 100000 --delay-ms 1", "measuring");

/// Starts long work and waits until it is under way.
fn start(demo: &Demo, (arguments, under_way): (&str, &str)) -> Child {
    let mut child = demo
        .command(arguments)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        // A group of its own, as a shell gives it to a command.
        .process_group(0)
        .spawn()
        .unwrap();
    let messages = BufReader::new(child.stderr.take().unwrap());
    let mut seen = Vec::new();
    for line in messages.lines() {
        seen.push(line.unwrap());
        if seen[seen.len() - 1].starts_with(under_way) {
            break;
        }
    }
    if demo.servers().len() != 3 {
        let _ = child.kill();
        panic!("{:?}, servers {:?}, after {seen:#?}", child.wait(), demo.servers());
    }
    child
}

/// Sends a signal to a process, or with a minus sign before its id to its whole group.
fn signal(name: &str, id: &str) {
    let sent = Command::new("kill").args(["-s", name, "--", id]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn signals_stop_everything() {
    let demo = Demo::new();
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut child = start(&demo, DEMONSTRATION);
        signal(name, &child.id().to_string());
        assert_eq!(child.wait().unwrap().code(), Some(code), "SIG{name}");
        demo.check_nothing_is_left();
    }
}

#[test]
fn ctrl_c_at_a_terminal_reaches_the_servers_too() {
    let demo = Demo::new();
    let mut child = start(&demo, DEMONSTRATION);
    signal("INT", &format!("-{}", child.id()));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    demo.check_nothing_is_left();
}

#[test]
fn servers_do_not_outlive_a_killed_program() {
    let demo = Demo::new();
    let mut child = start(&demo, DEMONSTRATION);
    signal("KILL", &child.id().to_string());
    assert_eq!(child.wait().unwrap().code(), None);
    demo.wait_until_servers_end();
    // Nobody was left to remove the temporary folder.
    assert_eq!(fs::read_dir(demo.temporary()).unwrap().count(), 1);
}

#[test]
fn a_measurement_leaves_nothing_behind_either() {
    let demo = Demo::new();
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let mut child = start(&demo, MEASUREMENT);
        signal(name, &child.id().to_string());
        assert_eq!(child.wait().unwrap().code(), Some(code), "SIG{name}");
        demo.check_nothing_is_left();
    }
}
