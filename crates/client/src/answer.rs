//! From three servers' replies to one answer: everything is compared before anything is believed.

use concilium_mpc::{
    opening::{OpeningError, open_confident_labels, open_labels, open_sums},
    release::ReleasedComponents,
};
use concilium_privacy::{Mechanism, NanoRho, Release};
use concilium_rpc::{
    chunk::Assembler,
    receipt::{ReceiptError, accept},
    signature::Authorities,
    v1::{self, ComponentSlot, ResultEncoding, predict_response::Message},
};
use ndarray::{Array2, ArrayView1};
use thiserror::Error;
use tonic::Streaming;
use zeroize::Zeroizing;

use crate::{
    connection::CallError,
    probabilities::ProbabilitySums,
    task::{self, Task, describe_mechanism},
};

/// What was asked, to compare the receipts with.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The task.
    pub task: &'a Task,
    /// The id of the request.
    pub request_id: [u8; 16],
    /// Rows of the request.
    pub rows: u32,
    /// Name of the client that asks.
    pub client: &'a str,
}

impl Asked<'_> {
    /// Length of each result component in bytes.
    pub fn component_bytes(&self) -> u64 {
        match self.task.release {
            Release::Label | Release::ConfidentLabel => 2 * u64::from(self.rows),
            _ => 8 * u64::from(self.rows) * self.task.classes as u64,
        }
    }
}

/// What one server replied.
pub struct Reply {
    /// The receipt with the server's signature.
    pub signed: v1::SignedReceipt,
    /// The server's two components of the result. SECRET.
    pub components: ReleasedComponents,
}

/// What was computed and what it cost, equal on the three servers.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// Name of the task.
    pub task: String,
    /// Epoch of the task.
    pub epoch: u64,
    /// The id of the request.
    pub request_id: [u8; 16],
    /// What is released.
    pub release: Release,
    /// Rows of the result.
    pub rows: u32,
    /// Classes of the task.
    pub classes: usize,
    /// The noise that any two servers' shares guarantee.
    pub mechanism: Mechanism,
    /// Charged for this request.
    pub charged: NanoRho,
    /// Epsilon of the charge at `delta`.
    pub charged_epsilon: f64,
    /// Delta of the task.
    pub delta: f64,
    /// Standard deviation of the noise of all three servers on each count, in votes.
    pub noise_standard_deviation: f64,
    /// Spent by the caller after the charge: the most that any server says.
    pub caller_spent: NanoRho,
    /// The caps that bind the caller, each with the least that any server says is left.
    pub caller_budgets: Vec<CallerBudget>,
    /// Rows that reached the threshold and have a label; `None` for a release without one.
    pub consenting_rows: Option<u32>,
    /// Models that voted.
    pub models: u32,
    /// Owners of these models.
    pub owners: u32,
    /// Digest of the identities and content digests of these models.
    pub model_set_digest: [u8; 32],
    /// Whether any server sent stored bytes of an earlier call with the same id.
    pub replayed: bool,
    /// Cost of the evaluation on servers 0, 1, 2.
    pub statistics: [v1::EvaluationStatistics; 3],
    /// What servers 0, 1, 2 signed: with these a third party can check all of the above.
    pub signed: [v1::SignedReceipt; 3],
}

/// A cap that binds the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerBudget {
    /// What it covers.
    pub scope: v1::caller_budget::Scope,
    /// The cap.
    pub cap: NanoRho,
    /// What is left under it.
    pub left: NanoRho,
}

/// The released values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// One class index for each row.
    Labels(Vec<usize>),
    /// One class index for each row, or `None` where the models did not agree enough.
    ConfidentLabels(Vec<Option<usize>>),
    /// Noisy counts `[rows, classes]`; noise can make them negative.
    Histograms(Array2<i64>),
    /// Noisy sums of the models' probabilities.
    Probabilities(ProbabilitySums),
}

impl Released {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Labels(labels) => labels.len(),
            Self::ConfidentLabels(labels) => labels.len(),
            Self::Histograms(counts) => counts.nrows(),
            Self::Probabilities(probabilities) => probabilities.sums.nrows(),
        }
    }

    /// The label of every row: the released one, or the class of the largest noisy count or sum. `None` for
    /// a row without consensus.
    pub fn labels(&self) -> Vec<Option<usize>> {
        let winners =
            |sums: &Array2<i64>| sums.rows().into_iter().map(|row| Some(winner(row).label)).collect();
        match self {
            Self::Labels(labels) => labels.iter().copied().map(Some).collect(),
            Self::ConfidentLabels(labels) => labels.clone(),
            Self::Histograms(counts) => winners(counts),
            Self::Probabilities(probabilities) => winners(&probabilities.sums),
        }
    }
}

/// The class with the largest noisy count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Winner {
    /// Index of the class; the lower one of a tie, as the servers decide it for labels.
    pub label: usize,
    /// Its count minus that of the runner-up, in votes.
    pub margin: i64,
}

/// The winner of one row of noisy counts, of at least one class. Post-processing: it costs nothing.
pub fn winner(counts: ArrayView1<'_, i64>) -> Winner {
    let mut best = (0, i64::MIN);
    let mut second = i64::MIN;
    for (class, &count) in counts.iter().enumerate() {
        if class == 0 || count > best.1 {
            second = if class == 0 { i64::MIN } else { best.1 };
            best = (class, count);
        } else {
            second = second.max(count);
        }
    }
    Winner { label: best.0, margin: best.1.saturating_sub(second) }
}

/// Why three replies do not make an answer. The request was charged; repeating it under its id costs
/// nothing and gives the same bytes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerError {
    /// A receipt is about something else than was asked.
    #[error(
        "server {server} says `{field}` is {got} where {expected} was asked for; it is faulty, and the \
         answer was discarded"
    )]
    NotAsked {
        /// The server.
        server: u8,
        /// The field of the receipt.
        field: &'static str,
        /// What was asked for.
        expected: String,
        /// What the receipt says.
        got: String,
    },
    /// Two receipts differ.
    #[error(
        "`{field}` is {first_value} on server {first} but {second_value} on server {second}; one of \
         them is faulty, and the answer was discarded"
    )]
    Disagree {
        /// The field of the receipt.
        field: &'static str,
        /// One server.
        first: u8,
        /// Its value.
        first_value: String,
        /// The other server.
        second: u8,
        /// Its value.
        second_value: String,
    },
    /// A receipt is not signed by its server, or not for this result.
    #[error(
        "the receipt of server {server} does not hold: {source}; the answer was discarded, because nobody \
         could prove later what was charged for it"
    )]
    Receipt {
        /// The server.
        server: u8,
        /// What is wrong with it.
        source: ReceiptError,
    },
    /// The result has another number of labels than the receipts say, and than was charged for.
    #[error(
        "the receipts say that {stated} rows reached the threshold, but the answer has {opened} labels; a \
         server is faulty, and the answer was discarded"
    )]
    Consensus {
        /// What the receipts say.
        stated: u32,
        /// Labels of the answer.
        opened: usize,
    },
    /// The components do not make a result.
    #[error(transparent)]
    Opening(#[from] OpeningError),
}

/// Receives one server's reply: the receipt, then `component_bytes` of the own and as many of the next
/// component.
///
/// # Errors
/// [`CallError`] if the stream fails or has another form.
pub async fn receive(
    stream: &mut Streaming<v1::PredictResponse>,
    component_bytes: u64,
) -> Result<Reply, CallError> {
    let malformed = |problem: &str| CallError::Malformed(problem.to_owned());
    let first = stream.message().await?.and_then(|response| response.message);
    let Some(Message::Header(signed)) = first else {
        return Err(malformed("a result without a receipt"));
    };
    let assembler = |part| {
        Assembler::new([(part, component_bytes)], component_bytes)
            .map_err(|error| CallError::Malformed(error.to_string()))
    };
    let (mut own, mut next) = (assembler("own")?, assembler("next")?);
    while let Some(response) = stream.message().await? {
        let Some(Message::Chunk(chunk)) = response.message else {
            return Err(malformed("a second receipt"));
        };
        let pushed = match chunk.component_slot() {
            ComponentSlot::Own => own.push(&chunk.bytes),
            ComponentSlot::Next => next.push(&chunk.bytes),
            ComponentSlot::Unspecified => return Err(malformed("a chunk of no component")),
        };
        pushed.map_err(|error| CallError::Malformed(format!("a malformed result: {error}")))?;
    }
    let finish = |assembler: Assembler| match assembler.finish() {
        Ok(mut parts) => Ok(parts.pop().map(|mut part: Zeroizing<Vec<u8>>| std::mem::take(&mut *part))),
        Err(error) => Err(CallError::Malformed(format!("a malformed result: {error}"))),
    };
    let own = finish(own)?.unwrap_or_default();
    let next = finish(next)?.unwrap_or_default();
    Ok(Reply { signed, components: ReleasedComponents { own, next } })
}

/// Checks the signatures of servers 0, 1, 2, compares their replies with what was asked and with each
/// other, and opens the result.
///
/// # Errors
/// [`AnswerError`] names the field and the servers, or the copies of a component that differ.
pub fn open(
    replies: &[Reply; 3],
    asked: &Asked<'_>,
    authorities: &Authorities,
) -> Result<(Receipt, Released), AnswerError> {
    let mut receipts = Vec::with_capacity(replies.len());
    for (server, Reply { signed, components }) in (0_u8..).zip(replies) {
        let receipt = accept(signed, authorities, server, &components.own, &components.next)
            .map_err(|source| AnswerError::Receipt { server, source })?;
        receipts.push(receipt);
    }
    let receipts = [0, 1, 2].map(|server: usize| &receipts[server]);
    let mut receipt = cross_check(receipts, asked)?;
    receipt.signed = replies.each_ref().map(|reply| reply.signed.clone());
    let components = [0, 1, 2].map(|server: usize| ReleasedComponents {
        own: replies[server].components.own.clone(),
        next: replies[server].components.next.clone(),
    });
    let (rows, classes) = (receipt.rows as usize, receipt.classes);
    let released = match receipt.release {
        Release::Label => Released::Labels(open_labels(&components, rows, classes)?),
        Release::ConfidentLabel => {
            let labels = open_confident_labels(&components, rows, classes)?;
            let (stated, opened) =
                (receipt.consenting_rows.unwrap_or_default(), labels.iter().flatten().count());
            if stated as usize != opened {
                return Err(AnswerError::Consensus { stated, opened });
            }
            Released::ConfidentLabels(labels)
        }
        _ => {
            let counts = open_sums(&components, rows * classes)?;
            let counts = Array2::from_shape_vec((rows, classes), counts)
                .expect("opening gives as many counts as it is asked for");
            match receipt.release {
                Release::MeanProbability => {
                    Released::Probabilities(ProbabilitySums { sums: counts, models: receipt.models })
                }
                _ => Released::Histograms(counts),
            }
        }
    };
    Ok((receipt, released))
}

/// Compares three receipts with what was asked and with each other. The signatures are not its matter.
///
/// # Errors
/// [`AnswerError::NotAsked`] or [`AnswerError::Disagree`].
pub fn cross_check(receipts: [&v1::Receipt; 3], asked: &Asked<'_>) -> Result<Receipt, AnswerError> {
    for (server, receipt) in (0_u8..).zip(receipts) {
        let expected = expected_fields(asked, receipt);
        let got = asked_fields(receipt);
        if let Some(index) = (0..expected.len()).find(|&index| expected[index].1 != got[index].1) {
            return Err(AnswerError::NotAsked {
                server,
                field: expected[index].0,
                expected: expected[index].1.clone(),
                got: got[index].1.clone(),
            });
        }
    }
    let [first, ..] = receipts;
    let reference = found_fields(first);
    for (server, receipt) in (0_u8..).zip(receipts).skip(1) {
        let other = found_fields(receipt);
        if let Some(index) = (0..reference.len()).find(|&index| reference[index].1 != other[index].1) {
            return Err(AnswerError::Disagree {
                field: reference[index].0,
                first: 0,
                first_value: reference[index].1.clone(),
                second: server,
                second_value: other[index].1.clone(),
            });
        }
    }
    let model_set_digest =
        <[u8; 32]>::try_from(first.model_set_digest.as_ref()).map_err(|_| AnswerError::NotAsked {
            server: 0,
            field: "model_set_digest",
            expected: "32 bytes".to_owned(),
            got: format!("{} bytes", first.model_set_digest.len()),
        })?;
    let spent = receipts.map(|receipt| receipt.caller_spent_nano_rho).into_iter().max();
    let task = asked.task;
    Ok(Receipt {
        task: task.name.clone(),
        epoch: task.epoch,
        request_id: asked.request_id,
        release: task.release,
        rows: asked.rows,
        classes: task.classes,
        mechanism: task.mechanism,
        charged: NanoRho::new(first.charged_nano_rho),
        caller_spent: NanoRho::new(spent.unwrap_or_default()),
        charged_epsilon: first.charged_epsilon,
        delta: first.delta,
        noise_standard_deviation: first.noise_standard_deviation,
        caller_budgets: caller_budgets(receipts),
        consenting_rows: first.consenting_rows,
        models: first.models,
        owners: first.owners,
        model_set_digest,
        replayed: receipts.iter().any(|receipt| receipt.replayed),
        statistics: receipts.map(|receipt| receipt.statistics.unwrap_or_default()),
        signed: Default::default(),
    })
}

/// The caps, which are equal in the receipts, with the least that any of them says is left.
fn caller_budgets(receipts: [&v1::Receipt; 3]) -> Vec<CallerBudget> {
    let [first, others @ ..] = receipts;
    let left = |scope: i32, mine: u64| {
        let theirs = others.iter().flat_map(|receipt| &receipt.caller_budgets);
        let theirs = theirs.filter(|budget| budget.scope == scope).map(|budget| budget.left_nano_rho);
        theirs.fold(mine, u64::min)
    };
    let budgets = first.caller_budgets.iter().map(|budget| CallerBudget {
        scope: budget.scope(),
        cap: NanoRho::new(budget.cap_nano_rho),
        left: NanoRho::new(left(budget.scope, budget.left_nano_rho)),
    });
    budgets.collect()
}

/// The first field in which two servers' receipts for one request differ, with both values; `None` if they
/// say the same. Fields that may differ between servers are not compared.
pub fn difference(one: &v1::Receipt, other: &v1::Receipt) -> Option<(&'static str, String, String)> {
    let fields = |receipt| asked_fields(receipt).into_iter().chain(found_fields(receipt));
    let mut pairs = fields(one).zip(fields(other));
    pairs.find(|(here, there)| here.1 != there.1).map(|(here, there)| (here.0, here.1, there.1))
}

/// The encoding that belongs to a release.
fn encoding(release: Release) -> ResultEncoding {
    match release {
        Release::Label => ResultEncoding::BooleanU16,
        Release::ConfidentLabel => ResultEncoding::ConfidentU16,
        _ => ResultEncoding::ArithmeticU64,
    }
}

/// What the request costs, of which so many rows reached the threshold: the request was made under the
/// digest of a policy with these prices. `None` for a number of rows that cannot be.
fn price(asked: &Asked<'_>, consenting_rows: Option<u32>) -> Option<NanoRho> {
    let task = asked.task;
    match (task.threshold, consenting_rows) {
        (None, None) => task.cost_per_row.checked_mul(asked.rows.into()),
        (Some(_), Some(consenting)) if consenting <= asked.rows => {
            let prices = task.policy().row_prices().ok()?;
            let tests = prices.threshold.checked_mul(asked.rows.into())?;
            tests.checked_add(prices.answer.checked_mul(consenting.into())?)
        }
        _ => None,
    }
}

/// What a receipt must say about the request, as text for comparison and messages.
fn expected_fields(asked: &Asked<'_>, receipt: &v1::Receipt) -> [(&'static str, String); 11] {
    let task = asked.task;
    [
        ("task", task.name.clone()),
        ("epoch", task.epoch.to_string()),
        ("request_id", hex::encode(asked.request_id)),
        ("release", task.release.to_string()),
        ("client", asked.client.to_owned()),
        ("policy_digest", hex::encode(task.policy_digest)),
        ("rows", asked.rows.to_string()),
        ("classes", task.classes.to_string()),
        ("mechanism", describe_mechanism(task.mechanism)),
        ("encoding", encoding(task.release).as_str_name().to_owned()),
        (
            "charged_nano_rho",
            price(asked, receipt.consenting_rows).map_or_else(String::new, |cost| cost.units().to_string()),
        ),
    ]
}

fn asked_fields(receipt: &v1::Receipt) -> [(&'static str, String); 11] {
    let release = task::release(receipt.release()).map_or("unknown", Release::name);
    let mechanism = task::mechanism(receipt.mechanism.as_ref());
    [
        ("task", receipt.task.clone()),
        ("epoch", receipt.epoch.to_string()),
        ("request_id", hex::encode(&receipt.request_id)),
        ("release", release.to_owned()),
        ("client", receipt.client.clone()),
        ("policy_digest", hex::encode(&receipt.policy_digest)),
        ("rows", receipt.rows.to_string()),
        ("classes", receipt.classes.to_string()),
        ("mechanism", mechanism.map_or_else(|| "unknown".to_owned(), describe_mechanism)),
        ("encoding", receipt.encoding().as_str_name().to_owned()),
        ("charged_nano_rho", receipt.charged_nano_rho.to_string()),
    ]
}

/// What only the servers know, and must know alike. What the caller has spent is not among it: the
/// caller's other requests may be charged between two servers' receipts.
fn found_fields(receipt: &v1::Receipt) -> [(&'static str, String); 10] {
    let caps = receipt.caller_budgets.iter().map(|budget| (budget.scope, budget.cap_nano_rho));
    [
        ("consenting_rows", format!("{:?}", receipt.consenting_rows)),
        ("models", receipt.models.to_string()),
        ("owners", receipt.owners.to_string()),
        ("privacy_unit", receipt.privacy_unit().as_str_name().to_owned()),
        ("models_per_owner", receipt.models_per_owner.to_string()),
        ("model_set_digest", hex::encode(&receipt.model_set_digest)),
        ("caller_budgets", format!("{:?}", caps.collect::<Vec<_>>())),
        ("noise_standard_deviation", receipt.noise_standard_deviation.to_string()),
        ("delta", receipt.delta.to_string()),
        ("charged_epsilon", receipt.charged_epsilon.to_string()),
    ]
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
