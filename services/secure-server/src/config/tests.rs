use std::collections::BTreeSet;
use std::path::Path;

use concilium_mpc::PartyIndex;

use super::key::Given;
use super::keys::{SERVER_KEYS, TASK_FILE_KEYS, TASK_KEYS};
use super::*;

const SERVER: &str = r#"listen = "127.0.0.1:7400"
peer_listen = "127.0.0.1:7410"
peers = ["a:7410", "b:7410", "c:7410"]
data_directory = "data"
tasks_file = "tasks.toml"

[tls]
ca = "ca.pem"
certificate = "server-0.pem"
key = "/keys/server-0.key"
"#;

const TASK: &str = r#"[tasks.digits]
epoch = 1
input_shape = [4]
input_minimum = 0
input_maximum = [1, 1, 1, 2.5]
fractional_bits = 12
classes = 3
release = "label"
sigma = 2.5
budget_rho = 1.5
delta = 1e-5
"#;

fn load(text: &str, variables: &[(&str, &str)]) -> Result<ServerConfig, ConfigError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("server.toml");
    std::fs::write(&path, text).expect("the folder is writable");
    let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    ServerConfig::load_with(&path, variables)
}

/// What is said of a server's file, one line for each thing that is wrong.
fn refusal(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let error = load(text, variables).expect_err("a mistake");
    error.problems().iter().map(ToString::to_string).collect()
}

fn task_refusal(text: &str) -> Vec<String> {
    let error = TaskFile::parse(text, Path::new("etc/tasks.toml")).expect_err("a mistake");
    error.problems().iter().map(ToString::to_string).collect()
}

/// A message of one line that holds all of `parts`.
#[track_caller]
fn assert_says(messages: &[String], parts: &[&str]) {
    let says = |message: &String| parts.iter().all(|part| message.contains(part)) && !message.contains('\n');
    assert!(messages.iter().any(says), "no message with {parts:?} in {messages:#?}");
}

#[test]
fn files_have_defaults_and_paths_start_at_the_file() {
    let config = load(SERVER, &[]).expect("the sample is good");
    assert_eq!(config.limits.batch_rows, 256);
    assert_eq!(config.web.address(PartyIndex::ALL[2]).to_string(), "127.0.0.1:7482");
    assert_eq!(config.observability.log_format, LogFormat::Auto);
    assert!(config.identities.owners.is_empty(), "nobody is served unless the file says so");
    assert!(config.tasks_file.ends_with("tasks.toml") && config.tasks_file.is_absolute());
    assert_eq!(config.tls.key, Path::new("/keys/server-0.key"));
}

#[test]
fn variables_win_over_the_file() {
    let variables = [
        ("CONCILIUM_LIMITS__BATCH_ROWS", "64"),
        ("CONCILIUM_IDENTITIES__CLIENTS", "alice, bob"),
        ("CONCILIUM_LISTEN", "0.0.0.0:9000"),
        ("CONCILIUM_WEB__ENABLED", "false"),
        ("CONCILIUM_PEERS", "x:1,y:2,z:3"),
        // A path may look like a number.
        ("CONCILIUM_DATA_DIRECTORY", "0007"),
        ("HOME", "elsewhere"),
    ];
    let config = load(SERVER, &variables).expect("the variables are good");
    assert_eq!(config.limits.batch_rows, 64);
    assert_eq!(config.identities.clients, ["alice", "bob"]);
    assert_eq!(config.listen.port(), 9000);
    assert!(!config.web.enabled);
    assert_eq!(config.peers, ["x:1", "y:2", "z:3"]);
    assert!(config.data_directory.ends_with("0007"));
}

/// One file with every kind of mistake: all are found in one go, each with its line.
#[test]
fn everything_wrong_with_a_server_file_is_said_at_once() {
    let text = r#"lisen = "127.0.0.1:7400"
peer_listen = "localhost:7410"
peers = ["a:7410", "b", "c:7410"]
data_directory = ""
batch_rows = 3
[tls]
ca = 7
certificate = "server-0.pem"
[limits]
batch_rows = 0
request_timeout_ms = "soon"
pear_timeout_ms = 5
[identities]
owners = ["*"]
clients = ["Alice"]
operators = ["*"]
[web]
enabled = "yes"
[observability]
log_filter = "info,concilium_server=loud"
log_format = "xml"
otlp_endpoint = "collector"
[wab]
listen = 3
"#;
    let messages = refusal(
        text,
        &[("CONCILIUM_LIMITS__BATCHWAIT_MS", "3"), ("CONCILIUM_LIMITS__NOISE_ROWS_READY", "many")],
    );
    for parts in [
        &["server.toml:1: ", "`lisen`", "unknown", "did you mean `listen`?"][..],
        &["`listen`", "missing", "127.0.0.1:7400"],
        &["server.toml:2: ", "`peer_listen` = \"localhost:7410\"", "no IP address"],
        &["server.toml:3: ", "`peers`", "`b`", "host:port"],
        &["server.toml:4: ", "`data_directory` = \"\"", "empty"],
        &["server.toml:5: ", "`batch_rows`", "did you mean `limits.batch_rows`?"],
        &["`tasks_file`", "missing", "tasks.toml"],
        &["server.toml:7: ", "`tls.ca` = 7", "whole number", "path"],
        &["`tls.key`", "missing", "[tls]"],
        &["server.toml:10: ", "`limits.batch_rows` = 0", "1 to 4096"],
        &[
            "server.toml:11: ",
            "`limits.request_timeout_ms` = \"soon\"",
            "a text",
            "milliseconds, 100 to 3600000",
        ],
        &["server.toml:12: ", "`limits.pear_timeout_ms`", "did you mean `limits.peer_timeout_ms`?"],
        &["server.toml:15: ", "`identities.clients`", "`Alice`", "a-z"],
        &["server.toml:16: ", "`identities.operators`", "one by one"],
        &["server.toml:18: ", "`web.enabled` = \"yes\"", "true or false"],
        &["server.toml:20: ", "`observability.log_filter`", "loud"],
        &["server.toml:21: ", "`observability.log_format` = \"xml\"", "auto or text or json"],
        &["server.toml:22: ", "`observability.otlp_endpoint` = \"collector\"", "http://host:port"],
        &["server.toml:23: ", "`wab`", "unknown"],
        &["CONCILIUM_LIMITS__BATCHWAIT_MS", "did you mean `limits.batch_wait_ms`?"],
        &["CONCILIUM_LIMITS__NOISE_ROWS_READY", "`limits.noise_rows_ready` = \"many\"", "1 to 1000000"],
    ] {
        assert_says(&messages, parts);
    }
    assert_eq!(messages.len(), 21, "{messages:#?}");
}

#[test]
fn keys_of_a_server_must_fit_each_other() {
    for (from, to, parts) in [
        ("127.0.0.1:7410", "0.0.0.0:7400", &["`peer_listen`", "`listen`", "port of its own"][..]),
        ("b:7410", "a:7410", &["`peers`", "a:7410 twice"]),
        (", \"c:7410\"", "", &["`peers`", "2 addresses", "0, 1 and 2"]),
        ("7410\"\npeers", "0\"\npeers", &["`peer_listen`", "port 0"]),
        (
            "[tls]",
            "[observability]\notlp_endpoint = \"https://c:4317\"\n[tls]",
            &["`observability.otlp_endpoint`", "http://host:port"],
        ),
        ("[tls]", "[web]\nlisten = \"127.0.0.1:7400\"\n[tls]", &["`web.listen`", "`listen`", "own"]),
    ] {
        let messages = refusal(&SERVER.replace(from, to), &[]);
        assert_says(&messages, parts);
        assert_eq!(messages.len(), 1, "{messages:#?}");
    }
}

#[test]
fn files_that_are_no_toml_are_named_with_the_line() {
    assert_says(&refusal(&SERVER.replace("[tls]", "[tls"), &[]), &["server.toml:7: ", "no TOML"]);
    assert_says(&refusal(&format!("{SERVER}key = 1\n"), &[]), &["server.toml:11: ", "no TOML"]);
    let nowhere = ServerConfig::load(Path::new("/nowhere/server.toml")).expect_err("no file").to_string();
    assert!(nowhere.contains("/nowhere/server.toml") && nowhere.contains("can't be read"), "{nowhere}");
}

#[test]
fn tasks_are_read_exactly() {
    let file = TaskFile::parse(TASK, Path::new("tasks.toml")).expect("the task is good");
    let task = &file.tasks["digits"];
    assert_eq!(task.sigma, Some("2.5".parse().expect("a number")));
    assert_eq!(task.budget_rho.units(), 1_500_000_000);
    assert_eq!(task.delta, "0.00001".parse().expect("a number"));
    assert_eq!((task.request_rows, task.input_minimum.values()), (128, vec![0.0]));
}

#[test]
fn a_ring_is_one_that_there_is_and_fits_the_task() {
    let with = |from: &str, to: &str| TASK.replace(from, to);
    let file =
        TaskFile::parse(&with("fractional_bits", "ring_bits = 32\nfractional_bits"), Path::new("t.toml"));
    assert_eq!(file.expect("a good task").tasks["digits"].ring_bits.bits(), 32);
    assert_eq!(
        TaskFile::parse(TASK, Path::new("t.toml")).expect("good").tasks["digits"].ring_bits.bits(),
        64
    );
    for (text, parts) in [
        (
            with("fractional_bits", "ring_bits = 48\nfractional_bits"),
            &["ring_bits` = 48", "use 64 or 32"][..],
        ),
        (with("fractional_bits", "ring_bits = \"32\"\nfractional_bits"), &["ring_bits`", "is a text"]),
        (
            with("fractional_bits = 12", "ring_bits = 32\nfractional_bits = 15"),
            &["fractional_bits` = 15", "does not fit a ring of 32 bits", "use 6 to 14"],
        ),
        (with("fractional_bits = 12", "fractional_bits = 7"), &["fractional_bits` = 7", "use 8 to 20"]),
        (
            with("fractional_bits", "ring_bits = 32\nfractional_bits")
                .replace("\"label\"", "\"mean_probability\""),
            &["ring_bits` = 32", "no room for the probabilities", "use 64"],
        ),
    ] {
        assert_says(&task_refusal(&text), parts);
    }
}

#[test]
fn everything_wrong_with_a_task_file_is_said_at_once() {
    let other = TASK
        .replace("digits", "votes")
        .replace("sigma = 2.5", "sigma = 2.5\nscale = 3\nclass_names = [\"a\"]")
        .replace("[1, 1, 1, 2.5]", "-1");
    let bad = r#"[tasks.Bad]
epoch = -1
input_shape = []
input_minimum = nan
input_maximum = "high"
fractional_bits = 40
classes = 1
relaese = "label"
sigma = 0.1
budget_rho = -1
delta = 1e-30
request_rows = 5000
"#;
    let messages = task_refusal(&format!("top = 1\n{other}{bad}[tasks.none]\n"));
    for parts in [
        &["etc/tasks.toml:1: ", "`top`", "unknown"][..],
        &["`tasks.votes.input_shape`", "minimum 0 above maximum -1"],
        &["`tasks.votes.class_names`", "1 names for 3 classes"],
        &["`tasks.votes.sigma` = 2.5", "contradicts `scale`"],
        &["`tasks.Bad`", "no name of a task"],
        &["`tasks.Bad.epoch` = -1", "0 or more"],
        &["`tasks.Bad.input_shape` = []", "[64]"],
        &["`tasks.Bad.input_minimum`", "number"],
        &["`tasks.Bad.input_maximum` = \"high\"", "number"],
        &["`tasks.Bad.fractional_bits` = 40", "6 to 20"],
        &["`tasks.Bad.classes` = 1", "2 to 64"],
        &["`tasks.Bad.relaese`", "did you mean `tasks.Bad.release`?"],
        &["`tasks.Bad.release`", "missing"],
        &["`tasks.Bad.budget_rho` = -1", "unsigned decimal"],
        &["`tasks.Bad.delta`", "18 decimal places"],
        &["`tasks.Bad.request_rows` = 5000", "1 to 4096"],
        &["`tasks.none.epoch`", "missing"],
        &["`tasks.none.sigma`", "so is `scale`"],
    ] {
        assert_says(&messages, parts);
    }
}

#[test]
fn keys_of_a_task_must_fit_each_other() {
    for (from, to, parts) in [
        ("sigma = 2.5", "sigma = 0.5", &["`tasks.digits.sigma` = 0.5", "floor 2"][..]),
        ("sigma = 2.5", "scale = 0.5", &["`tasks.digits.scale` = 0.5", "floor"]),
        ("delta = 1e-5", "delta = 1", &["`tasks.digits.delta` = 1", "between 0 and 1"]),
        ("1.5", "0.001", &["`tasks.digits.budget_rho` = 0.001", "pay for one row", "raise"]),
        (
            "delta",
            "budget_per_client_rho = 0.01\ndelta",
            &["`tasks.digits.budget_per_client_rho` = 0.01", "pay for one row"],
        ),
        ("[1, 1, 1, 2.5]", "[1, 1]", &["`tasks.digits.input_shape`", "2 values for 4 features"]),
        (
            "delta",
            "budget_per_client_rho = 1.6\ndelta",
            &["budget_per_client_rho` = 1.6", "is above", "rho 1.5"],
        ),
        (
            "delta",
            "budget_window_rho = 1.6\nbudget_window_hours = 1\ndelta",
            &["budget_window_rho` = 1.6", "is above", "rho 1.5"],
        ),
        (
            "delta",
            "budget_window_rho = 0.1\nbudget_window_hours = 1\ndelta",
            &["budget_window_rho` = 0.1", "costs rho 0.160000001 = 1^2 / 2.5^2"],
        ),
        ("delta", "budget_window_rho = 0.5\ndelta", &["budget_window_hours`", "is missing"]),
        ("delta", "budget_window_hours = 5\ndelta", &["budget_window_rho`", "is missing"]),
        ("delta", "epoch_basis = \"retrained\"\ndelta", &["epoch_attested_by`", "is missing", "epoch_basis"]),
        ("delta", "epoch_attested_by = \"Ann\"\ndelta", &["epoch_basis`", "is missing", "give both"]),
        (
            "delta",
            "epoch_basis = \"new\"\nepoch_attested_by = \"Ann\"\ndelta",
            &["epoch_basis` = \"new\"", "retrained or carried_over"],
        ),
        (
            "delta",
            "epoch_basis = \"retrained\"\nepoch_attested_by = \"a\\nb\"\ndelta",
            &["epoch_attested_by` = ", "no line of text", "200 bytes"],
        ),
        (
            "delta",
            "epoch_basis = \"retrained\"\nepoch_attested_by = \" \"\ndelta",
            &["epoch_attested_by` = ", "is empty"],
        ),
        ("delta", "models_per_owner = 0\ndelta", &["models_per_owner` = 0", "1 to 10000"]),
        (
            "delta",
            "models_per_owner = 10\nprivacy_unit = \"owner\"\ndelta",
            &["budget_rho` = 1.5", "costs rho 16.0000000", "10^2 / 2.5^2"],
        ),
        ("delta", "privacy_unit = \"person\"\ndelta", &["privacy_unit` = \"person\"", "record or owner"]),
        ("\"label\"", "\"confident_label\"", &["confidence_votes`", "no threshold"]),
        (
            "\"label\"",
            "\"confident_label\"\nconfidence_votes = 3",
            &["confidence_sigma`", "is missing", "confidence_scale"],
        ),
        (
            "\"label\"",
            "\"confident_label\"\nconfidence_votes = 3\nconfidence_sigma = 1.5",
            &["confidence_sigma` = 1.5", "floor 2"],
        ),
        (
            "\"label\"",
            "\"label\"\nconfidence_votes = 3\nconfidence_sigma = 5",
            &["confidence_votes` = 3", "has no threshold"],
        ),
        (
            "\"label\"\nsigma = 2.5",
            "\"mean_probability\"\nscale = 2.5",
            &["tasks.digits.scale` = 2.5", "no discrete Laplace noise", "give sigma"],
        ),
        ("[4]", "[65536]\nrequest_rows = 4000", &["`tasks.digits.request_rows` = 4000", "at most 128"]),
    ] {
        let text = TASK.replace(from, to);
        let text = if from == "[4]" { text.replace("[1, 1, 1, 2.5]", "1") } else { text };
        let messages = task_refusal(&text);
        assert_says(&messages, parts);
        assert_eq!(messages.len(), 1, "{messages:#?}");
    }
    assert_says(&task_refusal(""), &["`tasks`", "at least one task"]);
    assert_says(&task_refusal("tasks = 3"), &["`tasks` = 3", "[tasks.NAME]"]);
    assert_says(&task_refusal("[tasks]\na = 3"), &["`tasks.a` = 3", "[tasks.a]"]);
}

/// Keys below a table, with their sections.
fn names(table: &toml::Table, prefix: &str, names: &mut BTreeSet<String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => self::names(inner, &format!("{prefix}{key}."), names),
            _ => {
                names.insert(format!("{prefix}{key}"));
            }
        }
    }
}

/// The description of the keys is what the program reads: it has the same keys, and every default and
/// example is good.
#[test]
fn the_description_and_the_program_have_the_same_keys() {
    for key in SERVER_KEYS.iter().chain(TASK_FILE_KEYS).chain(TASK_KEYS) {
        let (Given::Required(text) | Given::Default(text) | Given::Optional { example: text, .. }) =
            key.given;
        let parsed: toml::Table = format!("value = {text}").parse().expect("the sample is TOML");
        assert_eq!(parsed["value"], key.sample());
        assert_eq!(key.kind.check(&key.sample()), Ok(()), "{}", key.name);
    }
    let folder = Path::new("server.toml");
    let mut settings = source::Settings::empty(folder, "", SERVER_KEYS);
    let samples = SERVER_KEYS.iter().map(|key| {
        let text = match key.sample() {
            toml::Value::Array(items) => {
                items.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
            }
            toml::Value::String(text) => text,
            other => other.to_string(),
        };
        (key.variable(), text)
    });
    settings.override_with(samples);
    settings.complete();
    assert!(settings.problems.is_empty(), "{:?}", settings.problems);
    let config: ServerConfig = settings.build().expect("every described key is read");
    let mut found = BTreeSet::new();
    names(&toml::Table::try_from(config).expect("TOML"), "", &mut found);
    assert_eq!(found, SERVER_KEYS.iter().map(|key| key.name.to_owned()).collect());

    let table: toml::Table = TASK_KEYS.iter().map(|key| (key.name.to_owned(), key.sample())).collect();
    let task: TaskSection = table.try_into().expect("every described key is read");
    let mut found = BTreeSet::new();
    names(&toml::Table::try_from(task).expect("TOML"), "", &mut found);
    assert_eq!(found, TASK_KEYS.iter().map(|key| key.name.to_owned()).collect());
}

/// `docs/configuration.md` is generated. To renew it, run this test with CONCILIUM_WRITE_DOCS=1.
#[test]
fn the_documented_keys_are_generated() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let text = reference::markdown();
    if std::env::var_os("CONCILIUM_WRITE_DOCS").is_some() {
        std::fs::write(path, &text).expect("docs are writable");
    }
    let found = std::fs::read_to_string(path).expect("docs/configuration.md is there");
    assert_eq!(found, text, "renew it with CONCILIUM_WRITE_DOCS=1");
}
