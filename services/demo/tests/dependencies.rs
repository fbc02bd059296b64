//! Which crate may depend on which: the direction that keeps cryptography free of sockets, and every
//! layer testable without those above it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// The libraries, lowest first; each may depend on those before it. Services may depend on anything.
const LIBRARIES: [&str; 9] =
    ["ring", "mpc", "network", "inference", "privacy", "audit", "postgres", "rpc", "client"];

/// What a library must not reach, directly or through others: an asynchronous runtime and gRPC below
/// `rpc`, and a store below `privacy`.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    ("ring", &["tokio", "tonic", "hyper", "redb", "rustls"]),
    ("mpc", &["tokio", "tonic", "hyper", "redb", "rustls"]),
    ("network", &["tokio", "tonic", "hyper", "redb", "rustls"]),
    ("inference", &["tokio", "tonic", "hyper", "redb", "rustls"]),
    ("privacy", &["tokio", "tonic", "hyper", "rustls"]),
    ("audit", &["tokio", "tonic", "hyper", "rustls"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> Table {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn table<'a>(parent: &'a Table, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    parent.get(key).and_then(Value::as_table).into_iter().flatten()
}

/// One crate of the workspace.
struct Member {
    /// Its folder, for instance `crates/mpc`.
    folder: String,
    /// Names of all packages that it depends on, by kind of dependency.
    dependencies: BTreeMap<&'static str, BTreeSet<String>>,
}

/// The workspace's crates by package name.
fn members() -> BTreeMap<String, Member> {
    let workspace = read(&root().join("Cargo.toml"));
    let folders = workspace["workspace"]["members"].as_array().expect("a list of members").iter();
    folders
        .map(|folder| {
            let folder = folder.as_str().expect("a path").to_owned();
            let manifest = read(&root().join(&folder).join("Cargo.toml"));
            let name = manifest["package"]["name"].as_str().expect("a package name").to_owned();
            let kinds = ["dependencies", "build-dependencies", "dev-dependencies"];
            let dependencies = kinds.map(|kind| {
                let everywhere = table(&manifest, kind);
                let targets = table(&manifest, "target").filter_map(|(_, target)| target.as_table());
                let names = everywhere.chain(targets.flat_map(|target| table(target, kind)));
                (kind, names.map(|(name, _)| name.clone()).collect())
            });
            (name, Member { folder, dependencies: dependencies.into() })
        })
        .collect()
}

/// Position of a library in [`LIBRARIES`]; services come after all of them.
fn level(folder: &str) -> usize {
    match folder.strip_prefix("crates/") {
        Some(name) => LIBRARIES.iter().position(|library| *library == name).unwrap_or_else(|| {
            panic!("{folder} has no place in the order of libraries: add it to LIBRARIES")
        }),
        None => LIBRARIES.len(),
    }
}

#[test]
fn crates_depend_on_lower_ones_only() {
    let members = members();
    assert!(members.len() > LIBRARIES.len(), "the workspace has {} members", members.len());
    for library in LIBRARIES {
        let folder = format!("crates/{library}");
        assert!(members.values().any(|member| member.folder == folder), "{folder} is gone");
    }
    for (name, member) in &members {
        for (kind, dependencies) in &member.dependencies {
            for dependency in dependencies {
                let Some(other) = members.get(dependency) else { continue };
                // Tests of a crate may turn on its own features.
                if dependency == name && *kind == "dev-dependencies" {
                    continue;
                }
                let service = level(&member.folder) == LIBRARIES.len();
                assert!(
                    service || level(&other.folder) < level(&member.folder),
                    "{} must not have {} among its {kind}: it is not below it",
                    member.folder,
                    other.folder
                );
            }
        }
    }
}

/// All packages that can be reached from `start` by normal dependencies. The lock file lists each
/// external package's dependencies whatever features are on, so this is rather too many than too few.
fn reachable(start: &str, members: &BTreeMap<String, Member>) -> BTreeMap<String, String> {
    let lock = read(&root().join("Cargo.lock"));
    let mut locked: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().expect("a list of packages") {
        let name = package["name"].as_str().expect("a package name");
        let dependencies = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        // An entry is a name, and a version where there are several.
        let names = dependencies.filter_map(|entry| entry.as_str()?.split(' ').next());
        locked.entry(name).or_default().extend(names);
    }
    let mut found = BTreeMap::new();
    let mut open = vec![(start.to_owned(), start.to_owned())];
    while let Some((name, path)) = open.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let next: Vec<String> = match members.get(&name) {
            // The lock file mixes in the dependencies of a member's tests.
            Some(member) => member.dependencies["dependencies"].iter().cloned().collect(),
            None => locked.get(name.as_str()).into_iter().flatten().map(|name| (*name).to_owned()).collect(),
        };
        open.extend(next.into_iter().map(|next| (next.clone(), format!("{path} -> {next}"))));
        found.insert(name, path);
    }
    found
}

#[test]
fn lower_crates_reach_no_runtime_and_no_store() {
    let members = members();
    for (library, forbidden) in FORBIDDEN {
        let folder = format!("crates/{library}");
        let (name, _) =
            members.iter().find(|(_, member)| member.folder == folder).expect("all libraries are there");
        let found = reachable(name, &members);
        assert!(found.contains_key("thiserror"), "{name}: the search has found next to nothing: {found:?}");
        for package in forbidden {
            assert!(!found.contains_key(*package), "{}", found[*package]);
        }
    }
    // The search does find what is there.
    assert!(reachable("concilium-rpc", &members).contains_key("tokio"));
    assert!(reachable("concilium-privacy", &members).contains_key("redb"));
}

#[test]
fn versions_are_in_one_place() {
    for Member { folder, .. } in members().values() {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for (name, value) in table(&manifest, kind) {
                let shared = value.get("workspace").and_then(Value::as_bool).unwrap_or(false);
                let own = value.get("path").and_then(Value::as_str) == Some(".");
                assert!(shared || own, "{folder}: `{name}` must say `workspace = true`");
            }
        }
    }
}
