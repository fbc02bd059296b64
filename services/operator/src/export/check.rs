//! Whether an exported log is what its server signed, and whether logs agree.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;

use concilium_client_library::export::ExportedLog;
use concilium_privacy::{
    Delta, NanoRho,
    ledger::{Attestation, Basis, Committed, Event, LedgerEntry, LedgerHead, PeerHead, Raised, Total},
};
use concilium_rpc::{
    signature::{Authorities, Purpose, SignatureError},
    v1::LedgerStatement,
};
use prost::Message as _;
use thiserror::Error;

/// Most differences of one kind that are told one by one.
const SHOWN: usize = 10;

/// Why a log proves nothing.
#[derive(Debug, Error)]
pub(super) enum LogError {
    #[error("its statement is not signed")]
    Unsigned,
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("its statement cannot be read")]
    Statement,
    #[error("entry {0} cannot be read; it was changed, or another version of the program wrote it")]
    Entry(u64),
    #[error("entry {found} stands where entry {number} should be; an entry is missing or was moved")]
    Number { number: u64, found: u64 },
    #[error("entry {0} is older than the one before it")]
    Time(u64),
    #[error("the sum up to entry {0} exceeds 64 bits")]
    Overflow(u64),
    #[error("it has {found} entries, and the server signed for {signed}")]
    Length { found: u64, signed: u64 },
    #[error("its last hash is {found}, and the server signed for {signed}; an entry was changed")]
    Head { found: String, signed: String },
}

/// A task and its epoch.
pub(super) type TaskEpoch = (String, u64);

/// What a log says was spent in one task epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) total: Total,
    /// By client, with what the epoch has taken over from an older one.
    by_client: BTreeMap<String, Total>,
    /// Whether something was added because another server knew of more.
    raised: bool,
}

/// A log that holds.
pub(super) struct CheckedLog {
    /// The server that signed.
    pub(super) server: u8,
    /// When it did, in milliseconds since 1970-01-01 UTC.
    pub(super) signed_unix_ms: i64,
    /// What it signed.
    pub(super) statement: LedgerStatement,
    /// What it says.
    pub(super) entries: Vec<LedgerEntry>,
    /// Hash after so many entries as its place says.
    hashes: Vec<[u8; 32]>,
    /// The sums of the entries.
    pub(super) spent: BTreeMap<TaskEpoch, Spent>,
    /// On whose word epochs began.
    pub(super) begun: BTreeMap<TaskEpoch, Begun>,
}

/// On whose word an epoch began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) basis: Basis,
    pub(super) attested_by: String,
    /// What it began with.
    pub(super) carried: NanoRho,
}

impl Begun {
    /// The basis in words.
    pub(super) fn basis_in_words(&self) -> String {
        match self.basis {
            Basis::Retrained => "retrained".to_owned(),
            Basis::CarriedOver { from_epoch } => format!("carried over from epoch {from_epoch}"),
        }
    }
}

impl CheckedLog {
    /// Delta of a task that the server served when it signed.
    pub(super) fn delta(&self, task: &str) -> Option<Delta> {
        self.statement.tasks.iter().find(|known| known.task == task)?.delta.parse().ok()
    }

    /// What each request was charged in all. Servers may have committed in another order, at other times, and
    /// their digests of a request's content differ, because each covers the parts that its server got.
    fn requests(&self, epoch: &TaskEpoch) -> BTreeMap<String, Total> {
        let mut requests = BTreeMap::new();
        for entry in &self.entries {
            if let Event::Committed(Committed { key, charged, .. }) = &entry.event
                && (&key.task, key.epoch) == (&epoch.0, epoch.1)
            {
                let sum: &mut Total = requests.entry(key.to_string()).or_default();
                // All of them together are not more than the task's total, which did not overflow.
                *sum = add(*sum, *charged).unwrap_or(*sum);
            }
        }
        requests
    }
}

/// Checks the signature, every entry, the chain of their hashes, and the sums.
pub(super) fn check(log: &ExportedLog, authorities: &Authorities) -> Result<CheckedLog, LogError> {
    let signature = log.statement.signature.as_ref().ok_or(LogError::Unsigned)?;
    let signer = authorities.verify(signature, Purpose::LedgerExport, &log.statement.statement)?;
    let statement = LedgerStatement::decode(&*log.statement.statement).map_err(|_| LogError::Statement)?;
    let (mut hash, mut time_ms) = (LedgerHead::EMPTY.hash, 0);
    let (mut entries, mut hashes) = (Vec::new(), vec![hash]);
    let mut spent: BTreeMap<TaskEpoch, Spent> = BTreeMap::new();
    let mut begun = BTreeMap::new();
    for (number, bytes) in (0..).zip(&log.entries) {
        let entry = LedgerEntry::decode(bytes).ok_or(LogError::Entry(number))?;
        if entry.number != number {
            return Err(LogError::Number { number, found: entry.number });
        }
        if entry.time_ms < time_ms {
            return Err(LogError::Time(number));
        }
        count(&mut spent, &entry).ok_or(LogError::Overflow(number))?;
        if let Event::Attested { attestation, carried } = &entry.event {
            let Attestation { task, epoch, basis, attested_by } = attestation.clone();
            begun.insert((task, epoch), Begun { basis, attested_by, carried: carried.rho });
        }
        (hash, time_ms) = (LedgerEntry::chain(&hash, bytes), entry.time_ms);
        entries.push(entry);
        hashes.push(hash);
    }
    let found = entries.len() as u64;
    if found != statement.entries {
        return Err(LogError::Length { found, signed: statement.entries });
    }
    if hash != statement.head_hash[..] {
        let (found, signed) = (hex::encode(hash), hex::encode(&statement.head_hash));
        return Err(LogError::Head { found, signed });
    }
    let (server, signed_unix_ms) = (signer.server, signer.signed_unix_ms);
    Ok(CheckedLog { server, signed_unix_ms, statement, entries, hashes, spent, begun })
}

/// Adds an entry to the sums; `None` beyond 64 bits.
fn count(spent: &mut BTreeMap<TaskEpoch, Spent>, entry: &LedgerEntry) -> Option<()> {
    let Some((task, epoch, total)) = entry.charged() else { return Some(()) };
    let carried = match &entry.event {
        Event::Attested {
            attestation: Attestation { basis: Basis::CarriedOver { from_epoch }, .. }, ..
        } => spent.get(&(task.to_owned(), *from_epoch)).map(|from| from.by_client.clone()),
        _ => None,
    };
    let sums = spent.entry((task.to_owned(), epoch)).or_default();
    sums.total = add(sums.total, total)?;
    let mut client = |name: &String, total| {
        let sum = sums.by_client.entry(name.clone()).or_default();
        *sum = add(*sum, total)?;
        Some(())
    };
    match &entry.event {
        Event::Committed(Committed { key, charged, .. }) => client(&key.client, *charged)?,
        Event::Raised(Raised { by_client, .. }) => {
            by_client.iter().try_for_each(|(name, total)| client(name, *total))?;
            sums.raised = true;
        }
        Event::Attested { .. } => sums.by_client.extend(carried.unwrap_or_default()),
        _ => {}
    }
    Some(())
}

fn add(one: Total, other: Total) -> Option<Total> {
    Some(Total {
        rho: one.rho.checked_add(other.rho)?,
        requests: one.requests.checked_add(other.requests)?,
        rows: one.rows.checked_add(other.rows)?,
    })
}

/// A log with the name of its file or server.
pub(super) type Named = (String, CheckedLog);

/// Every difference between logs in one line: two logs of one server of which none continues the other, a
/// log that is not the one that another server saw, and logs of two servers that charged differently.
pub(super) fn differences(logs: &[Named]) -> Vec<String> {
    let mut told = Vec::new();
    let pairs = || {
        logs.iter()
            .enumerate()
            .flat_map(|(place, one)| logs[place + 1..].iter().map(move |other| (one, other)))
    };
    for (one, other) in pairs().filter(|(one, other)| one.1.server == other.1.server) {
        told.extend(fork(one, other));
    }
    // The newest log of each server.
    let mut newest: BTreeMap<u8, &Named> = BTreeMap::new();
    for log in logs {
        let slot = newest.entry(log.1.server).or_insert(log);
        if slot.1.entries.len() < log.1.entries.len() {
            *slot = log;
        }
    }
    for one in newest.values() {
        told.extend(newest.values().filter_map(|other| seen_otherwise(one, other)));
    }
    let newest: Vec<_> = newest.into_values().collect();
    for (place, one) in newest.iter().enumerate() {
        newest[place + 1..].iter().for_each(|other| told.extend(disagreement(one, other)));
    }
    told
}

/// Of two logs of one server the shorter must be the beginning of the longer.
fn fork(one: &Named, other: &Named) -> Option<String> {
    let hashes = one.1.hashes.iter().zip(&other.1.hashes);
    let number = hashes.into_iter().position(|(here, there)| here != there)? - 1;
    Some(format!(
        "{} and {} are of server {} and differ from entry {number} on: its ledger was changed or replaced",
        one.0, other.0, one.1.server
    ))
}

/// Servers note the ends of each other's logs before each release: what `one` saw of `other` must be in
/// `other`'s log.
fn seen_otherwise(one: &Named, other: &Named) -> Option<String> {
    one.1.entries.iter().find_map(|entry| {
        let Event::Delivered { peers, .. } = &entry.event else { return None };
        let PeerHead { head, .. } = peers.iter().find(|peer| peer.peer == other.1.server)?;
        // A log that was exported earlier ends before it.
        let hash = other.1.hashes.get(usize::try_from(head.entries).ok()?)?;
        (*hash != head.hash).then(|| {
            format!(
                "{} saw another log of server {} than {}: entry {} notes another hash after {} entries",
                one.0, other.1.server, other.0, entry.number, head.entries
            )
        })
    })
}

/// Two servers must have spent the same, and unless one was told of more than it knew, on the same requests.
fn disagreement(one: &Named, other: &Named) -> Vec<String> {
    let mut told = Vec::new();
    for ((task, epoch), here) in &one.1.begun {
        // A ledger that was begun anew knows of no older epoch, so it may name another one.
        if let Some(there) = other.1.begun.get(&(task.clone(), *epoch))
            && (discriminant(&here.basis), &here.attested_by)
                != (discriminant(&there.basis), &there.attested_by)
        {
            told.push(format!(
                "task {task} epoch {epoch} began as {} on the word of {} in {}, as {} on that of {} in {}",
                here.basis_in_words(),
                here.attested_by,
                one.0,
                there.basis_in_words(),
                there.attested_by,
                other.0
            ));
        }
    }
    let none = Spent::default();
    let epochs: BTreeSet<_> = one.1.spent.keys().chain(other.1.spent.keys()).collect();
    for epoch in epochs {
        let [here, there] = [one, other].map(|log| log.1.spent.get(epoch).unwrap_or(&none));
        let name = format!("task {} epoch {}", epoch.0, epoch.1);
        let rho = |total: Option<&Total>| total.map_or(NanoRho::ZERO, |total| total.rho);
        if here.total != there.total {
            let (here, there) = (here.total, there.total);
            told.push(format!(
                "{name}: {} has spent rho {} on {} requests, {} rho {} on {}",
                one.0, here.rho, here.requests, other.0, there.rho, there.requests
            ));
        }
        let clients: BTreeSet<_> = here.by_client.keys().chain(there.by_client.keys()).collect();
        for client in clients {
            let (here, there) = (here.by_client.get(client), there.by_client.get(client));
            if here != there {
                let (here, there) = (rho(here), rho(there));
                told.push(format!(
                    "{name}, client {client}: rho {here} in {}, rho {there} in {}",
                    one.0, other.0
                ));
            }
        }
        if here.raised || there.raised {
            continue;
        }
        let (here, there) = (one.1.requests(epoch), other.1.requests(epoch));
        let keys: BTreeSet<_> = here.keys().chain(there.keys()).collect();
        let different: Vec<_> = keys.into_iter().filter(|key| here.get(*key) != there.get(*key)).collect();
        for key in different.iter().copied().take(SHOWN) {
            let (here, there) = (rho(here.get(key)), rho(there.get(key)));
            told.push(format!("{key}: charged rho {here} in {}, rho {there} in {}", one.0, other.0));
        }
        if different.len() > SHOWN {
            told.push(format!("{name}: {} requests more differ", different.len() - SHOWN));
        }
    }
    told
}
