//! Exported logs as JSON lines: first the statement, then one line for each entry. Each line says what its
//! bytes say, for readers; only the bytes count, and the check makes the rest anew.

use std::io::{self, Write};

use bytes::Bytes;
use concilium_client_library::{
    export::ExportedLog,
    task::{declaration, describe_mechanism},
};
use concilium_privacy::{
    NanoRho,
    convert::epsilon,
    ledger::{Attestation, Basis, Committed, Event, PeerHead, Raised},
};
use concilium_rpc::{
    inspection::utc,
    v1::{ServerSignature, SignedLedgerStatement},
};
use serde::{Deserialize, Serialize};

use super::check::CheckedLog;

/// Names the format in the first line.
const FORMAT: &str = "concilium ledger export 1";

/// The first line.
#[derive(Serialize)]
struct Header {
    format: &'static str,
    server: u8,
    signed: String,
    version: String,
    opendp_version: String,
    entries: u64,
    head: String,
    tasks: Vec<HeaderTask>,
    #[serde(flatten)]
    evidence: Evidence,
}

#[derive(Serialize)]
struct HeaderTask {
    task: String,
    epoch: u64,
    cap_rho: String,
    delta: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch_basis: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch_attested_by: Option<String>,
}

/// What counts of the first line; bytes in hexadecimal.
#[derive(Serialize, Deserialize)]
struct Evidence {
    statement: String,
    scheme: u32,
    signature: String,
    certificates: Vec<String>,
    signed_unix_ms: i64,
}

#[derive(Deserialize)]
struct FirstLine {
    format: String,
    #[serde(flatten)]
    evidence: Evidence,
}

/// A line of one entry.
#[derive(Serialize)]
struct EntryLine<'a> {
    entry: u64,
    time: String,
    #[serde(flatten)]
    event: EventLine<'a>,
    bytes: String,
}

/// What happened.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum EventLine<'a> {
    Committed(Box<CommittedLine<'a>>),
    Delivered { requests: Vec<String>, peers: Vec<PeerLine> },
    Raised { task: &'a str, epoch: u64, rho: String, peer: u8 },
    Stopped { task: &'a str, reason: &'a str },
    Resumed { task: &'a str, operator: &'a str, reason: &'a str },
    Attested { task: &'a str, epoch: u64, basis: String, attested_by: &'a str, carried_rho: String },
    Other,
}

#[derive(Serialize)]
struct CommittedLine<'a> {
    task: &'a str,
    epoch: u64,
    client: &'a str,
    request: String,
    content_digest: String,
    policy_digest: String,
    release: String,
    noise: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<String>,
    privacy_unit: String,
    rows: u32,
    owners: u32,
    rho: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<String>,
    voided_rho: String,
    last: bool,
}

#[derive(Serialize)]
struct PeerLine {
    server: u8,
    entries: u64,
    hash: String,
}

/// What counts of an entry's line.
#[derive(Deserialize)]
struct EntryBytes {
    bytes: String,
}

/// Writes a log.
pub(super) fn write(log: &ExportedLog, checked: &CheckedLog, writer: &mut impl Write) -> io::Result<()> {
    lines(log, checked).try_for_each(|line| writeln!(writer, "{line}"))
}

/// Number of the first line of `text` that does not say what its bytes say, from one.
pub(super) fn first_difference(text: &str, log: &ExportedLog, checked: &CheckedLog) -> Option<usize> {
    let mut found = text.lines();
    let mut number = 0;
    for line in lines(log, checked) {
        number += 1;
        if found.next() != Some(&line) {
            return Some(number);
        }
    }
    found.next().map(|_| number + 1)
}

/// Reads the bytes that count; the error continues the name of the file.
pub(super) fn read(text: &str) -> Result<ExportedLog, String> {
    let foreign = "is not what `budget export` writes, or of another version";
    let mut lines = text.lines();
    let first: FirstLine =
        lines.next().and_then(|line| serde_json::from_str(line).ok()).ok_or_else(|| foreign.to_owned())?;
    if first.format != FORMAT {
        return Err(foreign.to_owned());
    }
    let bytes = |text: &str, line: usize| {
        hex::decode(text)
            .map(Bytes::from)
            .map_err(|error| format!("has a line {line} that cannot be read: {error}"))
    };
    let Evidence { statement, scheme, signature, certificates, signed_unix_ms } = first.evidence;
    let certificates = certificates.iter().map(|text| bytes(text, 1)).collect::<Result<_, _>>()?;
    let signature =
        ServerSignature { scheme, signature: bytes(&signature, 1)?, certificates, signed_unix_ms };
    let statement = SignedLedgerStatement { statement: bytes(&statement, 1)?, signature: Some(signature) };
    let entries = (2..).zip(lines).map(|(number, line)| {
        let entry: EntryBytes = serde_json::from_str(line)
            .map_err(|error| format!("has a line {number} that cannot be read: {error}"))?;
        bytes(&entry.bytes, number)
    });
    Ok(ExportedLog { statement, entries: entries.collect::<Result<_, _>>()? })
}

fn lines<'a>(log: &'a ExportedLog, checked: &'a CheckedLog) -> impl Iterator<Item = String> + 'a {
    let signature = log.statement.signature.clone().unwrap_or_default();
    let statement = &checked.statement;
    let tasks = statement.tasks.iter().map(|task| {
        let declared = declaration(task.epoch_basis(), &task.epoch_attested_by);
        HeaderTask {
            task: task.task.clone(),
            epoch: task.epoch,
            cap_rho: NanoRho::new(task.cap_nano_rho).to_string(),
            delta: task.delta.clone(),
            epoch_basis: declared.as_ref().map(|declared| declared.basis.to_string()),
            epoch_attested_by: declared.map(|declared| declared.attested_by),
        }
    });
    let header = Header {
        format: FORMAT,
        server: checked.server,
        signed: utc(checked.signed_unix_ms / 1000),
        version: statement.version.clone(),
        opendp_version: statement.opendp_version.clone(),
        entries: statement.entries,
        head: hex::encode(&statement.head_hash),
        tasks: tasks.collect(),
        evidence: Evidence {
            statement: hex::encode(&log.statement.statement),
            scheme: signature.scheme,
            signature: hex::encode(&signature.signature),
            certificates: signature.certificates.iter().map(hex::encode).collect(),
            signed_unix_ms: signature.signed_unix_ms,
        },
    };
    let entries = checked.entries.iter().zip(&log.entries).map(|(entry, bytes)| {
        json(&EntryLine {
            entry: entry.number,
            time: utc(i64::try_from(entry.time_ms / 1000).unwrap_or(i64::MAX)),
            event: event(&entry.event, checked),
            bytes: hex::encode(bytes),
        })
    });
    std::iter::once(json(&header)).chain(entries)
}

fn event<'a>(event: &'a Event, checked: &CheckedLog) -> EventLine<'a> {
    match event {
        Event::Committed(event) => EventLine::Committed(Box::new(committed(event, checked))),
        Event::Delivered { requests, peers } => EventLine::Delivered {
            requests: requests.iter().map(|key| key.request.to_string()).collect(),
            peers: peers
                .iter()
                .map(|PeerHead { peer, head }| PeerLine {
                    server: *peer,
                    entries: head.entries,
                    hash: hex::encode(head.hash),
                })
                .collect(),
        },
        Event::Raised(Raised { task, epoch, total, peer, .. }) => {
            EventLine::Raised { task, epoch: *epoch, rho: total.rho.to_string(), peer: *peer }
        }
        Event::Stopped { task, reason } => EventLine::Stopped { task, reason },
        Event::Resumed { task, operator, reason } => EventLine::Resumed { task, operator, reason },
        Event::Attested { attestation: Attestation { task, epoch, basis, attested_by }, carried } => {
            EventLine::Attested {
                task,
                epoch: *epoch,
                basis: match basis {
                    Basis::Retrained => "retrained".to_owned(),
                    Basis::CarriedOver { from_epoch } => format!("carried over from epoch {from_epoch}"),
                },
                attested_by,
                carried_rho: carried.rho.to_string(),
            }
        }
        _ => EventLine::Other,
    }
}

fn committed<'a>(event: &'a Committed, checked: &CheckedLog) -> CommittedLine<'a> {
    let Committed { key, charged, .. } = event;
    let delta = checked.delta(&key.task);
    CommittedLine {
        task: &key.task,
        epoch: key.epoch,
        client: &key.client,
        request: key.request.to_string(),
        content_digest: hex::encode(event.digest.0),
        policy_digest: hex::encode(event.policy_digest),
        release: event.release.to_string(),
        noise: describe_mechanism(event.mechanism),
        threshold: event
            .threshold
            .map(|test| format!("{} votes, {}", test.votes, describe_mechanism(test.mechanism))),
        privacy_unit: event.unit.to_string(),
        rows: event.rows,
        owners: event.owners,
        rho: charged.rho.to_string(),
        epsilon: delta.and_then(|delta| epsilon(charged.rho, delta).ok()),
        delta: delta.map(|delta| delta.to_string()),
        voided_rho: event.voided.to_string(),
        last: event.last,
    }
}

fn json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("names and numbers are JSON")
}
