//! Three server processes with a few of the example models, and programs that are run against them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use concilium_client_library::budget::budgets;
use concilium_client_library::operations::Servers;
use concilium_client_library::{Connection, ConnectionConfig};
use concilium_demo::cluster::{Cluster, ServerProgram};
use concilium_privacy::{Mechanism, NanoRho, Sensitivity};
use concilium_rpc::identity::Role;
use serde_json::Value;
use tempfile::TempDir;

use super::support;

const PROGRAMS: [&str; 4] = ["concilium-server", "concilium-owner", "concilium-client", "concilium-operator"];

/// Owners of the example models that vote.
pub(crate) const OWNERS: usize = 3;

/// Sigma of all tasks.
const SIGMA: &str = "2";

/// Tasks of the same models: one that releases labels, one that releases counts and whose ranges are
/// not those of the inputs, so that the encoding has to scale, and one that releases probabilities.
const TASKS: &str = r#"
[tasks.digits]
epoch = 1
input_shape = [64]
input_minimum = 0.0
input_maximum = 1.0
fractional_bits = 16
classes = 10
release = "label"
sigma = 2
budget_rho = 1000
delta = 1e-5
request_rows = 16

[tasks.counts]
epoch = 4
input_shape = [8, 8]
input_minimum = -0.75
input_maximum = 1.5
fractional_bits = 12
classes = 10
class_names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
release = "histogram"
sigma = 2
budget_rho = 1000
budget_per_client_rho = 900
delta = 1e-5
request_rows = 16

[tasks.means]
epoch = 1
input_shape = [64]
input_minimum = 0.0
input_maximum = 1.0
fractional_bits = 16
classes = 10
release = "mean_probability"
sigma = 2
budget_rho = 1000
delta = 1e-5
request_rows = 64

[tasks.sure]
epoch = 1
input_shape = [64]
input_minimum = 0.0
input_maximum = 1.0
fractional_bits = 16
classes = 10
release = "confident_label"
sigma = 2
confidence_votes = 3
confidence_sigma = 2
privacy_unit = "owner"
models_per_owner = 3
budget_rho = 1000
delta = 1e-5
request_rows = 64
"#;

/// The names of the tasks that release labels and counts.
pub(crate) const TASK_NAMES: [&str; 2] = ["digits", "counts"];

/// A task that releases mean probabilities.
pub(crate) const MEANS_TASK: &str = "means";

/// A task that releases labels on which enough models agree, or none.
pub(crate) const CONFIDENT_TASK: &str = "sure";

/// The price of rows of a task without a threshold.
pub(crate) fn price(rows: usize) -> NanoRho {
    let mechanism = Mechanism::DiscreteGaussian { sigma: SIGMA.parse().expect("a decimal number") };
    let row = mechanism.cost(Sensitivity::OF_ONE_VOTE, 10).expect("an allowed mechanism");
    row.checked_mul(rows as u64).expect("a small sum")
}

/// Running servers that have the owners' models.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    folder: TempDir,
    programs: PathBuf,
}

impl World {
    pub(crate) async fn start() -> World {
        let programs = support::programs(&PROGRAMS);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let server = ServerProgram {
            path: programs.join("concilium-server"),
            arguments: Vec::new(),
            ends_with_input: false,
        };
        let mut cluster = Cluster::start(folder.path(), server, [TASKS; 3], "").expect("servers start");
        cluster.wait_until_ready(Duration::from_secs(120)).await.expect("servers connect");
        let world = World { cluster, folder, programs };
        for owner in 0..OWNERS {
            let config = world.member(Role::Owner, &format!("ward-{owner}"));
            let model = support::root().join(format!("examples/digits/owner_{owner:02}.onnx"));
            for task in TASK_NAMES.into_iter().chain([MEANS_TASK, CONFIDENT_TASK]) {
                let arguments: [&OsStr; 6] = [
                    "share".as_ref(),
                    model.as_ref(),
                    "--task".as_ref(),
                    task.as_ref(),
                    "--config".as_ref(),
                    config.as_ref(),
                ];
                let output = world.command("concilium-owner").args(arguments).output().expect("it runs");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
        world
    }

    /// A folder for the test's own files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A program of this workspace, without the variables of whoever runs the tests.
    pub(crate) fn command(&self, program: &str) -> Command {
        clean(Command::new(self.programs.join(program)), self.folder())
    }

    /// Issues a certificate and writes the configuration with which its holder connects.
    pub(crate) fn member(&self, role: Role, name: &str) -> PathBuf {
        let config = self.cluster.member(role, name).expect("a certificate is issued");
        self.write_config(&format!("{role}-{name}.toml"), &config)
    }

    /// Writes a configuration of connections to a file of this name.
    pub(crate) fn write_config(&self, name: &str, config: &ConnectionConfig) -> PathBuf {
        let text = format!(
            "servers = {:?}\nrequest_timeout_ms = {}\n[tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            config.servers, config.request_timeout_ms, config.tls.ca, config.tls.certificate, config.tls.key
        );
        let path = self.folder().join(name);
        fs::write(&path, text).expect("a configuration is written");
        path
    }

    /// Our client on the rows of a file, and its answers as JSON.
    pub(crate) fn predict(&self, config: &Path, task: &str, input: &Path, options: &[&str]) -> Value {
        let mut command = self.command("concilium-client");
        command.arg("--config").arg(config).args(["predict", "--task", task, "--input"]).arg(input);
        answers(command.args(options), &self.folder().join("answers.json"))
    }

    /// Spent by everybody on a task, as each server counts it.
    pub(crate) async fn spent_on_each(&self, task: &str) -> [NanoRho; 3] {
        let operator = self.cluster.member(Role::Operator, "operator").expect("a certificate is issued");
        let connection = Connection::open(&operator).expect("the configuration is good");
        let budgets = budgets(&connection, Servers::All, Some(task)).await.into_iter().map(|budget| {
            let budget = budget.expect("an operator sees budgets");
            NanoRho::new(budget.tasks[0].spent_nano_rho.expect("operators see totals"))
        });
        budgets.collect::<Vec<_>>().try_into().expect("three servers")
    }

    /// Spent by everybody on a task, on which the three servers agree when nothing is under way.
    pub(crate) async fn spent(&self, task: &str) -> NanoRho {
        let spent = self.spent_on_each(task).await;
        assert_eq!(spent, [spent[0]; 3], "the ledgers differ");
        spent[0]
    }
}

impl Drop for World {
    /// The servers' logs say more than a failed assertion.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for server in 0..3 {
                let log = fs::read_to_string(self.cluster.log(server)).unwrap_or_default();
                eprintln!("--- log of server {server}\n{log}");
            }
        }
    }
}

/// A command in `folder` without the variables that would change what the programs do.
pub(crate) fn clean(mut command: Command, folder: &Path) -> Command {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CONCILIUM_") || name == "RUST_LOG" {
            command.env_remove(&*name);
        }
    }
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// Runs a client that writes its answers with `--json`, which must succeed.
pub(crate) fn answers(command: &mut Command, json: &Path) -> Value {
    let output = command.arg("--json").arg(json).output().expect("it runs");
    assert!(output.status.success(), "{}", told(&output));
    serde_json::from_slice(&fs::read(json).expect("answers were written")).expect("answers are JSON")
}

/// Everything that a program said.
pub(crate) fn told(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// What of an answer must be equal when it is repeated: request ids and all released values.
pub(crate) fn released(answers: &Value) -> Value {
    let requests = answers["requests"].as_array().expect("requests");
    let ids: Vec<_> = requests.iter().map(|request| &request["request_id"]).collect();
    serde_json::json!([ids, answers["labels"], answers["histograms"]])
}

/// How many of the requests were answered from what the servers had kept.
pub(crate) fn replayed(answers: &Value) -> usize {
    let requests = answers["requests"].as_array().expect("requests").iter();
    requests.filter(|request| request["replayed"] == true).count()
}

/// The rows of the examples.
pub(crate) fn example_rows() -> PathBuf {
    support::root().join("examples/digits/test_inputs.npy")
}
