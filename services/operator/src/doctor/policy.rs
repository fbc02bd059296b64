//! Compares the servers' tasks, key by key.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use concilium_rpc::v1::TaskPolicy;

use super::{
    finding::{Check, Report},
    server::Seen,
};

/// Canonical keys and values of each task, by its name.
type Policies = BTreeMap<String, BTreeMap<String, String>>;

/// The key under which the digest of a task is compared when its keys are not known.
const DIGEST: &str = "policy digest";

/// What one task file says, or what one server does.
struct Source {
    name: String,
    server: Option<u8>,
    policies: Policies,
}

/// Reads the task file that the servers are compared with.
pub(super) fn expected(path: Option<&Path>, report: &mut Report) -> Option<Vec<TaskPolicy>> {
    let path = path?;
    match concilium_server::task::policies(path) {
        Ok(policies) => {
            let names: Vec<_> = policies.iter().map(|policy| policy.name.clone()).collect();
            report.ok(Check::TaskFile, None, format!("{} holds {}", path.display(), names.join(", ")));
            Some(policies)
        }
        Err(error) => {
            report.fault(
                Check::TaskFile,
                None,
                error.to_string(),
                "correct the task file named with --tasks",
            );
            None
        }
    }
}

/// Adds how the tasks of the servers compare, and how they do with the file.
pub(super) fn compare(seen: &[Seen], expected: Option<&[TaskPolicy]>, report: &mut Report) {
    let by_digest = seen.iter().any(|seen| seen.status.is_none());
    let servers: Vec<_> = seen
        .iter()
        .map(|seen| Source {
            name: format!("server {}", seen.server),
            server: Some(seen.server),
            policies: policies_of(seen, by_digest),
        })
        .collect();
    if servers.len() > 1 {
        let differences = among(&servers, report);
        if differences == 0 {
            let tasks: Vec<_> = servers[0].policies.keys().cloned().collect();
            report.ok(
                Check::Policy,
                None,
                format!("{} servers agree on {}", servers.len(), tasks.join(", ")),
            );
        }
    }
    let Some(expected) = expected else { return };
    let file = expected.iter().map(|policy| {
        let keys = match by_digest {
            true => BTreeMap::from([(DIGEST.to_owned(), hex::encode(&policy.digest))]),
            false => policy.keys.clone().into_iter().collect(),
        };
        (policy.name.clone(), keys)
    });
    let file = Source { name: "the task file".to_owned(), server: None, policies: file.collect() };
    for server in &servers {
        if against(&file, server, report) == 0 {
            report.ok(Check::Policy, server.server, "has the tasks of the task file");
        }
    }
}

fn policies_of(seen: &Seen, by_digest: bool) -> Policies {
    let digest = |digest: &[u8]| BTreeMap::from([(DIGEST.to_owned(), hex::encode(digest))]);
    match &seen.status {
        Some(status) => status
            .tasks
            .iter()
            .map(|task| {
                let keys = match by_digest {
                    true => digest(&task.policy_digest),
                    false => task.policy_keys.clone().into_iter().collect(),
                };
                (task.task.clone(), keys)
            })
            .collect(),
        None => seen.tasks.iter().map(|task| (task.name.clone(), digest(&task.policy_digest))).collect(),
    }
}

/// Every task and key of any of the sources.
fn keys(sources: &[&Source]) -> BTreeSet<(String, String)> {
    let tasks = sources.iter().flat_map(|source| &source.policies);
    tasks.flat_map(|(task, keys)| keys.keys().map(|key| (task.clone(), key.clone()))).collect()
}

/// Tasks that not all sources have; their keys need no telling.
fn missing(sources: &[&Source]) -> BTreeSet<String> {
    let all: BTreeSet<_> = sources.iter().flat_map(|source| source.policies.keys().cloned()).collect();
    let everywhere = |task: &String| sources.iter().all(|source| source.policies.contains_key(task));
    all.into_iter().filter(|task| !everywhere(task)).collect()
}

/// Tells each difference between the servers and which of them is the odd one out.
fn among(servers: &[Source], report: &mut Report) -> usize {
    let sources: Vec<&Source> = servers.iter().collect();
    let missing = missing(&sources);
    for task in &missing {
        let has = |source: &&Source| source.policies.contains_key(task);
        let without = sources.iter().filter(|source| !has(source)).map(|source| source.name.as_str());
        let odd = odd_one_out(&sources, |source| has(&source).to_string());
        report.fault(
            Check::Policy,
            odd.and_then(|odd| odd.server),
            format!("task `{task}` is missing on {}", without.collect::<Vec<_>>().join(" and ")),
            "give all three servers the same task file and restart those that were changed",
        );
    }
    let mut differences = missing.len();
    for (task, key) in keys(&sources).into_iter().filter(|(task, _)| !missing.contains(task)) {
        let value = |source: &Source| {
            source.policies[&task].get(&key).cloned().unwrap_or_else(|| "absent".to_owned())
        };
        if sources.iter().all(|source| value(source) == value(sources[0])) {
            continue;
        }
        differences += 1;
        let values = sources.iter().map(|source| format!("{} has {}", source.name, value(source)));
        let values = values.collect::<Vec<_>>().join(", ");
        let odd = odd_one_out(&sources, value);
        let remedy = match odd {
            Some(odd) => format!(
                "{} is the odd one out: have its operator compare `tasks.{task}.{key}` in the task file with the \
                 others', and restart it",
                odd.name
            ),
            None => format!("agree on `tasks.{task}.{key}`, and restart the servers whose task file changes"),
        };
        report.fault(
            Check::Policy,
            odd.and_then(|odd| odd.server),
            format!("`tasks.{task}.{key}` differs: {values}"),
            remedy,
        );
    }
    differences
}

/// Tells each difference of a server from the file.
fn against(file: &Source, server: &Source, report: &mut Report) -> usize {
    let sources = [file, server];
    let missing = missing(&sources);
    for task in &missing {
        let found = match file.policies.contains_key(task) {
            true => format!("task `{task}` of the task file is missing on the server"),
            false => format!("the server has the task `{task}`, which is not in the task file"),
        };
        let remedy = "compare the file with the one that this server's `tasks_file` names";
        report.fault(Check::Policy, server.server, found, remedy);
    }
    let mut differences = missing.len();
    for (task, key) in keys(&sources).into_iter().filter(|(task, _)| !missing.contains(task)) {
        let value = |source: &Source| {
            source.policies[&task].get(&key).cloned().unwrap_or_else(|| "absent".to_owned())
        };
        let (here, there) = (value(file), value(server));
        if here != there {
            differences += 1;
            report.fault(
                Check::Policy,
                server.server,
                format!("`tasks.{task}.{key}` is {there} on the server and {here} in the task file"),
                "compare the file with the one that this server's `tasks_file` names; if the server has the old \
                 one, its operator must restart it",
            );
        }
    }
    differences
}

/// The one source of three whose value differs from that of the two others.
fn odd_one_out<'a>(sources: &[&'a Source], value: impl Fn(&Source) -> String) -> Option<&'a Source> {
    if sources.len() < 3 {
        return None;
    }
    let alone = |source: &&&Source| sources.iter().filter(|other| value(other) == value(source)).count() == 1;
    let mut odd = sources.iter().filter(alone);
    match (odd.next(), odd.next()) {
        (Some(odd), None) => Some(odd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use concilium_rpc::v1::{GetStatusResponse, Task, TaskStatus};

    use super::*;
    use crate::doctor::{Finding, Level};

    fn operator_sees(server: u8, tasks: &[(&str, &[(&str, &str)])]) -> Seen {
        let tasks = tasks.iter().map(|(name, keys)| TaskStatus {
            task: (*name).to_owned(),
            policy_keys: keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..TaskStatus::default()
        });
        let status = GetStatusResponse { tasks: tasks.collect(), ..GetStatusResponse::default() };
        Seen { server, status: Some(status), ..Seen::default() }
    }

    fn faults(seen: &[Seen], expected: Option<&[TaskPolicy]>) -> Vec<Finding> {
        let mut report = Report::default();
        compare(seen, expected, &mut report);
        report.findings().iter().filter(|finding| finding.level != Level::Ok).cloned().collect()
    }

    #[test]
    fn the_odd_one_out_is_named_with_key_and_values() {
        let same = |server| operator_sees(server, &[("digits", &[("epoch", "1"), ("sigma", "5")])]);
        assert_eq!(faults(&[same(0), same(1), same(2)], None), []);
        let other = operator_sees(1, &[("digits", &[("epoch", "1"), ("sigma", "2")])]);
        let found = faults(&[same(0), other, same(2)], None);
        let [fault] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((fault.check, fault.server), (Check::Policy, Some(1)));
        assert!(
            fault.found.contains("`tasks.digits.sigma`") && fault.found.contains("server 1 has 2"),
            "{fault:?}"
        );
        assert!(fault.remedy.contains("server 1 is the odd one out"), "{fault:?}");

        let found = faults(&[same(0), operator_sees(1, &[("digits", &[("epoch", "2")])])], None);
        assert_eq!(found.len(), 2, "epoch and sigma: {found:?}");
        assert!(found.iter().all(|fault| fault.server.is_none() && fault.remedy.contains("agree on")));

        let found = faults(&[same(0), same(1), operator_sees(2, &[])], None);
        let [fault] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(fault.server, Some(2));
        assert!(fault.found.contains("`digits` is missing on server 2"), "{fault:?}");
    }

    #[test]
    fn the_file_is_compared_with_every_server() {
        let server = |server, sigma| operator_sees(server, &[("digits", &[("sigma", sigma)])]);
        let keys = [("sigma".to_owned(), "5".to_owned())].into_iter().collect();
        let expected = [TaskPolicy { name: "digits".into(), keys, ..TaskPolicy::default() }];
        assert_eq!(faults(&[server(0, "5")], Some(&expected)), []);
        let found = faults(&[server(0, "4"), server(1, "4"), server(2, "4")], Some(&expected));
        assert_eq!(found.iter().map(|fault| fault.server).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
        assert!(found[0].found.contains("is 4 on the server and 5 in the task file"), "{found:?}");
    }

    #[test]
    fn who_sees_no_keys_compares_digests() {
        let client_sees = |server, byte| Seen {
            server,
            tasks: vec![Task {
                name: "digits".into(),
                policy_digest: vec![byte; 32].into(),
                ..Task::default()
            }],
            ..Seen::default()
        };
        assert_eq!(faults(&[client_sees(0, 1), client_sees(1, 1), client_sees(2, 1)], None), []);
        let found = faults(&[client_sees(0, 1), client_sees(1, 1), client_sees(2, 9)], None);
        assert_eq!(found[0].server, Some(2));
        assert!(found[0].found.contains("policy digest"), "{found:?}");
    }
}
