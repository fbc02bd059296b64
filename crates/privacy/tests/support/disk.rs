//! A disk in memory, whose power fails when a test says so.
#![allow(dead_code, unreachable_pub, reason = "every test program compiles its own copy and uses a part")]

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use concilium_privacy::{LedgerError, RedbLedger, ledger::RedbStore};
use rand::RngExt;
use rand_chacha::ChaCha20Rng;
use redb::StorageBackend;

/// A disk in memory, with a cache that a power cut loses in part.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
pub struct DiskState {
    /// What the program sees.
    pub seen: Vec<u8>,
    /// What a power cut leaves for certain.
    durable: Vec<u8>,
    /// Writes since the last flush, in sectors: place and bytes.
    unflushed: Vec<(usize, Vec<u8>)>,
    pub flushes: usize,
    /// The power fails at this flush, before it has done anything.
    pub cut_at: Option<usize>,
    /// Greatest length.
    pub room: Option<usize>,
}

const SECTOR: usize = 512;

impl Disk {
    pub fn lock(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().expect("nothing panics with the lock")
    }

    /// The disk as it is after a power cut now: any part of what was not flushed got through.
    pub fn after_power_cut(&self, random: &mut ChaCha20Rng) -> Self {
        let state = self.lock();
        let mut image = state.durable.clone();
        // A file that grew may have its new length or not.
        if random.random() && image.len() < state.seen.len() {
            image.resize(state.seen.len(), 0);
        }
        for (place, bytes) in &state.unflushed {
            if random.random() && place + bytes.len() <= image.len() {
                image[*place..place + bytes.len()].copy_from_slice(bytes);
            }
        }
        Self(Arc::new(Mutex::new(DiskState { seen: image.clone(), durable: image, ..DiskState::default() })))
    }

    /// A copy of the disk as it is.
    pub fn copy(&self) -> Self {
        let image = self.lock().seen.clone();
        Self(Arc::new(Mutex::new(DiskState { seen: image.clone(), durable: image, ..DiskState::default() })))
    }

    pub fn store(&self) -> Result<RedbStore, LedgerError> {
        RedbStore::with_backend(self.clone(), "the disk in memory")
    }

    pub fn open(&self) -> Result<RedbLedger, LedgerError> {
        RedbLedger::open_or_create_in(self.store()?)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("a small disk");
        let state = self.lock();
        let bytes = state.seen.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).expect("a small disk");
        let mut state = self.lock();
        if state.room.is_some_and(|room| len > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.seen.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.flushes += 1;
        if state.cut_at.is_some_and(|cut| state.flushes >= cut) {
            return Err(io::Error::other("the power is off"));
        }
        state.durable = state.seen.clone();
        state.unflushed.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("a small disk");
        let mut state = self.lock();
        if state.cut_at.is_some_and(|cut| state.flushes >= cut) {
            return Err(io::Error::other("the power is off"));
        }
        state.seen[offset..offset + data.len()].copy_from_slice(data);
        for (index, sector) in data.chunks(SECTOR).enumerate() {
            state.unflushed.push((offset + index * SECTOR, sector.to_vec()));
        }
        Ok(())
    }
}
