//! However the program ends, its servers end with it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use super::support::Demo;

/// Starts a long demonstration, whose servers run and whose client has asked.
fn start(demo: &Demo) -> Child {
    let mut child = demo
        .command("--owners 25 --queries 397 --batch 1")
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
        if seen[seen.len() - 1].starts_with("predicting") {
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
        let mut child = start(&demo);
        signal(name, &child.id().to_string());
        assert_eq!(child.wait().unwrap().code(), Some(code), "SIG{name}");
        demo.check_nothing_is_left();
    }
}

#[test]
fn ctrl_c_at_a_terminal_reaches_the_servers_too() {
    let demo = Demo::new();
    let mut child = start(&demo);
    signal("INT", &format!("-{}", child.id()));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    demo.check_nothing_is_left();
}

#[test]
fn servers_do_not_outlive_a_killed_program() {
    let demo = Demo::new();
    let mut child = start(&demo);
    signal("KILL", &child.id().to_string());
    assert_eq!(child.wait().unwrap().code(), None);
    demo.wait_until_servers_end();
    // Nobody was left to remove the temporary folder.
    assert_eq!(fs::read_dir(demo.temporary()).unwrap().count(), 1);
}
