//! The sample configurations, read by the programs' own loaders.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use concilium_client_library::ConnectionConfig;
use concilium_network::limits::{MAXIMUM_FRACTIONAL_BITS, MINIMUM_FRACTIONAL_BITS};
use concilium_network::{InputDomain, import_file, quantise};
use concilium_privacy::{Mechanism, Release, Sensitivity};
use concilium_server::ServerConfig;
use concilium_server::config::TaskFile;
use concilium_server::config::key::{Given, Key};
use concilium_server::config::keys::{SERVER_KEYS, TASK_FILE_KEYS, TASK_KEYS};
use toml::{Table, Value};

/// Owners of the example that the sample task is for.
const OWNERS: u64 = 50;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace is there")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The sample files of a folder, without their ending.
fn samples(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(folder)).expect("the samples are there");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter_map(|name| Some(name.strip_suffix(".toml")?.to_owned())).collect()
}

/// The keys of a table with their sections, and their values.
fn keys(table: &Table, prefix: &str, found: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => keys(inner, &format!("{prefix}{key}."), found),
            value => {
                found.insert(format!("{prefix}{key}"), value.clone());
            }
        }
    }
}

fn keys_of(path: &Path) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    keys(&read(path).parse().expect("the sample is TOML"), "", &mut found);
    found
}

fn connection(path: &Path) -> ConnectionConfig {
    ConnectionConfig::parse(&read(path), path, []).expect("the sample is read")
}

#[test]
fn basic_samples_are_read_and_fit_each_other() {
    let folder = root().join("docs/samples");
    let expected = ["client", "operator", "owner", "server-0", "server-1", "server-2", "tasks"];
    assert_eq!(samples("docs/samples"), expected.map(str::to_owned).into());
    let mut servers = Vec::new();
    for server in 0..3 {
        let path = folder.join(format!("server-{server}.toml"));
        let config = ServerConfig::load_with(&path, HashMap::new()).expect("the sample is read");
        assert_eq!(config.listen.port(), 7400 + server);
        assert_eq!(config.peers[usize::from(server)], config.peer_listen.to_string());
        assert_eq!(config.tls.certificate, folder.join(format!("certificates/server-{server}.pem")));
        assert_eq!(config.tasks_file, folder.join("tasks.toml"));
        servers.push(config);
    }
    assert!(servers.iter().all(|config| config.peers == servers[0].peers));
    for role in ["owner", "client", "operator"] {
        let config = connection(&folder.join(format!("{role}.toml")));
        let listening: Vec<_> = servers.iter().map(|server| server.listen.to_string()).collect();
        assert_eq!(config.servers[..], listening[..]);
        assert!(config.tls.key.starts_with(folder.join("certificates")));
    }
}

#[test]
fn advanced_samples_are_read_and_hold_every_key() {
    let folder = root().join("docs/samples/advanced");
    let expected = ["client", "operator", "owner", "server", "tasks"];
    assert_eq!(samples("docs/samples/advanced"), expected.map(str::to_owned).into());

    let path = folder.join("server.toml");
    ServerConfig::load_with(&path, HashMap::new()).expect("the sample is read");
    let found = keys_of(&path);
    let named = |keys: &[Key]| keys.iter().map(|key| key.name.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), named(SERVER_KEYS));
    for key in SERVER_KEYS.iter().filter(|key| !key.name.starts_with("identities.")) {
        if let Given::Default(text) = key.given {
            let default: Table = format!("value = {text}").parse().expect("a default is TOML");
            assert_eq!(found[key.name], default["value"], "{} is not shown with its default", key.name);
        }
    }

    let path = folder.join("tasks.toml");
    let file = TaskFile::load(&path).expect("the sample is read");
    let mut found: BTreeSet<_> = keys_of(&path).into_keys().collect();
    found.retain(|key| !key.starts_with("tasks."));
    assert_eq!(found, named(TASK_FILE_KEYS));
    let found: BTreeSet<_> = keys_of(&path)
        .into_keys()
        .filter_map(|key| Some(key.strip_prefix("tasks.")?.split_once('.')?.1.to_owned()))
        .collect();
    assert_eq!(found, named(TASK_KEYS));
    assert!(file.tasks.values().any(|task| task.sigma.is_some()));
    assert!(file.tasks.values().any(|task| task.scale.is_some()));

    let basic = root().join("docs/samples");
    for role in ["owner", "client", "operator"] {
        let path = folder.join(format!("{role}.toml"));
        let found: BTreeSet<_> = keys_of(&path).into_keys().collect();
        let known = concilium_client_library::config::KEYS.map(str::to_owned).into();
        assert_eq!(found, known, "{role}");
        // The defaults are shown: the basic sample, which leaves them out, says the same.
        let (advanced, basic) = (connection(&path), connection(&basic.join(format!("{role}.toml"))));
        assert_eq!(advanced.connect_timeout_ms, basic.connect_timeout_ms);
        assert_eq!(advanced.request_timeout_ms, basic.request_timeout_ms);
    }
}

#[test]
fn the_sample_task_fits_all_example_owners() {
    let file = TaskFile::load(&root().join("docs/samples/tasks.toml")).expect("the sample is read");
    let task = &file.tasks["digits"];
    assert_eq!(task.release, Release::Label);
    assert!((MINIMUM_FRACTIONAL_BITS..=MAXIMUM_FRACTIONAL_BITS).contains(&task.fractional_bits));
    let mechanism = Mechanism::DiscreteGaussian { sigma: task.sigma.expect("the sample has a sigma") };
    let row = mechanism.cost(Sensitivity::OF_ONE_VOTE, task.classes).expect("an allowed mechanism");
    // What the comments beside it say.
    assert_eq!(row.to_string(), "0.040000001");
    assert_eq!(task.budget_rho.units() / row.units(), 30);

    let (low, high) = (task.input_minimum.values(), task.input_maximum.values());
    let domain = InputDomain::new(task.input_shape.clone(), low, high).expect("a sound domain");
    for owner in 0..OWNERS {
        let path = root().join(format!("examples/digits/owner_{owner:02}.onnx"));
        let network = import_file(&path).expect("the example is imported");
        assert_eq!(network.classes(), task.classes);
        quantise(&network, &domain, task.fractional_bits)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn configurations_of_the_containers_are_read() {
    let folder = root().join("docker");
    for server in 0..3 {
        let path = folder.join(format!("server-{server}.toml"));
        // As docker-compose.yml sets it.
        let peer_listen = format!("10.213.77.1{server}:7410");
        let variables = HashMap::from([("CONCILIUM_PEER_LISTEN".to_owned(), peer_listen.clone())]);
        let config = ServerConfig::load_with(&path, variables).expect("the configuration is read");
        assert_eq!(config.peer_listen.to_string(), peer_listen);
        assert_eq!(config.tasks_file, folder.join("tasks.toml"));
        assert_eq!(config.tls.key, folder.join(format!("certificates/server-{server}.key")));
    }
    TaskFile::load(&folder.join("tasks.toml")).expect("the tasks are read");
    for role in ["owner", "client", "operator"] {
        let config = connection(&folder.join(format!("{role}.toml")));
        assert_eq!(config.servers, [0, 1, 2].map(|server| format!("server-{server}:7400")));
    }
}
