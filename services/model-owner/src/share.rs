//! Sharing a model: quantise, deal, upload to three servers, activate on all of them.

use std::{
    collections::VecDeque,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use concilium_client_library::{
    Connection, ServerError, Task,
    connection::{CallError, all_or_most_useful},
    retry::RetryPolicy,
    sharing::{Part, share},
    terminal::FailureClass,
};
use concilium_inference::flatten;
use concilium_mpc::input::{DealtShare, InputError as SharingError};
use concilium_network::{FixedNetwork, Network, Precision, QuantiseError, Ring, quantise};
use concilium_privacy::{EpochBasis, EpochDeclaration, NanoRho};
use concilium_ring::{Z32, Z64};
use concilium_rpc::{
    identity::{IdentityError, check_name},
    v1::{
        ActivateRequest, Model, ModelState, SelfTestFigures, UploadHeader, UploadRequest,
        model_store_client::ModelStoreClient, upload_request::Message,
    },
};
use rand::{TryRng as _, rngs::SysRng};
use thiserror::Error;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::{
    store::{self, ModelEverywhere, WithdrawError, Withdrawal},
    target::{Target, TargetError},
};

/// How long the servers may take to show an activated model as ready.
const READY_WAIT: Duration = Duration::from_secs(30);

/// Pause between looks at the state.
const READY_PAUSE: Duration = Duration::from_millis(200);

/// Called with the number of bytes handed to the transport.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// How a model is shared.
#[derive(Clone, Default)]
pub struct ShareOptions {
    /// Share the next version of a ready model of the same name; that one votes until this one is ready.
    pub replace: bool,
    /// Most that the owner lets be released about all its models of the task's epoch together; `None` for
    /// no bound of its own.
    pub budget: Option<NanoRho>,
    /// The owner's statement that the model was trained anew, on records that count in no earlier epoch of
    /// the task. A task whose epoch began with nothing spent asks for it.
    pub retrained: bool,
    /// How failed calls are repeated.
    pub retry: RetryPolicy,
    /// Is told of every piece that is sent.
    pub progress: Option<Progress>,
}

/// How sharing ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shared {
    /// The model was uploaded and is ready on all three servers.
    Ready {
        /// Weights and biases.
        parameters: usize,
        /// Bytes of shares sent to servers 0, 1, 2; seeds are not counted.
        bytes: [u64; 3],
        /// From the first byte sent until the model was ready everywhere.
        elapsed: Duration,
        /// Number of the version; 0 from servers that know no versions.
        version: u64,
        /// What the three servers' self-test took.
        self_test: Option<SelfTestFigures>,
    },
    /// A model of this name and number of parameters was ready before, and nothing was sent. Whether it
    /// is the same model cannot be known: the servers hold nothing by which its content could be
    /// recognised.
    AlreadyReady,
}

/// Why a model was not shared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The model's name is not allowed.
    #[error("{0}; choose a name with --name")]
    Name(#[from] IdentityError),
    /// The model does not answer the task's question.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The model does not fit the fixed-point format of the task.
    #[error(
        "the model cannot be shared for task `{task}`: {source} (the task fixes the fractional bits; \
         `concilium-owner check` shows the ranges)"
    )]
    Quantise {
        /// Name of the task.
        task: String,
        /// What does not fit.
        source: QuantiseError,
    },
    /// The epoch is for new models only, and nobody says that this is one.
    #[error(
        "epoch {epoch} of task `{task}` began with nothing spent, because all its models are trained anew on records \
         that do not count in earlier epochs ({attested_by} answers for that); if that is so for this model, say it \
         with --retrained-on-new-data, and if not, do not share it"
    )]
    NotSaidToBeNew {
        /// Name of the task.
        task: String,
        /// Its epoch.
        epoch: u64,
        /// Who answers for the epoch.
        attested_by: String,
    },
    /// The system gives no randomness. Nothing was sent.
    #[error(transparent)]
    Randomness(#[from] SharingError),
    /// Another model of this name is ready.
    #[error(
        "task `{task}` already has a model `{model}`, with {there} parameters where this one has {here}; \
         choose another --name, or replace it with --replace"
    )]
    Exists {
        /// Name of the task.
        task: String,
        /// Name of the model.
        model: String,
        /// Parameters of the model on the servers.
        there: u64,
        /// Parameters of this one.
        here: u64,
    },
    /// What an earlier attempt has left cannot be removed.
    #[error("cannot remove the earlier upload of `{model}`: {source}")]
    Withdraw {
        /// Name of the model.
        model: String,
        /// Why.
        source: WithdrawError,
    },
    /// A server failed.
    #[error("{step} `{model}`: {source}{}", remedy(source))]
    Server {
        /// What was being done.
        step: &'static str,
        /// Name of the model.
        model: String,
        /// Why.
        source: ServerError,
    },
    /// The servers do not show the model as ready.
    #[error("`{model}` is {state} after its activation; ask the servers' operators or share it again")]
    NotReady {
        /// Name of the model.
        model: String,
        /// The states.
        state: String,
    },
}

fn remedy(error: &ServerError) -> &'static str {
    if error.retryable() {
        "; repeat the command: what votes now votes on, and nothing new votes before all three servers have it"
    } else {
        ""
    }
}

impl ShareError {
    /// What kind of failure it is, for the exit code of a program.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Name(_)
            | Self::Target(_)
            | Self::Quantise { .. }
            | Self::NotSaidToBeNew { .. }
            | Self::Exists { .. } => FailureClass::Input,
            Self::Randomness(_) => FailureClass::Local,
            Self::Withdraw { source, .. } => source.class(),
            Self::Server { source, .. } => source.class(),
            Self::NotReady { .. } => FailureClass::Refused,
        }
    }
}

/// The name under which a file is shared, unless the user gives one: its name without the ending, in
/// lower case, `_` and `.` and spaces as `-`.
///
/// # Errors
/// [`ShareError::Name`] if that is not allowed as a name.
pub fn model_name(path: &Path) -> Result<String, ShareError> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let name: String = stem.chars().map(|c| if matches!(c, '_' | '.' | ' ') { '-' } else { c }).collect();
    check_name(&name)?;
    Ok(name)
}

/// Brings a network to the fixed-point format of a task. `retrained` is the owner's statement that it was
/// trained anew on new data.
///
/// # Errors
/// [`ShareError::NotSaidToBeNew`] if the task asks for that statement, [`ShareError::Target`] or
/// [`ShareError::Quantise`] if the network does not fit.
pub fn prepare(task: &Task, network: &Network, retrained: bool) -> Result<FixedNetwork, ShareError> {
    if let Some(EpochDeclaration { basis: EpochBasis::Retrained, attested_by }) = &task.declaration
        && !retrained
    {
        let (task, epoch, attested_by) = (task.name.clone(), task.epoch, attested_by.clone());
        return Err(ShareError::NotSaidToBeNew { task, epoch, attested_by });
    }
    Target::of_task(task).check_classes(network)?;
    let precision = Precision { ring: task.ring, fractional_bits: task.fractional_bits };
    quantise(network, &task.domain, precision)
        .map_err(|source| ShareError::Quantise { task: task.name.clone(), source })
}

/// Shares `network` as model `name` of `task` and waits until it is ready on all three servers.
///
/// Repeating it is safe. A complete model of the same name and size is left alone, unless it is to be
/// replaced; what an interrupted attempt has left gives way. A model that is replaced votes until its
/// successor is ready on all three servers, whatever fails before.
///
/// # Errors
/// [`ShareError`] names the server and the step.
pub async fn share_model(
    connection: &Connection,
    task: &Task,
    name: &str,
    network: &Network,
    options: &ShareOptions,
) -> Result<Shared, ShareError> {
    check_name(name)?;
    let fixed = prepare(task, network, options.retrained)?;
    let parameters = fixed.architecture().parameter_count();
    let failed = |step| move |source| ShareError::Server { step, model: name.to_owned(), source };

    let found = find(connection, &task.name, name).await.map_err(failed("looking for"))?;
    let version = match plan(&found, parameters as u64, options.replace) {
        Plan::Leave => return Ok(Shared::AlreadyReady),
        Plan::Refuse { there } => {
            return Err(ShareError::Exists {
                task: task.name.clone(),
                model: name.to_owned(),
                there,
                here: parameters as u64,
            });
        }
        Plan::Upload { withdraw, version } => {
            for version in withdraw {
                let reason = if version == 0 { "" } else { "left by an interrupted upload" };
                let left =
                    Withdrawal { task: &task.name, model: name, version, reason, ..Withdrawal::default() };
                store::withdraw(connection, &left)
                    .await
                    .map_err(|source| ShareError::Withdraw { model: name.to_owned(), source })?;
            }
            version
        }
    };

    let upload = Upload::new(task, name, version, &fixed, options)?;
    let begin = Instant::now();
    let uploads = connection.call_all_repeating("Upload", &options.retry, |server, channel| {
        upload.send(server, channel, options.progress.clone())
    });
    all_or_most_useful(uploads.await).map_err(failed("uploading"))?;
    let activations = connection
        .call_all_repeating("Activate", &options.retry, |_, channel| activate(channel, upload.activation()));
    all_or_most_useful(activations.await).map_err(failed("activating"))?;

    let deadline = Instant::now() + READY_WAIT;
    let ready = loop {
        let found = find(connection, &task.name, name).await.map_err(failed("looking for"))?;
        // A server that knows no versions has one only.
        let found = found.into_iter().rfind(|model| [0, version].contains(&model.version));
        match found {
            Some(model) if model.is_ready() => break model,
            found if Instant::now() >= deadline => {
                let state = found.map_or_else(|| "absent".to_owned(), |model| model.state());
                return Err(ShareError::NotReady { model: name.to_owned(), state });
            }
            _ => tokio::time::sleep(READY_PAUSE).await,
        }
    };
    let bytes = upload.parts.each_ref().map(Part::data_bytes);
    let (version, self_test) = (ready.version, ready.self_test());
    Ok(Shared::Ready { parameters, bytes, elapsed: begin.elapsed(), version, self_test })
}

/// The versions of the caller's own model of this name, the oldest first.
async fn find(connection: &Connection, task: &str, name: &str) -> Result<Vec<ModelEverywhere>, ServerError> {
    let mut models = store::list(connection, Some(task)).await.complete()?;
    let owner = connection.identity().name();
    models.retain(|model| model.name == name && model.owner == owner);
    Ok(models)
}

/// What to do about a model that the servers already have under this name.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Withdraw these versions (0: the model as a whole) and upload this one.
    Upload {
        withdraw: Vec<u64>,
        version: u64,
    },
    Leave,
    Refuse {
        there: u64,
    },
}

/// Decides by the versions that the servers have, the oldest first.
fn plan(found: &[ModelEverywhere], parameters: u64, replace: bool) -> Plan {
    let votes = found.iter().rfind(|model| model.is_ready());
    if let (Some(votes), false) = (votes, replace) {
        return match votes.parameters() {
            there if there == parameters => Plan::Leave,
            there => Plan::Refuse { there },
        };
    }
    let left = |model: &&ModelEverywhere| {
        // What votes stays until the next version is ready, unless the servers know no versions. What an
        // interrupted attempt has left can't be completed: its random parts are gone.
        !model.is_retired() && (votes.is_none_or(|votes| model.version > votes.version) || model.version == 0)
    };
    let withdraw = found.iter().filter(left).map(|model| model.version).collect();
    let newest = found.iter().map(|model| model.version).max().unwrap_or(0);
    Plan::Upload { withdraw, version: newest + 1 }
}

/// Everything that is sent about one model, the same in every attempt.
struct Upload {
    task: String,
    model: String,
    architecture: Bytes,
    content_digest: Bytes,
    epoch: u64,
    budget: Option<NanoRho>,
    retrained: bool,
    version: u64,
    parts: [Part; 3],
}

impl Upload {
    fn new(
        task: &Task,
        name: &str,
        version: u64,
        fixed: &FixedNetwork,
        &ShareOptions { budget, retrained, .. }: &ShareOptions,
    ) -> Result<Self, ShareError> {
        let architecture = serde_json::to_vec(&fixed.architecture())
            .expect("an architecture consists of numbers and names, which JSON can hold");
        let mut key = Zeroizing::new([0; 32]);
        SysRng.try_fill_bytes(key.as_mut()).map_err(|error| SharingError::Randomness(error.to_string()))?;
        let digest = |dealt: &[DealtShare; 3]| content_digest(&key, &task.name, name, &architecture, dealt);
        let (parts, content_digest) = match fixed.precision().ring {
            Ring::Bits64 => share(flatten::<Z64>(fixed), &mut SysRng, digest)?,
            Ring::Bits32 => share(flatten::<Z32>(fixed), &mut SysRng, digest)?,
        };
        Ok(Self {
            task: task.name.clone(),
            model: name.to_owned(),
            architecture: architecture.into(),
            content_digest: content_digest.to_vec().into(),
            epoch: task.epoch,
            budget,
            retrained,
            version,
            parts,
        })
    }

    fn send(
        &self,
        server: u8,
        channel: Channel,
        progress: Option<Progress>,
    ) -> impl Future<Output = Result<(), CallError>> + Send + use<> {
        let part = &self.parts[usize::from(server)];
        let header = UploadHeader {
            task: self.task.clone(),
            model: self.model.clone(),
            architecture: self.architecture.clone(),
            own: Some(part.own()),
            next: Some(part.next()),
            content_digest: self.content_digest.clone(),
            epoch: self.epoch,
            owner_budget_nano_rho: self.budget.map(NanoRho::units),
            retrained_on_new_data: self.retrained,
            version: self.version,
        };
        let messages = Messages { header: Some(header), chunks: part.chunks().collect(), progress };
        let stream = tokio_stream::iter(messages);
        async move {
            let answer = ModelStoreClient::new(channel).upload(stream).await?.into_inner();
            stored(answer.model).map(|_| ())
        }
    }

    fn activation(&self) -> ActivateRequest {
        ActivateRequest {
            task: self.task.clone(),
            model: self.model.clone(),
            content_digest: self.content_digest.clone(),
        }
    }
}

/// The messages of one upload, which tell the progress when the transport takes them. A type of its own,
/// because the compiler cannot prove adaptors with closures to be `Send` here.
struct Messages {
    header: Option<UploadHeader>,
    chunks: VecDeque<Bytes>,
    progress: Option<Progress>,
}

impl Iterator for Messages {
    type Item = UploadRequest;

    fn next(&mut self) -> Option<UploadRequest> {
        let message = match self.header.take() {
            Some(header) => Message::Header(header),
            None => {
                let chunk = self.chunks.pop_front()?;
                if let Some(progress) = &self.progress {
                    progress(chunk.len() as u64);
                }
                Message::Chunk(chunk)
            }
        };
        Some(UploadRequest { message: Some(message) })
    }
}

async fn activate(channel: Channel, request: ActivateRequest) -> Result<(), CallError> {
    let answer = ModelStoreClient::new(channel).activate(request).await?.into_inner();
    let model = stored(answer.model)?;
    match model.state() {
        ModelState::Ready => Ok(()),
        // A rejection comes as a status; a server that sends it like this is told apart nonetheless.
        _ => Err(CallError::Malformed(format!("an activated model that is not ready: {}", model.reason))),
    }
}

fn stored(model: Option<Model>) -> Result<Model, CallError> {
    model.ok_or_else(|| CallError::Malformed("an answer without the model".to_owned()))
}

/// Names the content of a model to the three servers and tells them nothing: it is keyed with a fresh
/// random key that is forgotten, because a plain digest would let a server that knows two components
/// confirm a guess of the weights.
fn content_digest(
    key: &[u8; 32],
    task: &str,
    name: &str,
    architecture: &[u8],
    dealt: &[DealtShare; 3],
) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for text in [task.as_bytes(), name.as_bytes(), architecture] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    for share in dealt {
        hasher.update(&share.own.digest(key));
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests;
