//! A full check of a ledger: the log is read, and everything else must follow from it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Attestation, Basis, Committed, Event, LedgerEntry, LedgerError, LedgerHead, Raised, RequestKey, Stop,
    Total,
    attestation::{Epoch, encode_peer},
    charge::digest_of_owners,
    rows::{
        HEAD_KEY, Head, Request, decode_names, encode_total, epoch_key, name_key, pace_key, part_key,
        request_key,
    },
    store::{Order, RowKey, StoreView, Table},
    stored::PAGE,
};

/// Reads a whole table in pages.
fn for_each_row(
    view: &impl StoreView,
    table: Table,
    mut row: impl FnMut(&[u8], &[u8]) -> Result<(), LedgerError>,
) -> Result<(), LedgerError> {
    let mut from = Vec::new();
    loop {
        let page = view.scan(table, &from, None, Order::Ascending, PAGE)?;
        for (key, value) in &page {
            row(key, value)?;
        }
        match page.into_iter().nth(PAGE - 1) {
            None => return Ok(()),
            Some((last, _)) => from = [last.as_slice(), &[0]].concat(),
        }
    }
}

/// Checks that the log's numbers, times and hashes are unbroken up to the head, and that every other
/// row is what the log makes it.
pub(super) fn verify(view: &impl StoreView, place: &str) -> Result<LedgerHead, LedgerError> {
    let corrupt = |detail: String| LedgerError::corrupt(place, detail);
    let head = view.get(&[(Table::Head, HEAD_KEY.to_vec())])?.pop().flatten();
    let head = head.and_then(|row| Head::decode(&row)).ok_or_else(|| corrupt("it has no head".to_owned()))?;
    let mut owner_sets = BTreeMap::new();
    for_each_row(view, Table::OwnerSets, |digest, names| {
        let names = decode_names(names)
            .filter(|names| digest_of_owners(names.iter().map(String::as_str)) == digest)
            .ok_or_else(|| corrupt("a list of owners does not have its hash".to_owned()))?;
        owner_sets.insert(digest.to_vec(), names);
        Ok(())
    })?;

    let mut replay = Replay { owner_sets, ..Replay::default() };
    let mut found = Head { head: LedgerHead::EMPTY, time_ms: 0 };
    for_each_row(view, Table::Log, |number, row| {
        let LedgerHead { entries, hash: previous } = found.head;
        if number != entries.to_be_bytes() {
            return Err(corrupt(format!("log entry {entries} is missing")));
        }
        let hash = row.first_chunk::<32>().filter(|hash| LedgerEntry::chain(&previous, &row[32..]) == **hash);
        let hash = hash.ok_or_else(|| corrupt(format!("log entry {entries} does not have its hash")))?;
        let entry = LedgerEntry::decode(&row[32..])
            .filter(|entry| entry.number == entries && entry.time_ms >= found.time_ms)
            .ok_or_else(|| corrupt(format!("log entry {entries} cannot be read")))?;
        found = Head { head: LedgerHead { entries: entries + 1, hash: *hash }, time_ms: entry.time_ms };
        replay.note(entry).map_err(|what| corrupt(format!("log entry {entries}: {what}")))
    })?;
    if found != head {
        return Err(corrupt(format!(
            "its head names {} entries, and the log has {} or ends with another hash or time",
            head.head.entries, found.head.entries
        )));
    }

    if let Some(digest) = replay.owner_sets.keys().find(|digest| !replay.owner_sets_seen.contains(*digest)) {
        return Err(corrupt(format!("it holds a list of owners that the log does not name: {digest:02x?}")));
    }
    let mut expected = replay.into_rows().map_err(|what| corrupt(what.to_owned()))?;
    for table in Table::ALL {
        if matches!(table, Table::Head | Table::Log | Table::Results | Table::OwnerSets) {
            continue;
        }
        for_each_row(view, table, |key, value| {
            let problem = match expected.remove(&(table, key.to_vec())) {
                Some(row) if row == value => return Ok(()),
                Some(_) => "is not as the log has it",
                None => "is not in the log",
            };
            Err(corrupt(format!("the row of {} for {} {problem}", table.name(), readable(key))))
        })?;
    }
    if let Some((table, key)) = expected.keys().next() {
        return Err(corrupt(format!("the row of {} for {} is missing", table.name(), readable(key))));
    }
    for_each_row(view, Table::Results, |key, _| {
        let request = view.get(&[(Table::Requests, key.to_vec())])?.pop().flatten();
        if request.is_some() {
            return Ok(());
        }
        Err(corrupt("it holds the result of a request that the log does not name".to_owned()))
    })?;
    Ok(found.head)
}

/// A key as people can read it: its names, with dots for what is no text.
fn readable(key: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(key)
        .chars()
        .map(|char| if char.is_control() || char == char::REPLACEMENT_CHARACTER { ' ' } else { char })
        .collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What the log says, event by event.
#[derive(Default)]
struct Replay {
    totals: BTreeMap<RowKey, Total>,
    /// Sums by task epoch and set of owners, which count for each of them.
    sets: BTreeMap<(Vec<u8>, [u8; 32]), Total>,
    owner_sets: BTreeMap<Vec<u8>, Vec<String>>,
    owner_sets_seen: BTreeSet<Vec<u8>>,
    pace: BTreeMap<Vec<u8>, u64>,
    requests: BTreeMap<Vec<u8>, Request>,
    peers: BTreeMap<u8, LedgerHead>,
    stops: BTreeMap<String, Stop>,
    epochs: BTreeMap<Vec<u8>, Epoch>,
}

impl Replay {
    fn note(&mut self, LedgerEntry { number, time_ms, event }: LedgerEntry) -> Result<(), &'static str> {
        match event {
            Event::Committed(Committed { key, digest, owners_digest, owners, charged, last, .. }) => {
                let RequestKey { task, epoch, client, .. } = &key;
                let row = epoch_key(task, *epoch);
                self.add_to_epoch(task, *epoch, time_ms, charged)?;
                self.add(Table::ClientTotals, part_key(task, *epoch, client), charged)?;
                self.add(Table::AllTasks, name_key(client), charged)?;
                let names = self.owner_sets.get(owners_digest.as_slice()).ok_or("its owners are missing")?;
                if names.len() != owners as usize {
                    return Err("its number of owners is wrong");
                }
                self.owner_sets_seen.insert(owners_digest.to_vec());
                let set = self.sets.entry((row, owners_digest)).or_default();
                *set = set.checked_add(charged).ok_or(OVERFLOW)?;
                if last {
                    let request = Request { digest, released: false, time_ms, entry: number };
                    self.requests.insert(request_key(&key), request);
                }
            }
            Event::Delivered { requests, peers } => {
                for key in requests {
                    let request =
                        self.requests.get_mut(&request_key(&key)).ok_or("its request is missing")?;
                    request.released = true;
                }
                self.peers.extend(peers.into_iter().map(|peer| (peer.peer, peer.head)));
            }
            Event::Raised(Raised { task, epoch, total, by_client, by_owner, .. }) => {
                if total != Total::default() {
                    self.add_to_epoch(&task, epoch, time_ms, total)?;
                }
                for (client, total) in by_client {
                    self.add(Table::ClientTotals, part_key(&task, epoch, &client), total)?;
                    self.add(Table::AllTasks, name_key(&client), total)?;
                }
                for (owner, total) in by_owner {
                    self.add(Table::OwnerTotals, part_key(&task, epoch, &owner), total)?;
                }
            }
            Event::Stopped { task, reason } => {
                self.stops.insert(task, Stop { reason, since_ms: time_ms });
            }
            Event::Resumed { task, .. } => {
                self.stops.remove(&task).ok_or("the task was not stopped")?;
            }
            Event::Attested { attestation, carried } => self.attest(attestation, carried)?,
        }
        Ok(())
    }

    fn attest(&mut self, attestation: Attestation, carried: Total) -> Result<(), &'static str> {
        let Attestation { task, epoch, basis, attested_by } = attestation;
        let to = epoch_key(&task, epoch);
        if let Basis::CarriedOver { from_epoch } = basis {
            let from = epoch_key(&task, from_epoch);
            let total = self.totals.get(&(Table::TaskTotals, from.clone())).copied().unwrap_or_default();
            if total != carried {
                return Err("the total that it carries over is another");
            }
            self.totals.insert((Table::TaskTotals, to.clone()), carried);
            self.pace.insert(pace_key(&task, epoch, 0), carried.rho.units());
            for (table, totals) in [
                (Table::ClientTotals, self.parts(Table::ClientTotals, &from)),
                (Table::OwnerTotals, self.owners(&from)?),
            ] {
                for (part, total) in totals {
                    self.totals.insert((table, [&to, part.as_slice()].concat()), total);
                }
            }
            self.epochs.entry(from).or_default().carried_into = Some(epoch);
        }
        self.epochs.entry(to).or_default().attested = Some((basis, attested_by));
        Ok(())
    }

    fn add(&mut self, table: Table, key: Vec<u8>, added: Total) -> Result<Total, &'static str> {
        let sum = self.totals.entry((table, key)).or_default();
        *sum = sum.checked_add(added).ok_or(OVERFLOW)?;
        Ok(*sum)
    }

    fn add_to_epoch(
        &mut self,
        task: &str,
        epoch: u64,
        time_ms: u64,
        added: Total,
    ) -> Result<(), &'static str> {
        let key = epoch_key(task, epoch);
        let sum = self.add(Table::TaskTotals, key, added)?;
        self.pace.insert(pace_key(task, epoch, time_ms), sum.rho.units());
        Ok(())
    }

    /// The totals of a task epoch's parts, by the ends of their keys.
    fn parts(&self, table: Table, epoch: &[u8]) -> BTreeMap<Vec<u8>, Total> {
        self.totals
            .range((table, epoch.to_vec())..)
            .take_while(|((other, key), _)| *other == table && key.starts_with(epoch))
            .map(|((_, key), total)| (key[epoch.len()..].to_vec(), *total))
            .collect()
    }

    /// The totals of a task epoch's owners, by the ends of their keys.
    fn owners(&self, epoch: &[u8]) -> Result<BTreeMap<Vec<u8>, Total>, &'static str> {
        let mut owners = self.parts(Table::OwnerTotals, epoch);
        let sets = self.sets.range((epoch.to_vec(), [0; 32])..);
        for ((_, digest), total) in sets.take_while(|((key, _), _)| key == epoch) {
            for name in &self.owner_sets[digest.as_slice()] {
                let sum = owners.entry(name_key(name)).or_default();
                *sum = sum.checked_add(*total).ok_or(OVERFLOW)?;
            }
        }
        Ok(owners)
    }

    /// All rows that the log makes.
    fn into_rows(mut self) -> Result<BTreeMap<RowKey, Vec<u8>>, &'static str> {
        let epochs: BTreeSet<_> = self.sets.keys().map(|(epoch, _)| epoch.clone()).collect();
        for epoch in epochs {
            for (part, total) in self.owners(&epoch)? {
                self.totals.insert((Table::OwnerTotals, [epoch.as_slice(), &part].concat()), total);
            }
        }
        let mut rows: BTreeMap<RowKey, Vec<u8>> =
            self.totals.into_iter().map(|(key, total)| (key, encode_total(total))).collect();
        let requests = self.requests.into_iter();
        rows.extend(requests.map(|(key, request)| ((Table::Requests, key), request.encode())));
        rows.extend(
            self.pace.into_iter().map(|(key, spent)| ((Table::Pace, key), spent.to_be_bytes().to_vec())),
        );
        rows.extend(
            self.peers.into_iter().map(|(peer, head)| ((Table::Peers, vec![peer]), encode_peer(head))),
        );
        rows.extend(
            self.stops.into_iter().map(|(task, stop)| ((Table::Stops, name_key(&task)), stop.encode())),
        );
        rows.extend(self.epochs.into_iter().map(|(key, epoch)| ((Table::Epochs, key), epoch.encode())));
        Ok(rows)
    }
}

const OVERFLOW: &str = "the sum up to it overflows";
