//! The README's quick start, run as it is written.
#![cfg(unix)]

mod documents;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use concilium_server::config::TaskFile;
use documents::{blocks, programs, read, root};
use serde_json::Value;

/// The programs that the quick start calls.
const PROGRAMS: [&str; 4] = ["concilium-server", "concilium-owner", "concilium-client", "concilium-operator"];

/// Rows that the quick start asks about, and owners that vote.
const ROWS: usize = 20;
const OWNERS: u64 = 50;

/// After this the script is given up. It takes a fraction of it on a slow machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// The shell commands of all marked blocks, one after the other.
fn quick_start() -> String {
    let blocks = blocks(&read(&root().join("README.md")));
    let marked = blocks.into_iter().filter(|block| block.places == ["quick-start"]);
    marked.map(|block| block.commands).collect()
}

/// A copy of the sample configurations in `folder`, with ports that are free on this machine.
fn copy_samples(folder: &Path) {
    let written = [7400, 7401, 7402, 7410, 7411, 7412, 7480, 7481, 7482];
    // Below the ports that systems give to outgoing connections, which could take one meanwhile. All
    // are held until all are known.
    let free = |_| loop {
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", rand::random_range(10_000..32_000))) {
            return listener;
        }
    };
    let listeners = written.map(free);
    fs::create_dir_all(folder).expect("a folder for the samples");
    for name in samples() {
        let mut text = read(&root().join("docs/samples").join(&name));
        if let Some(server) = name.strip_prefix("server-").and_then(|rest| rest.strip_suffix(".toml")) {
            // The default, written down so that it is replaced below.
            text += &format!("\n[web]\nlisten = \"127.0.0.1:748{server}\"\n");
        }
        for (written, listener) in written.iter().zip(&listeners) {
            let free = listener.local_addr().expect("a bound socket has an address").port();
            text = text.replace(&format!("127.0.0.1:{written}"), &format!("127.0.0.1:{free}"));
        }
        // Only comments about other hosts may name one of these ports now.
        let settings: String = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        assert!(!settings.contains(":74"), "{name} has a port that this test does not know: {settings}");
        fs::write(folder.join(name), text).expect("a copy of a sample");
    }
}

/// File names of the basic samples.
fn samples() -> Vec<String> {
    let entries = fs::read_dir(root().join("docs/samples")).expect("the samples are there");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".toml")).collect()
}

/// A shell in a process group of its own. Dropping it ends whatever is left of the group: a script
/// that fails half-way leaves its servers running.
struct Shell {
    child: Child,
    group: String,
}

impl Shell {
    fn start(script: &str, folder: &Path) -> Self {
        let output =
            |name: &str| Stdio::from(fs::File::create(folder.join(name)).expect("a file for output"));
        let mut command = Command::new("sh");
        command.args(["-e", "-c", script]).current_dir(folder).process_group(0);
        command.stdin(Stdio::null()).stdout(output("stdout")).stderr(output("stderr"));
        // Variables of whoever runs the tests are no part of the quick start.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CONCILIUM_") {
                command.env_remove(name);
            }
        }
        let child = command.spawn().expect("a shell");
        let group = format!("-{}", child.id());
        Shell { child, group }
    }

    /// Waits for the end of the script and tells whether all of it succeeded.
    fn wait(&mut self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("the shell can be waited for") {
                return status.success();
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// Whether any process of the group is left.
    fn lives(&self) -> bool {
        self.signal("-0")
    }

    fn signal(&self, signal: &str) -> bool {
        let sent = Command::new("kill").args([signal, "--", &self.group]).stderr(Stdio::null()).status();
        sent.is_ok_and(|status| status.success())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.signal("-KILL");
        // It has ended, or has just been ended.
        let _ = self.child.wait();
    }
}

#[test]
fn the_quick_start_does_what_it_says() {
    let programs = programs(&PROGRAMS);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = folder.path();
    // The folder looks like the root of the repository, so the commands need no change at all.
    fs::create_dir(home.join("target")).expect("a folder");
    symlink(programs, home.join("target/release")).expect("a link to the programs");
    symlink(root().join("examples"), home.join("examples")).expect("a link to the examples");
    copy_samples(&home.join("docs/samples"));

    let script = quick_start();
    for program in PROGRAMS {
        assert!(script.contains(program), "the quick start does not show {program}");
    }
    let mut shell = Shell::start(&script, home);
    let succeeded = shell.wait();
    let (stdout, stderr) = (read(&home.join("stdout")), read(&home.join("stderr")));
    let logs: String = (0..3)
        .map(|server| fs::read_to_string(home.join(format!("trial/server-{server}.log"))).unwrap_or_default())
        .collect();
    assert!(succeeded, "the quick start failed\n{stdout}\n{stderr}\n{logs}");
    assert!(!shell.lives(), "the quick start has left processes behind\n{logs}");

    assert!(stdout.contains("owner-00 is ready on all three servers"), "{stdout}");
    assert_eq!(stdout.matches("is ready on all three servers").count() as u64, OWNERS, "{stdout}");
    assert!(stdout.contains("50 models of 50 owners"), "{stdout}");
    assert!(stdout.contains("withdrew owner-00"), "{stdout}");
    check_answers(&home.join("trial/answers.json"), &stdout);
    check_budget(&stdout);
}

/// One label for each row, printed and written, mostly right.
fn check_answers(path: &Path, stdout: &str) {
    let answers: Value = serde_json::from_str(&read(path)).expect("the answers are JSON");
    let labels = answers["labels"].as_array().expect("labels");
    assert_eq!(labels.len(), ROWS);
    let names = class_names();
    for (row, label) in labels.iter().enumerate() {
        let name = &names[label.as_u64().expect("a class") as usize];
        let line = stdout.lines().find(|line| line.split_whitespace().eq([row.to_string().as_str(), name]));
        assert!(line.is_some(), "row {row} is not printed as {name}\n{stdout}");
    }
    // With sigma 5 about nine of ten labels are right (examples/digits). Labels drawn at random would
    // pass with odds of 4e-4 (binomial, 20 rows, one class of ten); labels that are each right with
    // probability 0.75 would fail with odds below 1e-3.
    let accuracy = answers["accuracy"].as_f64().expect("an accuracy");
    assert!(accuracy >= 0.4, "accuracy {accuracy}");
    // 20 rows at sigma 5: each 1 / 25 and one unit for the rounding up.
    assert_eq!(answers["charged_rho"], "0.80000002");
    assert_eq!(answers["requests"][0]["models"].as_u64(), Some(OWNERS));
}

/// Every server shows the same spending.
fn check_budget(stdout: &str) {
    for server in 0..3 {
        let shown = stdout.split(&format!("server {server}: ledger of")).nth(1);
        let shown = shown.unwrap_or_else(|| panic!("no budget of server {server}\n{stdout}"));
        let line = shown.lines().find(|line| line.starts_with("digits"));
        let line = line.unwrap_or_else(|| panic!("no budget of the task on server {server}\n{stdout}"));
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[..3], ["digits", "1", "0.80000002"], "server {server}: {line}");
    }
}

fn class_names() -> Vec<String> {
    let file = TaskFile::load(&root().join("docs/samples/tasks.toml")).expect("the sample is read");
    file.tasks["digits"].class_names.clone()
}
