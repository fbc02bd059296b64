//! The whole way of a query: encode, share, send to three servers, compare, open.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use concilium_mpc::input::InputError as SharingError;
use concilium_network::{InputError, Ring};
use concilium_privacy::NanoRho;
use concilium_ring::{Element, Z32, Z64};
use concilium_rpc::{
    status::RpcError,
    v1::{PredictHeader, PredictRequest, predict_request::Message, prediction_client::PredictionClient},
};
use ndarray::{ArrayView2, s};
use rand::{TryRng as _, rngs::SysRng};
use thiserror::Error;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::{
    answer::{AnswerError, Asked, Receipt, Released, Reply, open, receive},
    connection::{CallError, Connection, ServerError, all_or_most_useful},
    repeat::RepeatKey,
    retry::RetryPolicy,
    sharing::{Part, share, share_from_seeds},
    task::Task,
    terminal::FailureClass,
};

/// How long the other servers are waited for when one has failed: each waits for all three, so they
/// may not answer for long. If they were about to answer, a repeat gets what they had.
const GRACE: Duration = Duration::from_millis(500);

/// Why no answer came.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PredictError {
    /// There are no rows.
    #[error("there are no rows to predict; give at least one")]
    NoRows,
    /// A row does not fit the task. Nothing was sent.
    #[error("task `{task}`: {source}")]
    Input {
        /// The task.
        task: String,
        /// What is wrong, with row and feature.
        source: InputError,
    },
    /// The rows cost more than is left. Nothing was sent.
    #[error(
        "task `{task}`: {rows} rows cost rho {needed}, but rho {left} is left to this client, which \
         pays for {affordable} rows; send fewer rows or wait for a new epoch"
    )]
    NotAffordable {
        /// The task.
        task: String,
        /// Rows asked for.
        rows: usize,
        /// What they cost.
        needed: NanoRho,
        /// What is left under the cap of the client.
        left: NanoRho,
        /// Rows that this pays for.
        affordable: u64,
    },
    /// The system gives no randomness. Nothing was sent.
    #[error(transparent)]
    Randomness(#[from] SharingError),
    /// The servers did not answer.
    #[error("{source}{}", after(*attempts))]
    Servers {
        /// Attempts made.
        attempts: u32,
        /// Of the servers' errors the one that says most about the cause.
        source: ServerError,
    },
    /// The servers' replies do not make an answer.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

fn after(attempts: u32) -> String {
    if attempts > 1 { format!(" (after {attempts} attempts)") } else { String::new() }
}

impl PredictError {
    /// What kind of failure it is, for the exit code of a program.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::NoRows | Self::Input { .. } => FailureClass::Input,
            Self::NotAffordable { .. } | Self::Answer(_) => FailureClass::Refused,
            Self::Randomness(_) => FailureClass::Local,
            Self::Servers { source, .. } => source.class(),
        }
    }
}

/// A prediction that ended early. What was answered before is paid for, so it is kept.
#[derive(Debug, Error)]
#[error("{source}{}", answered(finished, *rows))]
pub struct PredictFailure {
    /// The requests that were answered.
    pub finished: Vec<RequestAnswer>,
    /// Rows asked for.
    pub rows: usize,
    /// Why the next request was not answered.
    #[source]
    pub source: PredictError,
}

fn answered(finished: &[RequestAnswer], rows: usize) -> String {
    match finished.last() {
        Some(last) => format!(" (the first {} of {rows} rows were answered)", last.rows.end),
        None => String::new(),
    }
}

impl PredictFailure {
    /// What kind of failure it is, for the exit code of a program.
    pub fn class(&self) -> FailureClass {
        self.source.class()
    }
}

/// The answer to one request.
#[derive(Clone, Debug)]
pub struct RequestAnswer {
    /// The rows of the input that it answers.
    pub rows: Range<usize>,
    /// The released values of these rows.
    pub released: Released,
    /// What was computed and what it cost.
    pub receipt: Receipt,
    /// Where the time went.
    pub timing: Timing,
    /// Attempts made, at least 1.
    pub attempts: u32,
}

/// Where the time of one request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Encoding and sharing, before anything was sent.
    pub sharing: Duration,
    /// From the first byte sent to the opened answer, pauses between attempts included.
    pub latency: Duration,
}

/// Asks for predictions of one task.
pub struct Predictor<'a> {
    connection: &'a Connection,
    task: Task,
    rows_per_request: usize,
    retry: RetryPolicy,
    repeat_key: Option<RepeatKey>,
}

impl<'a> Predictor<'a> {
    /// For a task that [`Connection::task`] gave.
    pub fn new(connection: &'a Connection, task: Task) -> Self {
        let rows_per_request = task.max_rows_per_request as usize;
        Self { connection, task, rows_per_request, retry: RetryPolicy::default(), repeat_key: None }
    }

    /// Sends at most `rows` rows in one request, 1 to the task's limit; beyond it the limit is used.
    #[must_use]
    pub fn with_rows_per_request(self, rows: usize) -> Self {
        let limit = self.task.max_rows_per_request as usize;
        Self { rows_per_request: rows.clamp(1, limit), ..self }
    }

    /// Repeats failed calls as `retry` says.
    #[must_use]
    pub fn with_retry(self, retry: RetryPolicy) -> Self {
        Self { retry, ..self }
    }

    /// Derives the id and the share seeds of every request from `key`, so that the same rows in requests
    /// of the same size make the same requests again, in this process or another: they get the stored
    /// answers and are not charged again. Without a key every request is new.
    ///
    /// Rows that occur in two requests alike, the whole request being equal, are one request then: they
    /// share one answer with one noise. See [`crate::repeat`].
    #[must_use]
    pub fn with_repeat_key(self, key: RepeatKey) -> Self {
        Self { repeat_key: Some(key), ..self }
    }

    /// The task.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Predicts the rows `[rows, features]`, one request after the other, and calls `finished` after
    /// each.
    ///
    /// All rows are checked before any is sent, and several requests are sent only if the client's cap
    /// pays for all of them: neither a typing error nor the budget ends the work in its middle. With a
    /// repeat key the budget is left to the servers, because some of the requests may be paid for.
    ///
    /// # Errors
    /// [`PredictFailure`] with the requests that were answered before.
    pub async fn predict(
        &self,
        rows: ArrayView2<'_, f64>,
        mut finished: impl FnMut(&RequestAnswer),
    ) -> Result<Vec<RequestAnswer>, PredictFailure> {
        let mut answers = Vec::new();
        let failure = |finished, source| PredictFailure { finished, rows: rows.nrows(), source };
        if let Err(error) = self.check(rows) {
            return Err(failure(answers, error));
        }
        for start in (0..rows.nrows()).step_by(self.rows_per_request) {
            let end = rows.nrows().min(start + self.rows_per_request);
            match self.predict_request(rows, start..end).await {
                Ok(answer) => {
                    finished(&answer);
                    answers.push(answer);
                }
                Err(error) => return Err(failure(answers, error)),
            }
        }
        Ok(answers)
    }

    /// Checks everything that can be known before anything is sent.
    fn check(&self, rows: ArrayView2<'_, f64>) -> Result<(), PredictError> {
        if rows.nrows() == 0 {
            return Err(PredictError::NoRows);
        }
        let blocks = (0..rows.nrows()).step_by(self.rows_per_request);
        for start in blocks {
            let end = rows.nrows().min(start + self.rows_per_request);
            self.encode(rows, start..end)?;
        }
        // The servers refuse a single request as a whole, by figures that are newer than ours.
        if rows.nrows() > self.rows_per_request && self.repeat_key.is_none() {
            affordable(&self.task, rows.nrows())?;
        }
        Ok(())
    }

    fn encode(
        &self,
        rows: ArrayView2<'_, f64>,
        range: Range<usize>,
    ) -> Result<Zeroizing<Vec<i64>>, PredictError> {
        let block = rows.slice(s![range.clone(), ..]);
        let encoded = self.task.domain.encode(block, self.task.fractional_bits).map_err(|source| {
            let source = in_whole_input(source, range.start);
            PredictError::Input { task: self.task.name.clone(), source }
        })?;
        // Taken as it is: a copy would leave this one behind.
        Ok(Zeroizing::new(encoded.into_raw_vec_and_offset().0))
    }

    async fn predict_request(
        &self,
        rows: ArrayView2<'_, f64>,
        range: Range<usize>,
    ) -> Result<RequestAnswer, PredictError> {
        let begin = Instant::now();
        let encoded = self.encode(rows, range.clone())?;
        let count = u32::try_from(range.len()).expect("a request has at most max_rows_per_request rows");
        let (request_id, parts) = self.share(count, &encoded)?;
        let client = self.connection.identity().name();
        let asked = Asked { task: &self.task, request_id, rows: count, client };
        let sent = Instant::now();
        let (replies, attempts) = self.send(&asked, &parts).await?;
        let (receipt, released) = open(&replies, &asked, self.connection.authorities())?;
        let timing = Timing { sharing: sent - begin, latency: sent.elapsed() };
        Ok(RequestAnswer { rows: range, released, receipt, timing, attempts })
    }

    /// The id of a request and the three servers' parts of it.
    fn share(&self, rows: u32, values: &[i64]) -> Result<([u8; 16], [Part; 3]), SharingError> {
        match self.task.ring {
            Ring::Bits64 => self.share_in_ring::<Z64>(rows, values),
            Ring::Bits32 => self.share_in_ring::<Z32>(rows, values),
        }
    }

    fn share_in_ring<E: Element>(
        &self,
        rows: u32,
        encoded: &[i64],
    ) -> Result<([u8; 16], [Part; 3]), SharingError> {
        let values: Vec<E> = encoded.iter().map(|&value| E::from_signed(value)).collect();
        if let Some(key) = &self.repeat_key {
            let request = key.derive(self.connection.identity(), &self.task, rows, encoded);
            return Ok((request.request_id, share_from_seeds(values, &request.seeds)));
        }
        let (parts, ()) = share(values, &mut SysRng, |_| ())?;
        let mut request_id = [0; 16];
        SysRng
            .try_fill_bytes(&mut request_id)
            .map_err(|error| SharingError::Randomness(error.to_string()))?;
        Ok((request_id, parts))
    }

    /// Sends the same bytes under the same id until all three servers answer, one refuses for good, or
    /// the attempts are used up. Also returns the number of attempts.
    async fn send(&self, asked: &Asked<'_>, parts: &[Part; 3]) -> Result<([Reply; 3], u32), PredictError> {
        let begin = Instant::now();
        let (mut attempts, mut failures) = (0, 0);
        loop {
            attempts += 1;
            let error = match self.attempt(asked, parts).await {
                Ok(replies) => return Ok((replies, attempts)),
                Err(error) => error,
            };
            // While the servers work on it nothing fails; it takes as long as one call may take.
            let working = matches!(error.refusal(), Some(RpcError::InProgress { .. }))
                && begin.elapsed() < self.connection.config().request_timeout();
            failures += u32::from(!working || failures == 0);
            let Some(pause) = self.retry.pause_after(failures, &error) else {
                return Err(PredictError::Servers { attempts, source: error });
            };
            tracing::info!(request_id = hex::encode(asked.request_id), attempts, ?pause, %error, "repeating");
            tokio::time::sleep(pause).await;
        }
    }

    /// One call to each server. The failure of one ends the waiting for the others.
    async fn attempt(&self, asked: &Asked<'_>, parts: &[Part; 3]) -> Result<[Reply; 3], ServerError> {
        let calls = self.connection.call_all_until("Predict", GRACE, |server, channel| {
            let part = &parts[usize::from(server)];
            let header = PredictHeader {
                task: asked.task.name.clone(),
                request_id: asked.request_id.to_vec().into(),
                rows: asked.rows,
                policy_digest: asked.task.policy_digest.to_vec().into(),
                own: Some(part.own()),
                next: Some(part.next()),
            };
            call(channel, header, part.clone(), asked.component_bytes())
        });
        all_or_most_useful(calls.await)
    }
}

/// Sends one server's part and receives its reply.
async fn call(
    channel: Channel,
    header: PredictHeader,
    part: Part,
    component_bytes: u64,
) -> Result<Reply, CallError> {
    let message = |message| PredictRequest { message: Some(message) };
    let header = std::iter::once(message(Message::Header(header)));
    let messages: Vec<_> = header.chain(part.chunks().map(|chunk| message(Message::Chunk(chunk)))).collect();
    let stream = tokio_stream::iter(messages);
    let mut reply = PredictionClient::new(channel).predict(stream).await?.into_inner();
    receive(&mut reply, component_bytes).await
}

/// Refuses rows that cost more than the client's cap leaves.
fn affordable(task: &Task, rows: usize) -> Result<(), PredictError> {
    let Some(left) = task.caller_left() else { return Ok(()) };
    let needed = task.cost_per_row.checked_mul(rows as u64).unwrap_or(NanoRho::new(u64::MAX));
    if needed <= left {
        return Ok(());
    }
    let affordable = task.rows_left().unwrap_or_default();
    Err(PredictError::NotAffordable { task: task.name.clone(), rows, needed, left, affordable })
}

/// The same error with the row counted in the whole input instead of one request.
fn in_whole_input(mut error: InputError, start: usize) -> InputError {
    if let InputError::Length { row: Some(row), .. }
    | InputError::NotFinite { row: Some(row), .. }
    | InputError::OutOfRange { row: Some(row), .. } = &mut error
    {
        *row += start;
    }
    error
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::task::tests::task;

    #[test]
    fn several_requests_must_be_affordable_together() {
        let task = task();
        // 900 million nano-rho are left, a row costs 40000001.
        assert!(affordable(&task, 22).is_ok());
        let error = affordable(&task, 23).unwrap_err();
        assert!(matches!(error, PredictError::NotAffordable { affordable: 22, .. }), "{error}");
        assert_eq!(error.class(), FailureClass::Refused);
        assert!(affordable(&task, usize::MAX).is_err());
        let shared = Task { caller_cap: None, ..task };
        assert!(affordable(&shared, usize::MAX).is_ok());
    }

    /// Predictions can be spawned on a runtime of many threads; compiled, never run.
    #[allow(dead_code)]
    fn predictions_can_be_spawned(predictor: &Predictor<'_>, rows: ArrayView2<'_, f64>) -> impl Send {
        predictor.predict(rows, |_| ())
    }

    #[test]
    fn rows_are_counted_in_the_whole_input() {
        let mut rows = Array2::from_elem((3, 4), 0.5);
        rows[(1, 3)] = 9.0;
        let error = task().domain.encode(rows.view(), 12).unwrap_err();
        let message = in_whole_input(error, 40).to_string();
        assert!(message.starts_with("row 41: feature 3 is 9"), "{message}");
    }
}
