//! The models on the three servers: what is there, and taking one away.

use std::collections::BTreeMap;

use concilium_client_library::{
    Connection, ServerError,
    connection::{CallError, most_useful},
    retry::RetryPolicy,
    terminal::FailureClass,
};
use concilium_privacy::NanoRho;
use concilium_rpc::{
    status::RpcError,
    v1::{
        ListModelsRequest, Model, ModelState, SelfTestFigures, WithdrawRequest,
        model_store_client::ModelStoreClient,
    },
};
use thiserror::Error;

/// Most models that one server may list.
const MAXIMUM_MODELS: usize = 1 << 20;

/// One version of a model as the three servers have it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelEverywhere {
    /// Name of the task.
    pub task: String,
    /// Name of the owner.
    pub owner: String,
    /// Name of the model.
    pub name: String,
    /// Number of the version; 0 from servers that know no versions.
    pub version: u64,
    /// The version on servers 0, 1, 2; `None` where it is not, or where the server did not answer.
    pub copies: [Option<Model>; 3],
}

impl ModelEverywhere {
    /// Whether the version can vote: it is READY with the same content on all three servers.
    pub fn is_ready(&self) -> bool {
        let [Some(first), Some(second), Some(third)] = &self.copies else { return false };
        [first, second, third]
            .iter()
            .all(|copy| copy.state() == ModelState::Ready && copy.content_digest == first.content_digest)
    }

    /// Whether nothing is left of the version but its name, on every server that has it.
    pub fn is_retired(&self) -> bool {
        self.copies.iter().flatten().all(|copy| copy.state() == ModelState::Retired)
    }

    /// What the self-test took; the longest time if the servers measured different ones.
    pub fn self_test(&self) -> Option<SelfTestFigures> {
        self.copies.iter().flatten().filter_map(|copy| copy.self_test).max_by_key(|test| test.microseconds)
    }

    /// Weights and biases, as the servers count them; the largest number if they differ.
    pub fn parameters(&self) -> u64 {
        self.copies.iter().flatten().map(|copy| copy.parameters).max().unwrap_or(0)
    }

    /// The epoch for which it was shared; the latest if the copies differ.
    pub fn epoch(&self) -> u64 {
        self.copies.iter().flatten().map(|copy| copy.epoch).max().unwrap_or(0)
    }

    /// The owner's own budget for all its models of the epoch, if this one sets one; the smallest if the
    /// copies differ.
    pub fn budget(&self) -> Option<NanoRho> {
        let budgets = self.copies.iter().flatten().filter_map(|copy| copy.owner_budget_nano_rho);
        budgets.min().map(NanoRho::new)
    }

    /// The state in words: of all servers together, or of each where they differ.
    pub fn state(&self) -> String {
        let word = |copy: &Option<Model>| match copy.as_ref().map(|copy| (copy.state(), &copy.reason)) {
            None => "absent".to_owned(),
            Some((ModelState::Ready, _)) => "ready".to_owned(),
            Some((ModelState::Staged, _)) => "staged".to_owned(),
            Some((ModelState::Rejected, reason)) => format!("rejected ({reason})"),
            Some((ModelState::Retired, reason)) => format!("retired ({reason})"),
            Some((ModelState::Unspecified, _)) => "unknown".to_owned(),
        };
        let [first, second, third] = self.copies.each_ref().map(word);
        if first == second && second == third {
            return if first == "ready" && !self.is_ready() {
                "ready, contents differ".to_owned()
            } else {
                first
            };
        }
        format!("{first} on server 0, {second} on server 1, {third} on server 2")
    }
}

/// The models of a caller, as far as the servers told.
#[derive(Debug, Default)]
pub struct Listing {
    /// Ordered by task, owner, name and version.
    pub models: Vec<ModelEverywhere>,
    /// Why some servers told nothing.
    pub errors: Vec<ServerError>,
}

impl Listing {
    /// The listing, if all three servers told theirs.
    ///
    /// # Errors
    /// Of the servers' errors the one that says most about the cause.
    pub fn complete(self) -> Result<Vec<ModelEverywhere>, ServerError> {
        most_useful(self.errors).map_or(Ok(self.models), Err)
    }
}

/// Lists the caller's models of one task, or of all: an owner's own models, or all models for an
/// operator.
pub async fn list(connection: &Connection, task: Option<&str>) -> Listing {
    let request = ListModelsRequest { task: task.unwrap_or_default().to_owned() };
    let answers = connection
        .call_all_repeating("List", &RetryPolicy::default(), |_, channel| {
            let request = request.clone();
            async move {
                let models = ModelStoreClient::new(channel).list(request).await?.into_inner().models;
                if models.len() > MAXIMUM_MODELS {
                    return Err(CallError::Malformed(format!("{} models", models.len())));
                }
                Ok(models)
            }
        })
        .await;
    let mut errors = Vec::new();
    let lists = answers.map(|answer| match answer {
        Ok(models) => models,
        Err(error) => {
            errors.push(error);
            Vec::new()
        }
    });
    Listing { models: join(lists), errors }
}

/// Puts the lists of servers 0, 1, 2 together.
fn join(lists: [Vec<Model>; 3]) -> Vec<ModelEverywhere> {
    let mut models: BTreeMap<(String, String, String, u64), [Option<Model>; 3]> = BTreeMap::new();
    for (server, list) in lists.into_iter().enumerate() {
        for model in list {
            let key = (model.task.clone(), model.owner.clone(), model.model.clone(), model.version);
            models.entry(key).or_default()[server] = Some(model);
        }
    }
    let joined =
        |((task, owner, name, version), copies)| ModelEverywhere { task, owner, name, version, copies };
    models.into_iter().map(joined).collect()
}

/// What is of use now: versions that are not retired, and of a model without any the newest.
pub fn present(models: Vec<ModelEverywhere>) -> Vec<ModelEverywhere> {
    let of_next = models.iter().skip(1).map(|next| Some((&next.task, &next.owner, &next.name)));
    let wanted: Vec<bool> = models
        .iter()
        .zip(of_next.chain([None]))
        .map(|(model, next)| {
            let is_newest = next != Some((&model.task, &model.owner, &model.name));
            let others = || {
                models.iter().filter(|other| {
                    (&other.task, &other.owner, &other.name) == (&model.task, &model.owner, &model.name)
                })
            };
            !model.is_retired() || is_newest && others().all(ModelEverywhere::is_retired)
        })
        .collect();
    models.into_iter().zip(wanted).filter_map(|(model, wanted)| wanted.then_some(model)).collect()
}

/// Why a model was not withdrawn everywhere.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WithdrawError {
    /// A server did not withdraw it. Without the others' copies it does not vote any more.
    #[error("{source}{}; repeat the command to withdraw it there", withdrawn_from(servers))]
    Server {
        /// Servers that did.
        servers: Vec<u8>,
        /// Why the other one did not.
        source: ServerError,
    },
    /// No server has it.
    #[error("no server has a model `{model}` of task `{task}`; `concilium-owner list` shows the names")]
    Unknown {
        /// Name of the task.
        task: String,
        /// Name of the model.
        model: String,
    },
}

fn withdrawn_from(servers: &[u8]) -> String {
    match servers {
        [] => String::new(),
        servers => {
            let servers: Vec<_> = servers.iter().map(u8::to_string).collect();
            format!(" (withdrawn from server {})", servers.join(" and "))
        }
    }
}

impl WithdrawError {
    /// What kind of failure it is, for the exit code of a program.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Server { source, .. } => source.class(),
            Self::Unknown { .. } => FailureClass::Input,
        }
    }
}

/// What is withdrawn.
#[derive(Clone, Debug, Default)]
pub struct Withdrawal<'a> {
    /// Name of the task.
    pub task: &'a str,
    /// Name of the model.
    pub model: &'a str,
    /// Only this version; 0 for all.
    pub version: u64,
    /// Name of the owner; needed by operators only.
    pub owner: &'a str,
    /// Why, for those who list the model; may be empty.
    pub reason: &'a str,
}

/// Takes a model away from all three servers, erases its shares there, and returns the servers that had it.
/// A server that does not have it is no error as long as another one does, so that an interrupted withdrawal
/// can be repeated.
///
/// # Errors
/// [`WithdrawError`].
pub async fn withdraw(
    connection: &Connection,
    &Withdrawal { task, model, version, owner, reason }: &Withdrawal<'_>,
) -> Result<Vec<u8>, WithdrawError> {
    let request = WithdrawRequest {
        task: task.to_owned(),
        model: model.to_owned(),
        owner: owner.to_owned(),
        version,
        reason: reason.to_owned(),
    };
    let answers = connection
        .call_all_repeating("Withdraw", &RetryPolicy::default(), |_, channel| {
            let request = request.clone();
            async move {
                ModelStoreClient::new(channel).withdraw(request).await?;
                Ok(())
            }
        })
        .await;
    outcome(answers, task, model)
}

fn outcome(answers: [Result<(), ServerError>; 3], task: &str, name: &str) -> Result<Vec<u8>, WithdrawError> {
    let mut servers = Vec::new();
    let mut errors = Vec::new();
    for (server, answer) in (0..).zip(answers) {
        match answer {
            Ok(()) => servers.push(server),
            Err(error) if matches!(error.refusal(), Some(RpcError::UnknownModel { .. })) => {}
            Err(error) => errors.push(error),
        }
    }
    match most_useful(errors) {
        Some(source) => Err(WithdrawError::Server { servers, source }),
        None if servers.is_empty() => {
            Err(WithdrawError::Unknown { task: task.to_owned(), model: name.to_owned() })
        }
        None => Ok(servers),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn model(name: &str, state: ModelState, digest: u8) -> Model {
        Model {
            task: "digits".into(),
            model: name.into(),
            owner: "ward-7".into(),
            state: state.into(),
            reason: if state == ModelState::Rejected { "copies differ".into() } else { String::new() },
            parameters: 42,
            uploaded_at_unix_ms: 0,
            content_digest: vec![digest; 32].into(),
            epoch: 1,
            owner_budget_nano_rho: Some(500_000_000),
            retrained_on_new_data: false,
            version: 1,
            self_test: None,
            erased: false,
        }
    }

    #[test]
    fn what_is_of_use_is_shown() {
        let version = |name: &str, version, state| Model { version, ..model(name, state, version as u8) };
        let list = || {
            vec![
                version("a", 1, ModelState::Retired),
                version("a", 2, ModelState::Ready),
                version("a", 3, ModelState::Staged),
                version("b", 1, ModelState::Retired),
                version("b", 2, ModelState::Retired),
                version("c", 1, ModelState::Ready),
                version("c", 2, ModelState::Retired),
            ]
        };
        let shown = present(join([list(), list(), list()]));
        let shown: Vec<_> = shown.iter().map(|model| (model.name.as_str(), model.version)).collect();
        assert_eq!(shown, [("a", 2), ("a", 3), ("b", 2), ("c", 1)]);
    }

    #[test]
    fn lists_are_joined_by_name() {
        let ready = |name| model(name, ModelState::Ready, 1);
        let models = join([
            vec![ready("b"), ready("a"), model("c", ModelState::Staged, 1)],
            vec![ready("a"), ready("b"), model("c", ModelState::Rejected, 1)],
            vec![ready("a"), model("b", ModelState::Ready, 2)],
        ]);
        let states: Vec<_> = models.iter().map(|model| (model.name.as_str(), model.is_ready())).collect();
        assert_eq!(states, [("a", true), ("b", false), ("c", false)]);
        assert_eq!(models[0].state(), "ready");
        assert_eq!(models[1].state(), "ready, contents differ");
        assert_eq!(
            models[2].state(),
            "staged on server 0, rejected (copies differ) on server 1, absent on server 2"
        );
        assert_eq!(models[0].parameters(), 42);
    }

    #[test]
    fn a_repeated_withdrawal_succeeds_where_the_model_was_left() {
        let refused = |server: u8, source| {
            Err(ServerError::Refused {
                server,
                address: "host:1".into(),
                source: Box::new(source),
                retry_after: None,
            })
        };
        let unknown = || RpcError::UnknownModel { task: "t".into(), model: "m".into(), owner: "o".into() };
        let broken = || RpcError::Internal { problem: "disk".into() };
        assert_eq!(outcome([Ok(()), Ok(()), Ok(())], "t", "m").unwrap(), [0, 1, 2]);
        assert_eq!(outcome([refused(0, unknown()), Ok(()), refused(2, unknown())], "t", "m").unwrap(), [1]);
        let nowhere = [0, 1, 2].map(|server| refused(server, unknown()));
        let error = outcome(nowhere, "t", "m").unwrap_err();
        assert!(matches!(error, WithdrawError::Unknown { .. }), "{error}");
        assert_eq!(error.class(), FailureClass::Input);
        let error = outcome([Ok(()), refused(1, broken()), refused(2, unknown())], "t", "m").unwrap_err();
        assert!(error.to_string().contains("withdrawn from server 0"), "{error}");
        assert_eq!(error.class(), FailureClass::Unavailable);
    }
}
