//! The owners' models on one server: durable shares, their state, and what is prepared of them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use concilium_inference::{Ensemble, SharedModel};
use concilium_mpc::PartyIndex;
use concilium_mpc::input::Component;
use concilium_network::Architecture;
use concilium_privacy::NanoRho;
use concilium_rpc::lane::CompareModels;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::compare_model_response::Outcome;
use concilium_rpc::v1::{self, CompareModelRequest, ModelState};
use prost::Message;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use thiserror::Error;
use zeroize::Zeroize;

use crate::epochs::Epochs;
use crate::task::Task;

mod stored;

use stored::{StoredModel, load, stored_bytes};

/// Key `task/owner/model`, none of which contains a slash; value an encoded [`StoredModel`].
const MODELS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("models-v3");

/// What older versions wrote: models without epoch, and models that were lists of layers.
const OLD_MODELS: [TableDefinition<'_, &str, &[u8]>; 2] =
    [TableDefinition::new("models-v1"), TableDefinition::new("models-v2")];

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

/// Names a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelKey {
    /// Name of the task.
    pub task: String,
    /// Name of the owner.
    pub owner: String,
    /// Name of the model.
    pub model: String,
}

impl fmt::Display for ModelKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.task, self.owner, self.model)
    }
}

/// On which terms an owner shares a model. Public, and equal on the three servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The epoch of the task for which the model was shared.
    pub epoch: u64,
    /// Most that the owner lets be released about all of its models of this task epoch together; `None`
    /// for no bound of its own. The smallest of an owner's models holds.
    pub budget: Option<NanoRho>,
    /// The owner's statement that the model was trained anew, on records that count in no earlier epoch.
    pub retrained: bool,
}

/// What an owner uploads.
pub struct Upload {
    /// Which model.
    pub key: ModelKey,
    /// Its public part, checked against the task.
    pub architecture: Architecture,
    /// Names this content of the model.
    pub content_digest: [u8; 32],
    /// On which terms.
    pub terms: Terms,
    /// Component i of server i.
    pub own: Component,
    /// Component i + 1 of server i.
    pub next: Component,
}

/// A stored model without its components.
#[derive(Clone)]
pub struct Entry {
    /// Which model.
    pub key: ModelKey,
    /// Its public part.
    pub architecture: Architecture,
    /// Names this content of the model.
    pub content_digest: [u8; 32],
    /// Its state on this server.
    pub state: ModelState,
    /// Why it is rejected or retired, or empty.
    pub reason: String,
    /// On which terms it was shared.
    pub terms: Terms,
    uploaded_at_unix_ms: i64,
    /// Digests of components i and i + 1, for comparison with the neighbours.
    digests: [[u8; 32]; 2],
    /// Prepared for products when the model is ready.
    prepared: Option<Arc<SharedModel>>,
}

impl Entry {
    /// The model as it is listed.
    pub fn to_wire(&self) -> v1::Model {
        v1::Model {
            task: self.key.task.clone(),
            model: self.key.model.clone(),
            owner: self.key.owner.clone(),
            state: self.state.into(),
            reason: self.reason.clone(),
            parameters: self.architecture.parameter_count() as u64,
            uploaded_at_unix_ms: self.uploaded_at_unix_ms,
            content_digest: self.content_digest.to_vec().into(),
            epoch: self.terms.epoch,
            owner_budget_nano_rho: self.terms.budget.map(NanoRho::units),
            retrained_on_new_data: self.terms.retrained,
        }
    }

    /// The digest of this server's component `component`, if it holds that one.
    pub fn component_digest(&self, here: PartyIndex, component: u32) -> Option<[u8; 32]> {
        if component as usize == here.number() {
            Some(self.digests[0])
        } else if component as usize == here.next().number() {
            Some(self.digests[1])
        } else {
            None
        }
    }
}

/// All models of one server.
pub struct ModelStore {
    here: PartyIndex,
    epochs: Epochs,
    path: PathBuf,
    database: Database,
    entries: RwLock<BTreeMap<ModelKey, Entry>>,
}

impl ModelStore {
    /// Opens the store at `path`, creating it if it is missing, and prepares the models that are
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
            entries.insert(entry.key.clone(), entry);
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

    /// Stores a model as staged. The same content again changes nothing; other content replaces a
    /// model that is not ready.
    ///
    /// # Errors
    /// [`RpcError::ModelExists`] for other content of a ready model, [`RpcError::TooLarge`] above
    /// `models_per_owner`, [`RpcError::Internal`] when the disk fails.
    pub fn upload(&self, upload: Upload, models_per_owner: u32, now_unix_ms: i64) -> Result<Entry, RpcError> {
        let Upload { key, architecture, content_digest, terms, own, next } = upload;
        {
            let entries = self.read();
            match entries.get(&key) {
                Some(entry) if entry.content_digest == content_digest && entry.terms == terms => {
                    return Ok(entry.clone());
                }
                Some(entry) if entry.state == ModelState::Ready => {
                    return Err(RpcError::ModelExists { task: key.task, model: key.model });
                }
                _ => {}
            }
            let counts = |other: &&Entry| {
                other.key.task == key.task
                    && other.key.owner == key.owner
                    && other.key != key
                    && other.state != ModelState::Retired
            };
            let others = entries.values().filter(counts).count();
            if others >= models_per_owner as usize {
                return Err(RpcError::TooLarge {
                    what: format!("number of models of owner {} for task {}", key.owner, key.task),
                    limit: models_per_owner.into(),
                    got: others as u64 + 1,
                });
            }
        }
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
        };
        self.save(&stored).map_err(internal)?;
        let entry = load(&stored, &self.epochs).map_err(internal)?;
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(key, entry.clone());
        Ok(entry)
    }

    fn save(&self, stored: &StoredModel) -> Result<(), ModelStoreError> {
        let key = format!("{}/{}/{}", stored.task, stored.owner, stored.model);
        let mut bytes = stored.encode_to_vec();
        let saved = self.write(|table| table.insert(key.as_str(), bytes.as_slice()).map(|_| ()));
        bytes.zeroize();
        saved
    }

    /// Makes a staged model ready or rejected.
    ///
    /// # Errors
    /// [`RpcError::UnknownModel`] when it is gone, [`RpcError::Internal`] when the disk fails.
    pub fn set_state(&self, key: &ModelKey, state: ModelState, reason: &str) -> Result<Entry, RpcError> {
        let name = key.to_string();
        let read = || -> Result<Option<StoredModel>, redb::Error> {
            let table = self.database.begin_read()?.open_table(MODELS)?;
            let row = table.get(name.as_str())?;
            Ok(row.and_then(|row| StoredModel::decode(row.value()).ok()))
        };
        let mut stored = read().map_err(internal)?.ok_or_else(|| unknown(key))?;
        stored.state = state.into();
        stored.reason = reason.to_owned();
        self.save(&stored).map_err(internal)?;
        let entry = load(&stored, &self.epochs).map_err(internal)?;
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), entry.clone());
        Ok(entry)
    }

    /// Deletes a model.
    ///
    /// # Errors
    /// [`RpcError::UnknownModel`] when there is none, [`RpcError::Internal`] when the disk fails.
    pub fn withdraw(&self, key: &ModelKey) -> Result<Entry, RpcError> {
        let entry = self.get(key)?;
        let name = key.to_string();
        self.write(|table| table.remove(name.as_str()).map(|_| ())).map_err(internal)?;
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        Ok(entry)
    }

    /// The model of this key.
    ///
    /// # Errors
    /// [`RpcError::UnknownModel`].
    pub fn get(&self, key: &ModelKey) -> Result<Entry, RpcError> {
        self.read().get(key).cloned().ok_or_else(|| unknown(key))
    }

    /// All models for which `wanted` holds, by task, owner and name.
    pub fn list(&self, wanted: impl Fn(&ModelKey) -> bool) -> Vec<Entry> {
        self.read().values().filter(|entry| wanted(&entry.key)).cloned().collect()
    }

    /// The ready models of a task in the order of evaluation.
    pub fn ready(&self, task: &str) -> Vec<Entry> {
        let ready = |entry: &&Entry| entry.key.task == task && entry.state == ModelState::Ready;
        self.read().values().filter(ready).cloned().collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<ModelKey, Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CompareModels for ModelStore {
    fn compare(&self, _caller: u8, request: &CompareModelRequest) -> Outcome {
        let key = ModelKey {
            task: request.task.clone(),
            owner: request.owner.clone(),
            model: request.model.clone(),
        };
        let Ok(entry) = self.get(&key) else { return Outcome::Unknown };
        if entry.content_digest != request.content_digest[..] {
            return Outcome::Unknown;
        }
        let theirs = Terms {
            epoch: request.epoch,
            budget: request.owner_budget_nano_rho.map(NanoRho::new),
            retrained: request.retrained_on_new_data,
        };
        if entry.terms != theirs {
            return Outcome::TermsDiffer;
        }
        match entry.component_digest(self.here, request.component) {
            Some(digest) if digest == request.component_digest[..] => Outcome::Match,
            _ => Outcome::Mismatch,
        }
    }
}

/// A digest of which models take part, equal on all servers that hold the same.
fn model_set_digest<'a>(models: impl Iterator<Item = (&'a str, &'a str, &'a [u8])>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("concilium v1 model set");
    for (owner, model, content) in models {
        for part in [owner.as_bytes(), model.as_bytes(), content] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    }
    *hasher.finalize().as_bytes()
}

/// The digest of a model set.
pub(crate) fn digest_of(models: &[Entry]) -> [u8; 32] {
    model_set_digest(
        models.iter().map(|entry| {
            (entry.key.owner.as_str(), entry.key.model.as_str(), entry.content_digest.as_slice())
        }),
    )
}

/// The models that answer a task together.
///
/// # Errors
/// [`RpcError::NoModels`] when there is none, [`RpcError::Internal`] when one does not fit the task,
/// which uploading has excluded.
pub fn ensemble(task: &Task, entries: &[Entry]) -> Result<Ensemble, RpcError> {
    if entries.is_empty() {
        return Err(RpcError::NoModels { task: task.name().to_owned() });
    }
    let models = entries.iter().filter_map(|entry| entry.prepared.clone()).collect();
    Ensemble::new(models, task.domain.features(), task.policy.bins, task.fractional_bits).map_err(internal)
}

fn unknown(key: &ModelKey) -> RpcError {
    let ModelKey { task, owner, model } = key.clone();
    RpcError::UnknownModel { task, model, owner }
}

pub(crate) fn internal(error: impl fmt::Display) -> RpcError {
    RpcError::Internal { problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_of_an_older_version_is_refused_by_its_path() {
        for table in OLD_MODELS {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("models.redb");
            let database = Database::create(&path).expect("a new file");
            let transaction = database.begin_write().expect("a transaction");
            transaction.open_table(table).expect("a new table");
            transaction.commit().expect("written");
            drop(database);
            let here = PartyIndex::ALL[0];
            let refusal = ModelStore::open(here, &path, Epochs::default()).err().expect("must be refused");
            assert!(matches!(refusal, ModelStoreError::Schema { .. }), "{refusal}");
            assert!(refusal.to_string().contains("share their models again"), "{refusal}");
        }
    }
}
