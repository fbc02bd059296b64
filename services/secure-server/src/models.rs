//! The owners' models on one server: durable shares, their state, and what is prepared of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use concilium_inference::PreparedModel;
use concilium_mpc::PartyIndex;
use concilium_mpc::input::Component;
use concilium_privacy::NanoRho;
use concilium_rpc::lane::CompareModels;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::compare_model_response::Outcome;
use concilium_rpc::v1::{CompareModelRequest, ModelState, SelfTestFigures};
use prost::Message;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use thiserror::Error;
use zeroize::Zeroize;

use crate::epochs::Epochs;

mod entry;
mod set;
mod stored;

pub use entry::{Entry, ModelKey, Terms, Upload, VersionKey};
pub(crate) use set::digest_of;
pub use set::{ModelSets, ensemble};
use stored::{StoredModel, load, stored_bytes};

/// Key `task/owner/model/version`, the version in ten digits, none of the names with a slash; value an
/// encoded [`StoredModel`].
const MODELS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("models-v4");

/// What older versions wrote: models without epoch, models that were lists of layers, models without
/// versions.
const OLD_MODELS: [TableDefinition<'_, &str, &[u8]>; 3] =
    [TableDefinition::new("models-v1"), TableDefinition::new("models-v2"), TableDefinition::new("models-v3")];

/// Most versions of a model that are ready on one server at a time: the one that votes, and one that not
/// all servers have ready.
const MOST_READY_VERSIONS: usize = 2;

/// Erased versions of an owner's models of a task that stay listed.
const MOST_ERASED: usize = 1000;

/// Largest number of a version.
pub const LARGEST_VERSION: u64 = 1 << 32;

/// Why the store can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelStoreError {
    /// The file can't be read or written.
    #[error("the model store {}: {reason}; check the disk and that no other server uses the file", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What the storage said.
        reason: String,
    },
    /// An older version of the program wrote the file.
    #[error(
        "the model store {} was written by an older version, which kept models in another form; move the file away, \
         and let the owners share their models again",
        path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
    },
    /// A stored model can't be read.
    #[error("the model store {} holds an unreadable model {key}: {reason}; withdraw it and share it again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The model.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

/// All models of one server.
pub struct ModelStore {
    here: PartyIndex,
    epochs: Epochs,
    path: PathBuf,
    database: Database,
    entries: RwLock<BTreeMap<VersionKey, Entry>>,
}

impl ModelStore {
    /// Opens the store at `path`, creating it if it is missing, and prepares the versions that are
    /// ready. Models of epochs that do not vote are retired.
    ///
    /// # Errors
    /// [`ModelStoreError`] naming the file and the model.
    pub fn open(here: PartyIndex, path: &Path, epochs: Epochs) -> Result<Self, ModelStoreError> {
        let storage = |reason: String| ModelStoreError::Storage { path: path.to_owned(), reason };
        let database = Database::create(path).map_err(|error| storage(error.to_string()))?;
        let store = ModelStore { here, epochs, path: path.to_owned(), database, entries: RwLock::default() };
        store.write(|table| table.len().map(|_| ()))?;
        let mut entries = BTreeMap::new();
        let read = store.database.begin_read().map_err(|error| storage(error.to_string()))?;
        if OLD_MODELS.iter().any(|&table| read.open_table(table).is_ok()) {
            return Err(ModelStoreError::Schema { path: path.to_owned() });
        }
        let table = read.open_table(MODELS).map_err(|error| storage(error.to_string()))?;
        for row in table.iter().map_err(|error| storage(error.to_string()))? {
            let (key, value) = row.map_err(|error| storage(error.to_string()))?;
            let corrupt = |reason: String| ModelStoreError::Corrupt {
                path: path.to_owned(),
                key: key.value().to_owned(),
                reason,
            };
            let stored = StoredModel::decode(value.value()).map_err(|error| corrupt(error.to_string()))?;
            let entry = load(&stored, &store.epochs).map_err(corrupt)?;
            entries.insert(entry.version_key(), entry);
        }
        *store.entries.write().unwrap_or_else(PoisonError::into_inner) = entries;
        Ok(store)
    }

    /// Runs one durable transaction on the table.
    fn write(
        &self,
        change: impl FnOnce(&mut redb::Table<'_, &str, &[u8]>) -> Result<(), redb::StorageError>,
    ) -> Result<(), ModelStoreError> {
        let run = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            change(&mut transaction.open_table(MODELS)?)?;
            Ok(transaction.commit()?)
        };
        run().map_err(|error| ModelStoreError::Storage { path: self.path.clone(), reason: error.to_string() })
    }

    /// Stores a version as staged. The same content again changes nothing. Older versions that are not ready
    /// give way; those that are ready vote on.
    ///
    /// # Errors
    /// [`RpcError::ModelExists`] for a number that was used, [`RpcError::TooLarge`] above
    /// `models_per_owner` or with two ready versions of the model, [`RpcError::Internal`] when the disk fails.
    pub fn upload(&self, upload: Upload, models_per_owner: u32, now_unix_ms: i64) -> Result<Entry, RpcError> {
        let Upload { key, version, architecture, content_digest, terms, own, next } = upload;
        let versions = self.versions(&key);
        let same = |entry: &&Entry| entry.content_digest == content_digest && entry.terms == terms;
        if let Some(entry) =
            versions.iter().find(same).filter(|same| version.is_none_or(|v| v == same.version))
        {
            return Ok(entry.clone());
        }
        let newest = versions.last().map_or(0, |entry| entry.version);
        let version = version.unwrap_or(newest + 1);
        if version <= newest {
            return Err(RpcError::ModelExists { task: key.task, model: key.model });
        }
        self.check_numbers(&key, &versions, models_per_owner)?;
        let stored = StoredModel {
            task: key.task.clone(),
            owner: key.owner.clone(),
            model: key.model.clone(),
            architecture: serde_json::to_vec(&architecture).map_err(internal)?,
            content_digest: content_digest.to_vec(),
            state: ModelState::Staged.into(),
            reason: String::new(),
            uploaded_at_unix_ms: now_unix_ms,
            own_is_seed: matches!(own, Component::Seed(_)),
            own: stored_bytes(&own),
            next_is_seed: matches!(next, Component::Seed(_)),
            next: stored_bytes(&next),
            epoch: terms.epoch,
            owner_budget_nano_rho: terms.budget.map(NanoRho::units),
            retrained: terms.retrained,
            version,
            self_test: None,
            erased: false,
            parameters: architecture.parameter_count() as u64,
        };
        let mut saved = vec![stored];
        for entry in versions {
            if matches!(entry.state, ModelState::Staged | ModelState::Rejected) {
                let mut stored = self.stored(&entry.version_key())?;
                let before = if entry.reason.is_empty() { "it was not ready" } else { &entry.reason };
                stored.erase(&format!("version {version} took its place: {before}"));
                saved.push(stored);
            }
        }
        let mut entries = self.save(&saved)?;
        Ok(entries.swap_remove(0))
    }

    /// Checks that the owner may have another version of the model.
    fn check_numbers(
        &self,
        key: &ModelKey,
        versions: &[Entry],
        models_per_owner: u32,
    ) -> Result<(), RpcError> {
        let too_large = |what: String, limit: u64, got: usize| {
            Err(RpcError::TooLarge { what, limit, got: got as u64 + 1 })
        };
        let ready = versions.iter().filter(|entry| entry.is_ready()).count();
        if ready >= MOST_READY_VERSIONS {
            let what = format!(
                "number of versions of model {} that are ready on this server; withdraw those that are not \
                 ready on all three, or repeat `concilium-owner share --replace`: versions",
                key.model
            );
            return too_large(what, MOST_READY_VERSIONS as u64, ready);
        }
        let entries = self.read();
        // A version that is to replace another counts as that one.
        let others: BTreeSet<&String> = entries
            .values()
            .filter(|other| other.key.task == key.task && other.key.owner == key.owner)
            .filter(|other| other.key != *key && other.state != ModelState::Retired)
            .map(|other| &other.key.model)
            .collect();
        if others.len() >= models_per_owner as usize {
            let what = format!("number of models of owner {} for task {}", key.owner, key.task);
            return too_large(what, models_per_owner.into(), others.len());
        }
        Ok(())
    }

    /// Writes versions in one transaction, and takes them up.
    fn save(&self, saved: &[StoredModel]) -> Result<Vec<Entry>, RpcError> {
        self.write(|table| {
            for stored in saved {
                let mut bytes = stored.encode_to_vec();
                let inserted = table.insert(row_of(&stored.key()).as_str(), bytes.as_slice()).map(|_| ());
                bytes.zeroize();
                inserted?;
            }
            Ok(())
        })
        .map_err(internal)?;
        let load = |stored| load(stored, &self.epochs).map_err(internal);
        let loaded = saved.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        loaded.iter().for_each(|entry| {
            entries.insert(entry.version_key(), entry.clone());
        });
        Ok(loaded)
    }

    fn stored(&self, key: &VersionKey) -> Result<StoredModel, RpcError> {
        let read = || -> Result<Option<StoredModel>, redb::Error> {
            let table = self.database.begin_read()?.open_table(MODELS)?;
            let row = table.get(row_of(key).as_str())?;
            Ok(row.and_then(|row| StoredModel::decode(row.value()).ok()))
        };
        read().map_err(internal)?.ok_or_else(|| unknown(&key.model))
    }

    /// Makes a staged version ready or rejected; a ready one can still become rejected.
    ///
    /// # Errors
    /// [`RpcError::UnknownModel`] when it is gone, [`RpcError::Internal`] when the disk fails.
    pub fn set_state(
        &self,
        key: &VersionKey,
        state: ModelState,
        reason: &str,
        self_test: Option<SelfTestFigures>,
    ) -> Result<Entry, RpcError> {
        let mut stored = self.stored(key)?;
        if stored.erased {
            return Err(unknown(&key.model));
        }
        stored.state = state.into();
        stored.reason = reason.to_owned();
        stored.self_test = self_test.or(stored.self_test);
        Ok(self.save(&[stored])?.swap_remove(0))
    }

    /// Retires one version of a model, or all that are not erased, and erases their shares. Returns the
    /// newest of them.
    ///
    /// # Errors
    /// [`RpcError::UnknownModel`] when there is none, [`RpcError::Internal`] when the disk fails.
    pub fn withdraw(&self, key: &ModelKey, version: Option<u64>, reason: &str) -> Result<Entry, RpcError> {
        let mut versions = self.versions(key);
        versions.retain(|entry| !entry.erased && version.is_none_or(|version| version == entry.version));
        self.erase(&versions, reason)?.pop().ok_or_else(|| unknown(key))
    }

    /// Retires the versions that are older than these, which all three servers have ready.
    ///
    /// # Errors
    /// [`RpcError::Internal`] when the disk fails.
    pub fn settle(&self, ready: &[Entry]) -> Result<(), RpcError> {
        for entry in ready {
            let mut versions = self.versions(&entry.key);
            versions.retain(|other| !other.erased && other.version < entry.version);
            if !versions.is_empty() {
                self.erase(&versions, &format!("version {} took its place", entry.version))?;
                tracing::info!(model = %entry.key, version = entry.version, "a version took its predecessor's place");
            }
        }
        Ok(())
    }

    fn erase(&self, versions: &[Entry], reason: &str) -> Result<Vec<Entry>, RpcError> {
        let mut erased = Vec::new();
        for entry in versions {
            let mut stored = self.stored(&entry.version_key())?;
            stored.erase(reason);
            erased.push(stored);
        }
        let entries = self.save(&erased)?;
        if let Some(entry) = entries.first() {
            self.forget_oldest(&entry.key.task, &entry.key.owner).map_err(internal)?;
        }
        Ok(entries)
    }

    /// Deletes what is left of the oldest erased versions of an owner, above [`MOST_ERASED`].
    fn forget_oldest(&self, task: &str, owner: &str) -> Result<(), ModelStoreError> {
        let mut erased = self.list(|key| key.task == task && key.owner == owner);
        erased.retain(|entry| entry.erased);
        let Some(surplus) = erased.len().checked_sub(MOST_ERASED).filter(|&surplus| surplus > 0) else {
            return Ok(());
        };
        erased.sort_by_key(|entry| entry.uploaded_at_unix_ms);
        erased.truncate(surplus);
        self.write(|table| {
            for entry in &erased {
                table.remove(row_of(&entry.version_key()).as_str())?;
            }
            Ok(())
        })?;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        erased.iter().for_each(|entry| {
            entries.remove(&entry.version_key());
        });
        Ok(())
    }

    /// All versions of a model, the oldest first.
    pub fn versions(&self, key: &ModelKey) -> Vec<Entry> {
        let version = |version| VersionKey { model: key.clone(), version };
        self.read().range(version(0)..=version(u64::MAX)).map(|(_, entry)| entry.clone()).collect()
    }

    /// The version of a model that has this content.
    ///
    /// # Errors
    /// [`RpcError::UnknownModel`] when the model has no version, [`RpcError::ModelExists`] when none has
    /// this content.
    pub fn find(&self, key: &ModelKey, content_digest: &[u8]) -> Result<Entry, RpcError> {
        let mut versions = self.versions(key);
        if versions.iter().all(|entry| entry.erased && entry.content_digest != content_digest) {
            return Err(unknown(key));
        }
        versions.retain(|entry| entry.content_digest == content_digest);
        let exists = || RpcError::ModelExists { task: key.task.clone(), model: key.model.clone() };
        versions.pop().ok_or_else(exists)
    }

    /// A version prepared for evaluation, whatever its state.
    ///
    /// # Errors
    /// [`RpcError::UnknownModel`] when it is gone, [`RpcError::Internal`] when it can't be read.
    pub fn prepare(&self, key: &VersionKey) -> Result<PreparedModel, RpcError> {
        let ready = self.read().get(key).and_then(|entry| entry.prepared.clone());
        match ready {
            Some(prepared) => Ok(prepared),
            None => self.stored(key)?.prepare().map_err(internal),
        }
    }

    /// All versions of models for which `wanted` holds, by task, owner, name and version.
    pub fn list(&self, wanted: impl Fn(&ModelKey) -> bool) -> Vec<Entry> {
        self.read().values().filter(|entry| wanted(&entry.key)).cloned().collect()
    }

    /// Every model of a task once, as its version that votes or else its newest that is not erased.
    pub fn present(&self, task: &str) -> Vec<Entry> {
        let mut present: BTreeMap<ModelKey, Entry> = BTreeMap::new();
        for entry in self.list(|key| key.task == task) {
            let hidden =
                entry.erased || !entry.is_ready() && present.get(&entry.key).is_some_and(Entry::is_ready);
            if !hidden {
                present.insert(entry.key.clone(), entry);
            }
        }
        present.into_values().collect()
    }

    /// The newest ready version of every model of a task, in the order of evaluation.
    pub fn ready(&self, task: &str) -> Vec<Entry> {
        self.present(task).into_iter().filter(Entry::is_ready).collect()
    }

    /// The ready version of a model before `version`.
    pub fn ready_before(&self, key: &ModelKey, version: u64) -> Option<Entry> {
        self.versions(key).into_iter().rfind(|entry| entry.is_ready() && entry.version < version)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<VersionKey, Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a version's row.
fn row_of(key: &VersionKey) -> String {
    format!("{}/{:010}", key.model, key.version)
}

impl CompareModels for ModelStore {
    fn compare(&self, _caller: u8, request: &CompareModelRequest) -> Outcome {
        let key = ModelKey {
            task: request.task.clone(),
            owner: request.owner.clone(),
            model: request.model.clone(),
        };
        let Ok(entry) = self.find(&key, &request.content_digest) else { return Outcome::Unknown };
        if entry.erased {
            return Outcome::Unknown;
        }
        let theirs = Terms {
            epoch: request.epoch,
            budget: request.owner_budget_nano_rho.map(NanoRho::new),
            retrained: request.retrained_on_new_data,
        };
        if entry.terms != theirs || entry.version != request.version {
            return Outcome::TermsDiffer;
        }
        match entry.component_digest(self.here, request.component) {
            Some(digest) if digest == request.component_digest[..] => Outcome::Match,
            _ => Outcome::Mismatch,
        }
    }
}

fn unknown(key: &ModelKey) -> RpcError {
    let ModelKey { task, owner, model } = key.clone();
    RpcError::UnknownModel { task, model, owner }
}

pub(crate) fn internal(error: impl std::fmt::Display) -> RpcError {
    RpcError::Internal { problem: error.to_string() }
}

#[cfg(test)]
mod tests;
