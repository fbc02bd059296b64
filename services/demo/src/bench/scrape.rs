//! What servers tell of their work: their measurements, and the times of calls in their logs.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::error::BenchError;
use super::report::Phases;

/// The log directives under which servers tell the time of every call, and nothing more than usual.
pub(crate) const LOG_FILTER: &str = "info,concilium_server::calls=debug";

/// Prefix of all measurements.
const PREFIX: &str = "concilium_";

/// One server's counters at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    /// Steps of batches: their names, summed time and summed waiting, in seconds.
    steps: HashMap<String, [f64; 2]>,
    batches: f64,
    /// Rows of all released batches.
    rows: f64,
    bytes: f64,
    messages: f64,
}

impl Counters {
    /// Reads them from a server's page.
    ///
    /// # Errors
    /// [`BenchError::Measurements`].
    pub(crate) async fn read(server: usize, address: &str) -> Result<Self, BenchError> {
        let failed =
            |problem: String| BenchError::Measurements { server, address: address.to_owned(), problem };
        let text = get(address).await.map_err(|error| failed(error.to_string()))?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(failed(format!("it answers {status:?}")));
        }
        Ok(Self::parse(body))
    }

    fn parse(text: &str) -> Self {
        let mut counters = Counters::default();
        for line in text.lines().filter_map(|line| line.strip_prefix(PREFIX)) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let label = |key: &str| {
                let mut pairs =
                    labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
                pairs.find(|(found, _)| *found == key).map(|(_, value)| value.trim_matches('"').to_owned())
            };
            match name {
                "step_duration_seconds_sum" | "step_wait_seconds_sum" => {
                    let place = usize::from(name == "step_wait_seconds_sum");
                    counters.steps.entry(label("step").unwrap_or_default()).or_default()[place] += value;
                }
                "batches_total" if label("outcome").as_deref() == Some("released") => {
                    counters.batches += value
                }
                "batch_rows_sum" => counters.rows += value,
                "sent_bytes_total" => counters.bytes += value,
                "sent_messages_total" => counters.messages += value,
                _ => {}
            }
        }
        counters
    }

    /// Rows of all released batches.
    pub(crate) fn rows(&self) -> usize {
        self.rows as usize
    }

    /// What has happened since `before`: batches, bytes and messages sent, and where the time went.
    pub(crate) fn since(&self, before: &Counters) -> (u64, u64, u64, Phases) {
        let mut phases = Phases::default();
        for (step, now) in &self.steps {
            let then = before.steps.get(step).copied().unwrap_or_default();
            let [took, waited] =
                [0, 1].map(|place: usize| Duration::from_secs_f64((now[place] - then[place]).max(0.0)));
            phases.add(step, took, waited);
        }
        let count = |now: f64, then: f64| (now - then) as u64;
        (
            count(self.batches, before.batches),
            count(self.bytes, before.bytes),
            count(self.messages, before.messages),
            phases,
        )
    }
}

/// The answer with its head. HTTP/1.0, so that the body is in one piece and ends the connection.
async fn get(address: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Begin and end of a call, in microseconds of one clock of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) began: i64,
    pub(crate) ended: i64,
}

impl Call {
    /// From the earlier begin to the later end.
    pub(crate) fn join(self, other: Call) -> Call {
        Call { began: self.began.min(other.began), ended: self.ended.max(other.ended) }
    }
}

/// The requests for predictions that a server's log tells of, by their ids in hexadecimal.
pub(crate) fn calls(log: &Path) -> HashMap<String, Call> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut calls: HashMap<String, Call> = HashMap::new();
    for (request, call) in text.lines().filter_map(call) {
        // A call that was repeated is one request.
        calls.entry(request).and_modify(|known| *known = known.join(call)).or_insert(call);
    }
    calls
}

fn call(line: &str) -> Option<(String, Call)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let took = line["fields"]["took_us"].as_i64()?;
    let span = line["spans"].as_array()?.iter().find(|span| span["method"] == "Predict")?;
    let request = span["request"].as_str()?.to_owned();
    let ended = microseconds(line["timestamp"].as_str()?)?;
    Some((request, Call { began: ended - took, ended }))
}

/// Microseconds since some day, of a time in UTC as RFC 3339 has it.
fn microseconds(timestamp: &str) -> Option<i64> {
    let moment: toml::value::Datetime = timestamp.parse().ok()?;
    let (date, time) = (moment.date?, moment.time?);
    // Days of years that begin in March, so that a leap day is the last one.
    let early = date.month <= 2;
    let month = i64::from(date.month) + if early { 9 } else { -3 };
    let year = i64::from(date.year) - i64::from(early);
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + i64::from(date.day);
    let minutes = (days * 24 + i64::from(time.hour)) * 60 + i64::from(time.minute);
    let seconds = minutes * 60 + i64::from(time.second.unwrap_or(0));
    Some(seconds * 1_000_000 + i64::from(time.nanosecond.unwrap_or(0)) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_subtracted() {
        let text = |batches: u32, time: f64| {
            format!(
                "# TYPE concilium_batches_total counter\n\
                 concilium_batches_total{{task=\"bench\",outcome=\"released\"}} {batches}\n\
                 concilium_batches_total{{task=\"bench\",outcome=\"failed\"}} 9\n\
                 concilium_sent_bytes_total{{peer=\"1\"}} {}\n\
                 concilium_batch_rows_sum{{task=\"bench\"}} {batches}\n\
                 concilium_sent_bytes_total{{peer=\"2\"}} 5\n\
                 concilium_sent_messages_total{{peer=\"1\"}} {}\n\
                 concilium_step_duration_seconds_bucket{{step=\"linear\",le=\"0.1\"}} 77\n\
                 concilium_step_duration_seconds_sum{{step=\"linear\"}} {time}\n\
                 concilium_step_wait_seconds_sum{{step=\"linear\"}} {}\n\
                 concilium_step_duration_seconds_sum{{step=\"plan\"}} 1\n",
                100 * batches,
                2 * batches,
                time / 4.0,
            )
        };
        let (before, after) = (Counters::parse(&text(1, 0.5)), Counters::parse(&text(4, 2.5)));
        assert_eq!(after.rows(), 4);
        let (batches, bytes, messages, phases) = after.since(&before);
        assert_eq!((batches, bytes, messages), (3, 300, 6));
        assert_eq!((phases.linear, phases.waiting, phases.preparation), (1500.0, 500.0, 0.0));
        let (batches, _, _, phases) = after.since(&Counters::default());
        assert_eq!((batches, phases.preparation), (4, 1000.0));
    }

    #[test]
    fn times_of_calls_are_found_in_a_log() {
        let line = |second: &str, method: &str, took: u32| {
            format!(
                "{{\"timestamp\":\"2026-11-30T23:59:{second}Z\",\"level\":\"DEBUG\",\"fields\":{{\"message\":\"the \
                 call has ended\",\"code\":\"OK\",\"took_us\":{took}}},\"target\":\"concilium_server::calls\",\
                 \"spans\":[{{\"method\":\"{method}\",\"request\":\"00ff\",\"name\":\"call\"}}]}}\n"
            )
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let text =
            [line("58.000250", "Predict", 250), line("59.5", "ListTasks", 10), "no JSON\n{}\n".to_owned()];
        fs::write(&path, text.concat()).unwrap();
        let found = calls(&path);
        assert_eq!(found.len(), 1);
        assert_eq!(found["00ff"].ended - found["00ff"].began, 250);
        // The same request again.
        fs::write(&path, text.concat() + &line("59.000250", "Predict", 100)).unwrap();
        assert_eq!(calls(&path)["00ff"].ended - calls(&path)["00ff"].began, 1_000_250);
        assert!(calls(&folder.path().join("absent")).is_empty());
    }

    #[test]
    fn moments_are_compared_across_days_and_months() {
        let between = |from: &str, to: &str| microseconds(to).unwrap() - microseconds(from).unwrap();
        for (from, to) in [
            ("2026-11-30T23:59:59.5Z", "2026-12-01T00:00:00.5Z"),
            ("2026-12-31T23:59:59.5Z", "2027-01-01T00:00:00.5Z"),
            ("2028-02-28T23:59:59.5Z", "2028-02-29T00:00:00.5Z"),
            ("2028-02-29T23:59:59.5Z", "2028-03-01T00:00:00.5Z"),
            ("2027-02-28T23:59:59.5Z", "2027-03-01T00:00:00.5Z"),
        ] {
            assert_eq!(between(from, to), 1_000_000, "{from}");
        }
        assert_eq!(
            between("2026-01-01T00:00:00.000001Z", "2027-01-01T00:00:00.000003Z"),
            365 * 86_400_000_000 + 2
        );
        assert_eq!(microseconds("yesterday"), None);
    }
}
