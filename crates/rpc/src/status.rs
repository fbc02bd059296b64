//! The one table of errors: reason, gRPC status code, whether a caller may retry, and the message.
//!
//! A server answers with [`RpcError`], which becomes a [`tonic::Status`] with
//! `google.rpc.ErrorInfo` (domain [`ERROR_DOMAIN`], the reason, and the fields as metadata) and, where
//! they apply, `RetryInfo` and `QuotaFailure`. A client turns the status back with
//! [`RpcError::from_status`]. The head comments of the `.proto` files repeat the table for their
//! callers; a test compares them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, QuotaViolation, StatusExt as _};

use crate::{time, v1::Refusal};

/// The domain of every `google.rpc.ErrorInfo` that a server sends.
pub const ERROR_DOMAIN: &str = "concilium";

/// Longest text that one field of an error carries, in bytes. Errors repeat what a caller sent, and
/// a status travels in HTTP/2 headers, whose size is limited.
const MAX_FIELD_BYTES: usize = 400;

/// Longest message of a status, in bytes; the limit of the headers is shared with the metadata.
const MAX_MESSAGE_BYTES: usize = 1200;

/// Codes of a status without a reason, which no server sends: the transport, a proxy or a deadline lost
/// the call, and it may be repeated.
pub const TRANSPORT_CODES: [Code; 5] =
    [Code::Cancelled, Code::DeadlineExceeded, Code::Internal, Code::Unavailable, Code::Unknown];

/// Whether a caller may repeat a refused call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call fails again until something else changes.
    Never,
    /// The same call may be repeated at once; `Predict` under the same request id.
    Repeat,
    /// The same call may be repeated after the delay of `google.rpc.RetryInfo`.
    AfterDelay,
}

/// Declares [`RpcError`]: one entry holds everything about one error, so that the enum, the codes and
/// both conversions cannot drift apart.
macro_rules! error_table {
    ($(
        $(#[$attribute:meta])*
        $variant:ident { $($(#[$field_attribute:meta])* $field:ident: $kind:ty),+ $(,)? }
        $reason:literal $code:ident $retry:ident $message:literal $([$($argument:tt)+])?
    )+) => {
        /// Why a call was refused. Every message names the thing that is wrong and the remedy.
        #[derive(Clone, Debug, PartialEq, Eq, Error)]
        #[non_exhaustive]
        pub enum RpcError {
            $(
                $(#[$attribute])*
                #[error($message $(, $($argument)+)?)]
                $variant { $($(#[$field_attribute])* $field: $kind),+ },
            )+
            /// A status that is not in the table: from a newer server, a proxy or the transport.
            #[error("{message}")]
            Unrecognised {
                /// The gRPC status code.
                code: Code,
                /// The reason that came with the status, or empty.
                reason: String,
                /// The message that came with the status.
                message: String,
            },
        }

        /// Reason, status code and retry rule of every error of the table.
        pub const TABLE: &[(&str, Code, Retry)] = &[$(($reason, Code::$code, Retry::$retry)),+];

        impl RpcError {
            /// The reason, as it stands in `google.rpc.ErrorInfo`.
            pub fn reason(&self) -> &str {
                match self {
                    $(Self::$variant { .. } => $reason,)+
                    Self::Unrecognised { reason, .. } => reason,
                }
            }

            /// The gRPC status code.
            pub fn code(&self) -> Code {
                match self {
                    $(Self::$variant { .. } => Code::$code,)+
                    Self::Unrecognised { code, .. } => *code,
                }
            }

            /// Whether and when the caller may repeat the call.
            pub fn retry(&self) -> Retry {
                match self {
                    $(Self::$variant { .. } => Retry::$retry,)+
                    // What a lost connection or a proxy answers; nothing was charged by it, and a
                    // repeat under the same id is never charged twice.
                    Self::Unrecognised { code: Code::Unavailable, .. } => Retry::Repeat,
                    // Every server gives a reason; without one the transport lost the call.
                    Self::Unrecognised { code, reason, .. }
                        if reason.is_empty() && TRANSPORT_CODES.contains(code) =>
                    {
                        Retry::Repeat
                    }
                    Self::Unrecognised { .. } => Retry::Never,
                }
            }

            /// The fields in text, shortened to [`MAX_FIELD_BYTES`] each.
            fn fields(&self) -> BTreeMap<String, String> {
                match self {
                    $(Self::$variant { $($field),+ } => BTreeMap::from([
                        $((stringify!($field).to_owned(), shorten(&$field.to_string(), MAX_FIELD_BYTES))),+
                    ]),)+
                    Self::Unrecognised { .. } => BTreeMap::new(),
                }
            }

            /// The error of this reason with these fields, if both are known.
            fn from_fields<'a>(reason: &str, get: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
                match reason {
                    $($reason => Some(Self::$variant {
                        $($field: get(stringify!($field))?.parse().ok()?),+
                    }),)+
                    _ => None,
                }
            }
        }
    };
}

error_table! {
    /// The caller showed no usable certificate.
    Unauthenticated {
        /// What is wrong with the certificate.
        problem: String,
    }
    "UNAUTHENTICATED" Unauthenticated Never
    "not authenticated: {problem}; connect with a client certificate that names concilium://<role>/<name>"

    /// The certificate is good, but this server's configuration does not list its name.
    UnknownIdentity {
        /// The caller: role and name.
        identity: String,
        /// The configuration key that lists the role's names.
        configuration_key: String,
    }
    "UNKNOWN_IDENTITY" PermissionDenied Never
    "{identity} is not known to this server; its operator can add the name to `{configuration_key}`"

    /// The caller's role may not make this call.
    RoleNotAllowed {
        /// The caller: role and name.
        identity: String,
        /// The roles that may call, separated by commas.
        needed: String,
    }
    "ROLE_NOT_ALLOWED" PermissionDenied Never
    "{identity} may not make this call; it needs a certificate of the role {needed}"

    /// The server does not serve this task.
    UnknownTask {
        /// The task that was asked for.
        task: String,
        /// The tasks that are served, separated by commas.
        served: String,
    }
    "UNKNOWN_TASK" NotFound Never
    "unknown task `{task}`; this server serves: {served}"

    /// A field of the request is missing or out of range.
    InvalidRequest {
        /// The field.
        field: String,
        /// What is wrong, with the limit and what was sent.
        problem: String,
    }
    "INVALID_REQUEST" InvalidArgument Never
    "invalid request: `{field}` {problem}; correct the field and call again"

    /// The input or the model does not fit the task's shapes.
    ShapeMismatch {
        /// What has the wrong shape.
        what: String,
        /// The shape that the task needs.
        expected: String,
        /// The shape that was sent.
        got: String,
    }
    "SHAPE_MISMATCH" InvalidArgument Never
    "{what} has the shape {got}, but the task needs {expected}; send it in that shape"

    /// A component does not have the announced form.
    MalformedShares {
        /// The component or stream.
        what: String,
        /// What is wrong with it.
        problem: String,
    }
    "MALFORMED_SHARES" InvalidArgument Never
    "malformed shares: {what} {problem}; share the value again and send all parts in full"

    /// Two servers hold different bytes for one component.
    InconsistentDealer {
        /// Who shared the value: role and name.
        dealer: String,
        /// The request or model that was shared.
        what: String,
        /// The number of the component: 0, 1 or 2.
        component: u8,
    }
    "INCONSISTENT_DEALER" InvalidArgument Never
    "{dealer} sent different bytes of component {component} of {what} to its two servers; share the value again under a new id and send each server its part"

    /// A model cannot be used.
    ModelRejected {
        /// Task of the model.
        task: String,
        /// Name of the model.
        model: String,
        /// Why, with the remedy.
        problem: String,
    }
    "MODEL_REJECTED" InvalidArgument Never
    "model `{model}` of task `{task}` is rejected: {problem}; correct the model and share it again"

    /// Something is larger than a limit.
    TooLarge {
        /// What is too large, with its unit.
        what: String,
        /// The limit.
        limit: u64,
        /// What was sent.
        got: u64,
    }
    "TOO_LARGE" InvalidArgument Never
    "{what}: {got} is above the limit of {limit}; send less at a time"

    /// A privacy budget does not allow the request.
    BudgetExhausted {
        /// Task of the request.
        task: String,
        /// Epoch of the task.
        epoch: u64,
        /// Which cap it is: `task_epoch`, `client`, `client_all_tasks`, `window` or `owner`.
        scope: String,
        /// The cap that would be passed, in words.
        cap: String,
        /// Cost of the request, in nano-rho.
        needed_nano_rho: u64,
        /// What is left under the cap, in nano-rho.
        left_nano_rho: u64,
    }
    "BUDGET_EXHAUSTED" ResourceExhausted Never
    "privacy budget of task `{task}` epoch {epoch}: the request costs {needed_nano_rho} nano-rho, but {left_nano_rho} nano-rho are left under {cap}; send fewer rows, or ask the operators what this cap is for"

    /// A task's budget is paced over time, and the present window has too little left.
    BudgetPaced {
        /// Task of the request.
        task: String,
        /// Epoch of the task.
        epoch: u64,
        /// Cost of the request, in nano-rho.
        needed_nano_rho: u64,
        /// What is left of the window, in nano-rho.
        left_nano_rho: u64,
        /// When enough of it has passed, in milliseconds.
        retry_after_ms: u64,
        /// The same as a time, in milliseconds since 1970-01-01 UTC by the server's clock.
        retry_at_unix_ms: u64,
    }
    "BUDGET_PACED" ResourceExhausted AfterDelay
    "task `{task}` epoch {epoch} paces its privacy budget: the request costs {needed_nano_rho} nano-rho, but {left_nano_rho} nano-rho are left for the present time; call again in {wait}, at {at}, or send fewer rows"
    [wait = time::wait(*.retry_after_ms), at = time::moment(*.retry_at_unix_ms)]

    /// The request id was used before with other content.
    RequestConflict {
        /// The request id in hexadecimal.
        request_id: String,
    }
    "REQUEST_CONFLICT" AlreadyExists Never
    "request id {request_id} was used before with other content; use a new random id for a new request"

    /// The request was answered, and the answer is no longer kept.
    ResultExpired {
        /// The request id in hexadecimal.
        request_id: String,
    }
    "RESULT_EXPIRED" NotFound Never
    "the answer of request {request_id} is no longer kept; it stays charged, so ask again under a new id only if its price may be paid again"

    /// The request id is being evaluated.
    InProgress {
        /// The request id in hexadecimal.
        request_id: String,
    }
    "IN_PROGRESS" Aborted Repeat
    "request {request_id} is being evaluated; repeat the call with the same id to get its result"

    /// Two parties were configured with different policies of a task.
    PolicyMismatch {
        /// The task.
        task: String,
        /// The configuration key that differs.
        key: String,
        /// The value on this server.
        here: String,
        /// The value on the peer.
        there: String,
        /// The other server or the client.
        peer: String,
    }
    "POLICY_MISMATCH" FailedPrecondition Never
    "task `{task}`: `{key}` is {here} on this server but {there} on {peer}; the operators must configure the same value, clients list the tasks again"

    /// The ledgers of the three servers do not belong together.
    LedgerDiverged {
        /// The task that is stopped.
        task: String,
        /// Which server's ledger it is, and what differs.
        problem: String,
    }
    "LEDGER_DIVERGED" FailedPrecondition Never
    "task `{task}` is stopped: {problem}; nothing is answered until the operators of the servers have compared `concilium-operator budget` and let it go on with `concilium-operator budget resume`"

    /// No model of the task can vote.
    NoModels {
        /// The task.
        task: String,
    }
    "NO_MODELS" FailedPrecondition Never
    "task `{task}` has no model that is ready on all three servers; an owner must share one with `concilium-owner share`"

    /// So few models vote that the threshold of a confident label is out of their reach.
    TooFewModels {
        /// The task.
        task: String,
        /// Votes that the most frequent class needs.
        threshold: u32,
        /// Models that vote.
        models: u32,
        /// Noise of the test, in words.
        noise: String,
    }
    "TOO_FEW_MODELS" FailedPrecondition Never
    "task `{task}` answers where {threshold} noisy votes agree, but only {models} models vote: {threshold} > {models}, so only the noise ({noise}) could reach the threshold; owners must share more models, or the operators lower `confidence_votes`"

    /// The owner has another model of this name.
    ModelExists {
        /// Task of the model.
        task: String,
        /// Name of the model.
        model: String,
    }
    "MODEL_EXISTS" AlreadyExists Never
    "task `{task}` already has another model `{model}` of this owner; withdraw it first or choose another name"

    /// There is no such model.
    UnknownModel {
        /// Task of the model.
        task: String,
        /// Name of the model.
        model: String,
        /// Name of the owner.
        owner: String,
    }
    "UNKNOWN_MODEL" NotFound Never
    "task `{task}` has no model `{model}` of owner `{owner}`; list the models to see the names"

    /// Another server does not answer.
    PeerUnavailable {
        /// The other server.
        peer: String,
        /// What this server was doing.
        step: String,
    }
    "PEER_UNAVAILABLE" Unavailable Repeat
    "{peer} does not answer ({step}); repeat the call with the same id, and if it goes on, tell that server's operator"

    /// A server cannot use its ledger at the moment.
    LedgerUnavailable {
        /// What it cannot do.
        action: String,
    }
    "LEDGER_UNAVAILABLE" Unavailable Repeat
    "a server's ledger cannot {action} at the moment; nothing is answered without it, so repeat the call with the same id, and if it goes on, tell the operators of the servers, of whom one finds the reason in the log"

    /// The server has too much to do.
    Overloaded {
        /// What is full.
        what: String,
        /// When to call again, in milliseconds.
        retry_after_ms: u64,
    }
    "OVERLOADED" Unavailable AfterDelay
    "{what} is full; call again in {wait}"
    [wait = time::wait(*.retry_after_ms)]

    /// A fault of the server.
    Internal {
        /// What failed, without any secret.
        problem: String,
    }
    "INTERNAL" Internal Never
    "internal error: {problem}; tell the server's operator, whose log says more"
}

impl RpcError {
    /// Whether the caller may repeat the call, at once or after [`RpcError::retry_after`].
    pub fn retryable(&self) -> bool {
        self.retry() != Retry::Never
    }

    /// How long the caller must wait before a repeat.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after_ms, .. } | Self::BudgetPaced { retry_after_ms, .. } => {
                Some(Duration::from_millis(*retry_after_ms))
            }
            _ => None,
        }
    }

    /// The error that a server sent. A status outside the table becomes [`RpcError::Unrecognised`]
    /// with its code, reason and message.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let information = details.error_info().filter(|information| information.domain == ERROR_DOMAIN);
        information
            .and_then(|information| {
                Self::from_fields(&information.reason, |field| {
                    information.metadata.get(field).map(String::as_str)
                })
            })
            .filter(|error| error.code() == status.code())
            .unwrap_or_else(|| Self::Unrecognised {
                // A status with a cause was made on this side: the connection broke, whatever code the
                // transport gives that.
                code: if std::error::Error::source(status).is_some() {
                    Code::Unavailable
                } else {
                    status.code()
                },
                reason: information.map(|information| information.reason.clone()).unwrap_or_default(),
                message: status.message().to_owned(),
            })
    }

    /// The form in which one server tells another why it refuses a request.
    pub fn to_refusal(&self) -> Refusal {
        Refusal {
            reason: self.reason().to_owned(),
            message: shorten(&self.to_string(), MAX_MESSAGE_BYTES),
            metadata: self.fields(),
        }
    }

    /// The error that another server told. A reason outside the table becomes
    /// [`RpcError::Unrecognised`] with the code `Internal`.
    pub fn from_refusal(refusal: &Refusal) -> Self {
        Self::from_fields(&refusal.reason, |field| refusal.metadata.get(field).map(String::as_str))
            .unwrap_or_else(|| Self::Unrecognised {
                code: Code::Internal,
                reason: shorten(&refusal.reason, MAX_FIELD_BYTES),
                message: shorten(&refusal.message, MAX_MESSAGE_BYTES),
            })
    }
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Self {
        let message = shorten(&error.to_string(), MAX_MESSAGE_BYTES);
        let mut details = ErrorDetails::new();
        if !error.reason().is_empty() {
            let metadata: HashMap<String, String> = error.fields().into_iter().collect();
            details.set_error_info(error.reason(), ERROR_DOMAIN, metadata);
        }
        if let Some(delay) = error.retry_after() {
            details.set_retry_info(Some(delay));
        }
        if let RpcError::BudgetExhausted { task, epoch, cap, .. } = &error {
            let subject = shorten(&format!("task {task} epoch {epoch}"), MAX_FIELD_BYTES);
            details.set_quota_failure(vec![QuotaViolation::new(subject, shorten(cap, MAX_FIELD_BYTES))]);
        }
        Status::with_error_details(error.code(), message, details)
    }
}

/// `text` cut to at most `limit` bytes at a character boundary, with an ellipsis where it was cut.
fn shorten(text: &str, limit: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub(ELLIPSIS.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{ELLIPSIS}", &text[..end])
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
