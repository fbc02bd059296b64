//! The models that answer together, and what every server keeps of which they were.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use concilium_inference::{Ensemble, RingElement};
use concilium_rpc::model_set::model_set_digest;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::{ModelSet, ModelVersion};
use prost::Message;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Entry, ModelStoreError, internal};
use crate::task::Task;

/// Key digest of the set, value an encoded [`ModelSet`]. Nothing is ever taken out.
const SETS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("model-sets-v1");

/// Most sets of one answer.
const MOST_FOUND: usize = 16;

/// Fewest bytes by which a set can be asked for.
const SHORTEST_PREFIX: usize = 8;

fn versions(models: &[Entry]) -> Vec<ModelVersion> {
    let version = |entry: &Entry| ModelVersion {
        owner: entry.key.owner.clone(),
        model: entry.key.model.clone(),
        version: entry.version,
        content_digest: entry.content_digest.to_vec().into(),
    };
    models.iter().map(version).collect()
}

/// The digest of a model set, equal on all servers that hold the same.
pub(crate) fn digest_of(models: &[Entry]) -> [u8; 32] {
    let task = models.first().map_or("", |entry| entry.key.task.as_str());
    model_set_digest(task, &versions(models))
}

/// The models that answer a task together.
///
/// # Errors
/// [`RpcError::NoModels`] when there is none, [`RpcError::Internal`] when one does not fit the task,
/// which uploading has excluded.
pub fn ensemble<E: RingElement>(task: &Task, entries: &[Entry]) -> Result<Ensemble<E>, RpcError> {
    if entries.is_empty() {
        return Err(RpcError::NoModels { task: task.name().to_owned() });
    }
    let models = entries.iter().filter_map(|entry| entry.prepared.as_ref());
    let (features, bits) = (task.domain.features(), task.precision.fractional_bits);
    Ensemble::of_prepared(models, features, task.policy.bins, bits).map_err(internal)
}

/// Every set of models of which this server has released an answer, by its digest. It holds no secret, and
/// is a file of its own: receipts are resolved by it when the models are long gone.
pub struct ModelSets {
    path: PathBuf,
    database: Database,
    /// Sets that are known to be stored.
    noted: RwLock<HashSet<[u8; 32]>>,
}

impl ModelSets {
    /// Opens the file at `path`, creating it if it is missing.
    ///
    /// # Errors
    /// [`ModelStoreError::Storage`] naming the file.
    pub fn open(path: &Path) -> Result<Self, ModelStoreError> {
        let failed = |error: redb::Error| storage(path, &error);
        let database = Database::create(path).map_err(|error| failed(error.into()))?;
        let create = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            transaction.open_table(SETS)?;
            Ok(transaction.commit()?)
        };
        create().map_err(failed)?;
        Ok(ModelSets { path: path.to_owned(), database, noted: RwLock::default() })
    }

    /// Notes durably that `models` answer `task`, before the first answer of theirs leaves.
    ///
    /// # Errors
    /// [`ModelStoreError::Storage`] naming the file.
    pub fn note(&self, task: &Task, models: &[Entry], now_unix_ms: i64) -> Result<(), ModelStoreError> {
        let digest = digest_of(models);
        if self.noted.read().unwrap_or_else(PoisonError::into_inner).contains(&digest) {
            return Ok(());
        }
        let set = ModelSet {
            digest: digest.to_vec().into(),
            task: task.name().to_owned(),
            epoch: task.policy.epoch,
            first_used_unix_ms: now_unix_ms,
            models: versions(models),
        };
        let write = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            {
                let mut table = transaction.open_table(SETS)?;
                if table.get(digest.as_slice())?.is_none() {
                    table.insert(digest.as_slice(), set.encode_to_vec().as_slice())?;
                }
            }
            Ok(transaction.commit()?)
        };
        write().map_err(|error| storage(&self.path, &error))?;
        self.noted.write().unwrap_or_else(PoisonError::into_inner).insert(digest);
        Ok(())
    }

    /// The sets whose digests begin with `prefix`, 16 at most.
    ///
    /// # Errors
    /// [`RpcError::InvalidRequest`] for a prefix of fewer than 8 or more than 32 bytes,
    /// [`RpcError::Internal`] when the file can't be read.
    pub fn find(&self, prefix: &[u8]) -> Result<Vec<ModelSet>, RpcError> {
        if !(SHORTEST_PREFIX..=32).contains(&prefix.len()) {
            return Err(RpcError::InvalidRequest {
                field: "digest".to_owned(),
                problem: format!("has {} bytes; {SHORTEST_PREFIX} to 32 are allowed", prefix.len()),
            });
        }
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(SETS)?;
            let mut found = Vec::new();
            for row in table.range(prefix..)? {
                let (key, value) = row?;
                if !key.value().starts_with(prefix) || found.len() == MOST_FOUND {
                    break;
                }
                found.push(value.value().to_vec());
            }
            Ok(found)
        };
        let found = read().map_err(|error| internal(storage(&self.path, &error)))?;
        found.iter().map(|set| ModelSet::decode(set.as_slice()).map_err(internal)).collect()
    }
}

fn storage(path: &Path, error: &redb::Error) -> ModelStoreError {
    ModelStoreError::Storage { path: path.to_owned(), reason: error.to_string() }
}
