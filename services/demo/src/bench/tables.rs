//! Sets of measurements as tables in Markdown: those of docs/performance.md.

use clap::ValueEnum;
use concilium_client_library::terminal::Failure;

use super::options::{BenchArguments, BenchOptions, Transport};
use super::report::{Measurement, Phases, ms};
use super::{BenchError, run_bench};
use crate::cluster::ServerProgram;
use crate::progress::say;

/// Which tables are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableSet {
    /// All of them.
    All,
    /// W1: one model, one row and 128 rows.
    Perceptron,
    /// W2: the votes of 10, 50 and 250 owners.
    Owners,
    /// W3: one convolutional network, one row and 32 rows.
    Lenet,
    /// Slow links between the servers.
    Links,
    /// Several clients at a time.
    Throughput,
}

/// One row: what is measured, as the options that measure it.
type Row = &'static str;

/// A table: the set that it is in, title and rows.
const TABLES: [(TableSet, &str, &[Row]); 5] = [
    (
        TableSet::Perceptron,
        "W1: one 784-128-128-10 network",
        &[
            "--transport memory --release logits",
            "--transport memory",
            "",
            "--release label",
            "--batch 128 --transport memory --release logits",
            "--batch 128 --transport memory",
            "--batch 128",
            "--batch 128 --release label",
            "--batch 128 --ring 32",
        ],
    ),
    (
        TableSet::Owners,
        "W2: votes of 10, 50 and 250 owners' 784-128-128-10 networks",
        &[
            "--owners 10 --transport memory",
            "--owners 50 --transport memory",
            "--owners 250 --transport memory",
            "--owners 10",
            "--owners 50",
            "--owners 50 --release label",
            "--owners 250",
            "--owners 50 --ring 32",
            "--owners 250 --ring 32",
        ],
    ),
    (
        TableSet::Lenet,
        "W3: one network of LeNet's size",
        &[
            "--network lenet --transport memory --release logits",
            "--network lenet --transport memory",
            "--network lenet",
            "--network lenet --batch 32 --transport memory --release logits",
            "--network lenet --batch 32 --transport memory",
            "--network lenet --batch 32",
            "--network lenet --ring 32",
            "--network lenet --batch 32 --ring 32",
        ],
    ),
    (
        TableSet::Links,
        "Slow links between the servers",
        &[
            "--delay-ms 20",
            "--owners 50 --delay-ms 20",
            "--owners 50 --delay-ms 20 --bandwidth-mbit 100",
            "--network lenet --delay-ms 20",
            "--network lenet --batch 32 --delay-ms 20 --bandwidth-mbit 100",
            "--delay-ms 20 --clients 8",
        ],
    ),
    (
        TableSet::Throughput,
        "Several clients at a time, one row in each request",
        &[
            "--clients 1",
            "--clients 8",
            "--clients 32",
            "--owners 50 --clients 1",
            "--owners 50 --clients 8",
            "--owners 50 --clients 32",
        ],
    ),
];

/// Makes the tables of `set`, each row with the seed and as many requests as `asked` says, and gives each to `finished`
/// when it is done; `program` runs a server.
///
/// # Errors
/// The [`BenchError`] of the first measurement that fails, or the failure of `finished`.
pub async fn run_tables(
    set: TableSet,
    asked: &BenchOptions,
    program: &ServerProgram,
    mut finished: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<Vec<Measurement>, Failure> {
    let chosen: Vec<_> = TABLES.into_iter().filter(|(of, ..)| set == TableSet::All || set == *of).collect();
    let count: usize = chosen.iter().map(|(.., rows)| rows.len()).sum();
    let mut all: Vec<Measurement> = Vec::new();
    for (_, title, rows) in chosen {
        let mut measured = Vec::new();
        for row in rows {
            say(format_args!("[{} of {count}] concilium-demo bench {row}", all.len() + measured.len() + 1));
            let options = BenchOptions { repeat: asked.repeat, seed: asked.seed, ..row_options(row)? };
            measured.push(run_bench(&options, program.clone()).await?);
        }
        let head = if all.is_empty() { head(&measured[0]) } else { String::new() };
        finished(&format!("{head}{}", table(title, rows, &measured)))?;
        all.extend(measured);
    }
    Ok(all)
}

/// The options of a row. Rows are in this file, and a test reads them all.
fn row_options(row: Row) -> Result<BenchOptions, BenchError> {
    let arguments = BenchArguments::of_line(row).expect("rows are good command lines");
    BenchOptions::new(&arguments)
}

/// Where and how it was measured.
fn head(first: &Measurement) -> String {
    let machine = &first.machine;
    format!(
        "{}, {} cores ({}), {}; load {} before. {} requests of each client for each row, seed {}; release build. \
         Each row is what `concilium-demo bench --repeat {} --seed {} ROW` prints.\n\n",
        machine.processor,
        machine.cores,
        machine.features.join(", "),
        machine.date,
        machine.load_before.map_or_else(|| "unknown".to_owned(), |load| load.to_string()),
        first.repeat,
        first.seed,
        first.repeat,
        first.seed,
    )
}

/// One table of figures, and one of phases.
fn table(title: &str, rows: &[Row], measured: &[Measurement]) -> String {
    let name = |row: Row| if row.is_empty() { "(defaults)".to_owned() } else { format!("`{row}`") };
    let mut text = format!(
        "### {title}\n\n\
         | options | server ms p50 | p95 | min | client ms p50 | queries/s | rounds | kB sent by servers 0, 1, 2 | \
         messages | peak MB |\n|---|---|---|---|---|---|---|---|---|---|\n"
    );
    let three = |values: [u64; 3], show: fn(u64) -> String| values.map(show).join(", ");
    for (row, found) in rows.iter().zip(measured) {
        text += &format!(
            "| {} | {} | {} | {} | {} | {:.0} | {} | {} | {} | {} |\n",
            name(row),
            ms(found.server_ms.p50),
            ms(found.server_ms.p95),
            ms(found.server_ms.min),
            ms(found.client_ms.p50),
            found.queries_per_second,
            found.rounds,
            three(found.bytes_per_party, |bytes| ms(bytes as f64 / 1e3)),
            three(found.messages_per_party, |messages| messages.to_string()),
            peak(found),
        );
    }
    text += "\nPhases of a batch in ms, mean of the three servers, and once for each model:\n\n\
             | options | preparation | linear | comparison | opening | ledger | waiting | import | share | \
             pack |\n|---|---|---|---|---|---|---|---|---|---|\n";
    for (row, found) in rows.iter().zip(measured) {
        let once = found.once_per_model;
        let phases = mean(found.phases_ms).map(ms).join(" | ");
        text += &format!(
            "| {} | {phases} | {} | {} | {} |\n",
            name(row),
            ms(once.import_ms),
            ms(once.sharing_ms),
            once.packing_ms.map_or_else(|| "in share".to_owned(), ms),
        );
    }
    text
}

/// Memory of three server processes. This process has made several measurements, and keeps what they freed.
fn peak(found: &Measurement) -> String {
    match found.transport {
        Transport::Tls => found.peak_rss_bytes.map(|bytes| (bytes >> 20).to_string()).join(", "),
        Transport::Memory => "-".to_owned(),
    }
}

fn mean(phases: [Phases; 3]) -> [f64; 6] {
    let values = phases.map(Phases::values);
    std::array::from_fn(|place| values.iter().map(|server| server[place]).sum::<f64>() / 3.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_can_be_measured() {
        let mut seen = std::collections::BTreeSet::new();
        for (_, title, rows) in TABLES {
            for row in rows {
                row_options(row).unwrap_or_else(|error| panic!("{row}: {error}"));
                assert!(seen.insert((title, row)), "{row} stands twice in {title}");
            }
        }
        assert_eq!(row_options("--owners 50 --clients 8").unwrap().owners, 50);
    }
}
