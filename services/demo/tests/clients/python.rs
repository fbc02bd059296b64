//! The client of examples/python, made from nothing but the .proto files and the documents, against
//! ours: both make the same requests of the same rows, and each gets the answers of the other's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use concilium_privacy::{Mechanism, Sensitivity};
use concilium_rpc::certificates::Authority;
use concilium_rpc::identity::{Identity, Role};
use concilium_rpc::status::{Retry, TABLE, TRANSPORT_CODES};
use ndarray::Array2;
use serde_json::Value;

use super::support;
use super::world::{
    CONFIDENT_TASK, MEANS_TASK, TASK_NAMES, World, answers, clean, example_rows, price, released, replayed,
    told,
};

/// What the client imports.
const MODULES: &str = "import sys; assert sys.version_info >= (3, 11), 'Python is older than 3.11'; \
     import cryptography, google.rpc.error_details_pb2, grpc, grpc_health, grpc_reflection, grpc_tools, numpy";

fn example() -> PathBuf {
    support::root().join("examples/python")
}

/// A Python that has the packages of `requirements.txt`: the system's, or that of an environment below
/// the target folder, which is made once.
fn python() -> Result<&'static Path, &'static str> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PYTHON.get_or_init(find_python).as_ref().map(PathBuf::as_path).map_err(String::as_str)
}

fn find_python() -> Result<PathBuf, String> {
    let system = PathBuf::from("python3");
    if run(Command::new(&system).args(["-c", MODULES])).is_ok() {
        return Ok(system);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = folder.join("bin/python3");
    if run(Command::new(&python).args(["-c", MODULES])).is_ok() {
        return Ok(python);
    }
    run(Command::new(&system).args(["-m", "venv", "--clear"]).arg(&folder))?;
    let requirements = example().join("requirements.txt");
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements))?;
    run(Command::new(&python).args(["-c", MODULES]))?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), String> {
    let described = format!("{command:?}");
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let messages = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!("{described} failed: {}", messages.lines().last().unwrap_or_default()))
        }
        Err(error) => Err(format!("{described} can't be run: {error}")),
    }
}

/// The Python client, in a copy whose generated files do not get into the workspace.
struct Client {
    python: &'static Path,
    script: PathBuf,
    folder: PathBuf,
}

impl Client {
    /// `None` and a visible line if there is no Python for it.
    fn new(test: &str, world: &World) -> Option<Client> {
        let python = python().map_err(|reason| support::skip(test, reason)).ok()?;
        let copy = world.folder().join("examples/python");
        fs::create_dir_all(&copy).expect("a folder");
        std::os::unix::fs::symlink(support::root().join("proto"), world.folder().join("proto"))
            .expect("a link to the interface");
        for entry in fs::read_dir(example()).expect("the example is there") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "py") {
                fs::copy(&path, copy.join(path.file_name().expect("a name"))).expect("a copy");
            }
        }
        let (script, folder) = (copy.join("concilium_client.py"), world.folder().to_owned());
        Some(Client { python, script, folder })
    }

    /// Changes a file of the copy.
    fn replace(&self, file: &str, from: &str, to: &str) {
        let path = self.script.with_file_name(file);
        let text = fs::read_to_string(&path).expect("the file is there");
        assert!(text.contains(from), "{file} does not say {from}");
        fs::write(&path, text.replace(from, to)).expect("the file is written");
    }

    fn command(&self, config: &Path) -> Command {
        let mut command = clean(Command::new(self.python), &self.folder);
        command.arg(&self.script).arg("--config").arg(config);
        command
    }

    fn predict(&self, config: &Path, task: &str, input: &Path, options: &[&str]) -> Value {
        let mut command = self.command(config);
        command.args(["predict", "--task", task, "--input"]).arg(input).args(options);
        answers(&mut command, &self.folder.join("python.json"))
    }

    fn run(&self, config: &Path, arguments: &[&str]) -> Output {
        self.command(config).args(arguments).output().expect("it runs")
    }

    /// One line on standard error, no traceback, and this exit code.
    fn failure(&self, config: &Path, arguments: &[&str], code: i32) -> String {
        let output = self.run(config, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", told(&output));
        let message = String::from_utf8(output.stderr).expect("text");
        assert_eq!(message.lines().count(), 1, "{arguments:?}: {message}");
        assert!(message.starts_with("error: "), "{message}");
        message
    }
}

/// Rows that reach both bounds, are negative, and lie halfway between two encoded values.
fn awkward_rows(path: &Path) -> PathBuf {
    // Twelve fractional bits and a scale of 2 leave 2048 steps to 1.
    let rows = Array2::from_shape_fn((5, 64), |(row, feature)| {
        let halves = ((row * 64 + feature) * 37 % 9215) as f64 - 3071.0;
        (halves / 4096.0).clamp(-0.75, 1.5)
    });
    assert!(rows.iter().any(|&value| value == -0.749_755_859_375), "a negative half is among them");
    ndarray_npy::write_npy(path, &rows).expect("rows are written");
    path.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn python_and_rust_make_the_same_requests_and_get_the_same_answers() {
    let world = World::start().await;
    let Some(client) = Client::new("python_and_rust_make_the_same_requests_and_get_the_same_answers", &world)
    else {
        return;
    };
    let alice = world.member(Role::Client, "alice");
    let awkward = awkward_rows(&world.folder().join("awkward.npy"));
    for task in TASK_NAMES {
        let options = ["--rows", "0..10", "--batch", "4", "--repeat-key", "rust.key"];
        let ours = world.predict(&alice, task, &example_rows(), &options);
        assert_eq!((replayed(&ours), world.spent(task).await), (0, price(10)));
        let theirs = client.predict(&alice, task, &example_rows(), &options);
        assert_eq!(released(&theirs), released(&ours), "{task}");
        assert_eq!((replayed(&theirs), world.spent(task).await), (3, price(10)), "{task}");

        // The other way round, with a key that Python has made.
        let options = ["--rows", "10..20", "--repeat-key", "python.key"];
        let theirs = client.predict(&alice, task, &example_rows(), &options);
        assert_eq!((replayed(&theirs), world.spent(task).await), (0, price(20)), "{task}");
        assert_eq!(theirs["histograms"].is_array(), task == "counts");
        let ours = world.predict(&alice, task, &example_rows(), &options);
        assert_eq!(released(&ours), released(&theirs), "{task}");
        assert_eq!((replayed(&ours), world.spent(task).await), (1, price(20)), "{task}");
    }
    // Equal ids and no conflict of contents: every value is encoded alike.
    let options = ["--repeat-key", "rust.key"];
    let ours = world.predict(&alice, "counts", &awkward, &options);
    let theirs = client.predict(&alice, "counts", &awkward, &options);
    assert_eq!((released(&theirs), replayed(&theirs)), (released(&ours), 1));

    // A confident answer costs its test for every row and the answer where there is one, and both clients
    // compute the charge themselves. The task is in three votes of one owner.
    let options = ["--rows", "0..20", "--batch", "7", "--repeat-key", "sure.key"];
    let theirs = client.predict(&alice, CONFIDENT_TASK, &example_rows(), &options);
    let ours = world.predict(&alice, CONFIDENT_TASK, &example_rows(), &options);
    assert_eq!((released(&ours), replayed(&ours)), (released(&theirs), 3));
    let labels = theirs["labels"].as_array().expect("labels");
    let answered = labels.iter().filter(|label| label.is_number()).count() as u64;
    let mechanism = Mechanism::DiscreteGaussian { sigma: "2".parse().expect("a number") };
    let test = mechanism.cost(Sensitivity::of_largest_count(3), 1).expect("an allowed mechanism");
    let answer = mechanism.cost(Sensitivity::of_votes(3), 10).expect("an allowed mechanism");
    let due = 20 * test.units() + answered * answer.units();
    assert_eq!(world.spent(CONFIDENT_TASK).await.units(), due, "{answered} of 20 rows");
    // Negative control: with another price of the test Python refuses the tasks before it asks.
    client.replace(
        "prices.py",
        "task.threshold.mechanism, votes**2, 1)",
        "task.threshold.mechanism, votes**2, 2)",
    );
    let rows = example_rows();
    let rows = rows.to_str().expect("text");
    let predict = ["predict", "--task", CONFIDENT_TASK, "--input", rows, "--rows", "0..1"];
    let message = client.failure(&alice, &predict, 3);
    assert!(message.contains("`sure` has another price"), "{message}");
    // And with the check of tasks gone it refuses the answer, which was charged.
    client.replace("concilium_client.py", "if sum(prices.row_prices(task)) !=", "if False and sum(()) !=");
    let message = client.failure(&alice, &predict, 3);
    assert!(message.contains("about another request"), "{message}");
    client.replace(
        "prices.py",
        "task.threshold.mechanism, votes**2, 2)",
        "task.threshold.mechanism, votes**2, 1)",
    );

    // Means are the same numbers in both.
    let options = ["--rows", "0..3", "--repeat-key", "means.key"];
    let theirs = client.predict(&alice, MEANS_TASK, &example_rows(), &options);
    let ours = world.predict(&alice, MEANS_TASK, &example_rows(), &options);
    assert_eq!(replayed(&ours), 1);
    let means = |answers: &Value| -> Vec<Vec<f64>> {
        serde_json::from_value(answers["mean_probabilities"].clone()).expect("a list for each row")
    };
    for (theirs, ours) in means(&theirs).concat().iter().zip(means(&ours).concat()) {
        assert!((theirs - ours).abs() < 1e-12, "{theirs} {ours}");
    }

    // Without a key every request is new.
    let before = world.spent("digits").await;
    for _ in 0..2 {
        let fresh = client.predict(&alice, "digits", &example_rows(), &["--rows", "0..1"]);
        assert_eq!(replayed(&fresh), 0);
    }
    assert_eq!(Some(world.spent("digits").await), before.checked_add(price(2)));
}

/// Needs no Python: the example's table of what may be repeated is the servers'.
#[test]
fn python_repeats_what_may_be_repeated() {
    let text = fs::read_to_string(example().join("servers.py")).expect("the example is there");
    let names = |begin: &str, end: &str, prefix: &str| -> BTreeSet<String> {
        let (_, rest) = text.split_once(begin).expect("the table is there");
        let (table, _) = rest.split_once(end).expect("the table ends");
        let separators = |character: char| character == ',' || character == '"' || character.is_whitespace();
        let words = table.split(separators).filter(|word| !word.is_empty());
        words.map(|word| word.trim_start_matches(prefix).replace('_', "").to_lowercase()).collect()
    };
    let repeated = TABLE.iter().filter(|(.., retry)| *retry != Retry::Never);
    let repeated = repeated.map(|(reason, ..)| reason.replace('_', "").to_lowercase());
    assert_eq!(names("RETRYABLE = {", "}", ""), repeated.collect());
    let lost = TRANSPORT_CODES.map(|code| format!("{code:?}").to_lowercase());
    assert_eq!(names("LOST = {", "}", "grpc.StatusCode."), BTreeSet::from(lost));
}

#[tokio::test(flavor = "multi_thread")]
async fn python_sees_tasks_services_and_reasons() {
    let mut world = World::start().await;
    let Some(client) = Client::new("python_sees_tasks_services_and_reasons", &world) else { return };
    let alice = world.member(Role::Client, "alice");

    let output = client.run(&alice, &["tasks"]);
    let text = told(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("digits: epoch 1, input [64], 10 classes, releases label, 3 models"), "{text}");
    assert!(text.contains("counts: epoch 4, input [8, 8], 10 classes, releases histogram"), "{text}");

    let output = client.run(&alice, &["services"]);
    let text = told(&output);
    assert!(output.status.success(), "{text}");
    for service in ["Budget", "ModelStore", "Operations", "Prediction"] {
        assert_eq!(text.matches(&format!("concilium.v1.{service}")).count(), 3, "{service}: {text}");
    }
    assert_eq!(text.matches("SERVING").count(), 3, "{text}");
    assert!(!text.contains("NOT_SERVING"), "{text}");

    let rows = example_rows();
    let rows = rows.to_str().expect("text");
    let predict = |task: &'static str| ["predict", "--task", task, "--input", rows, "--rows", "0..1"];
    // A server's refusal: the reason, and that repeating does not help.
    let owner = world.member(Role::Owner, "ward-0");
    let message = client.failure(&owner, &predict("digits"), 3);
    for needle in ["ROLE_NOT_ALLOWED", "owner `ward-0`", "not to be repeated"] {
        assert!(message.contains(needle), "{needle}: {message}");
    }
    let message = client.failure(&alice, &predict("letters"), 2);
    assert!(message.contains("letters") && message.contains("digits"), "{message}");
    // An input that does not fit is refused before anything is sent.
    let path = world.folder().join("bad.npy");
    ndarray_npy::write_npy(&path, &Array2::from_elem((2, 64), 1.25)).expect("rows are written");
    let bad = ["predict", "--task", "digits", "--input", path.to_str().expect("text")];
    let message = client.failure(&alice, &bad, 2);
    assert!(message.contains("row 0: feature 0 is 1.25") && message.contains("0.0 to 1.0"), "{message}");
    assert_eq!(world.spent("digits").await, price(0));

    // A certificate of another authority, and another authority for the servers' certificates.
    let other = world.folder().join("other");
    let authority = Authority::create().expect("an authority");
    authority.save(&other).expect("files are written");
    let identity = Identity::new(Role::Client, "alice").expect("a name");
    let foreign = authority.issue(&identity, &[], 1).expect("a certificate").save(&other).expect("files");
    let good = world.cluster.member(Role::Client, "alice").expect("a certificate is issued");
    let mut wrong_ca = good.clone();
    wrong_ca.tls.ca = foreign.ca.clone();
    let mut wrong_certificate = good;
    wrong_certificate.tls.certificate = foreign.certificate;
    wrong_certificate.tls.key = foreign.key;
    let config = world.write_config("wrong-ca.toml", &wrong_ca);
    let message = client.failure(&config, &["tasks"], 3);
    assert!(message.contains("TLS") && message.contains("`ca`"), "{message}");
    let config = world.write_config("wrong-certificate.toml", &wrong_certificate);
    let output = client.run(&config, &["tasks"]);
    let text = told(&output);
    assert!(
        !output.status.success() && text.contains("certificate") && !text.contains("Traceback"),
        "{text}"
    );

    // A server that is down: the call may be repeated, and with it up again it succeeds.
    world.cluster.kill_server(2);
    let message = client.failure(&alice, &["tasks"], 4);
    assert!(message.contains("server 2 at") && message.contains("may be repeated"), "{message}");
}
