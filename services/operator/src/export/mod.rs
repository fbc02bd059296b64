//! Exported ledgers: fetched from the servers, kept in files, and checked by an auditor who needs neither
//! a server nor a certificate of its own.

mod check;
mod file;

use std::{
    fs::{self, OpenOptions},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use concilium_client_library::{
    Connection,
    export::export_log,
    terminal::{Failure, FailureClass, Output},
};
use concilium_privacy::{NanoRho, convert::epsilon};
use concilium_rpc::{inspection::utc, signature::Authorities};

use self::check::{CheckedLog, check, differences};

/// Fetches the log of one server, checks it, and writes it to a new file.
///
/// # Errors
/// [`Failure`]: the server refuses, the log does not hold, or the file exists or cannot be written.
pub async fn export(
    connection: &Connection,
    server: u8,
    path: &Path,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let log = export_log(connection, server).await?;
    let checked = check(&log, connection.authorities())
        .map_err(|error| refused(&format!("server {server}"), &error))?;
    let unwritable = |error: &dyn std::fmt::Display| {
        Failure::message(FailureClass::Local, format!("cannot write `{}`: {error}", path.display()))
    };
    // An export is evidence; it is not written over.
    let file =
        OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| unwritable(&error))?;
    let mut writer = BufWriter::new(file);
    file::write(&log, &checked, &mut writer).map_err(|error| unwritable(&error))?;
    writer
        .into_inner()
        .map_err(|error| unwritable(&error))?
        .sync_all()
        .map_err(|error| unwritable(&error))?;
    output.line(format_args!(
        "wrote {}: {} entries of server {}, head {}",
        path.display(),
        checked.statement.entries,
        checked.server,
        hex::encode(&checked.statement.head_hash)
    ))
}

/// Checks exported files and compares them with each other.
///
/// # Errors
/// [`Failure`]: of input if a file cannot be read, of refusal if one does not hold or they differ.
pub fn verify(files: &[PathBuf], ca: &Path, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let input = |problem: String| Failure::message(FailureClass::Input, problem);
    let authorities = Authorities::load(ca).map_err(|error| input(error.to_string()))?;
    let mut logs = Vec::new();
    for path in files {
        let name = path.display().to_string();
        let text =
            fs::read_to_string(path).map_err(|error| input(format!("cannot read `{name}`: {error}")))?;
        let log = file::read(&text).map_err(|error| input(format!("`{name}` {error}")))?;
        let checked = check(&log, &authorities).map_err(|error| refused(&format!("`{name}`"), &error))?;
        if let Some(line) = file::first_difference(&text, &log, &checked) {
            let problem = format!("line {line} does not say what its bytes say; the text was changed");
            return Err(refused(&format!("`{name}`"), &problem));
        }
        logs.push((name, checked));
    }
    conclude(&logs, output)
}

/// Fetches the logs of all three servers, checks them, and compares them.
///
/// # Errors
/// As [`verify`], and [`Failure`] if a server does not answer.
pub async fn verify_live(connection: &Connection, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let mut logs = Vec::new();
    for server in 0..3 {
        let log = export_log(connection, server).await?;
        let name = format!("server {server}");
        let checked = check(&log, connection.authorities()).map_err(|error| refused(&name, &error))?;
        logs.push((name, checked));
    }
    conclude(&logs, output)
}

fn refused(what: &str, problem: &dyn std::fmt::Display) -> Failure {
    Failure::message(FailureClass::Refused, format!("the log of {what} does not hold: {problem}"))
}

/// Prints what the logs say, and fails for the first of their differences.
fn conclude(logs: &[(String, CheckedLog)], output: &mut Output<impl Write>) -> Result<(), Failure> {
    let header = ["log", "server", "signed", "version", "opendp", "entries", "head"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (name, log) in logs {
        rows.push(vec![
            name.clone(),
            log.server.to_string(),
            utc(log.signed_unix_ms / 1000),
            log.statement.version.clone(),
            log.statement.opendp_version.clone(),
            log.statement.entries.to_string(),
            hex::encode(log.statement.head_hash.get(..8).unwrap_or_default()),
        ]);
    }
    output.table(&rows)?;
    let header = ["log", "task", "epoch", "requests", "rows", "rho", "epsilon", "delta"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (name, log) in logs {
        for ((task, epoch), spent) in &log.spent {
            let delta = log.delta(task);
            let total = spent.total;
            rows.push(vec![
                name.clone(),
                task.clone(),
                epoch.to_string(),
                total.requests.to_string(),
                total.rows.to_string(),
                total.rho.to_string(),
                delta.map_or_else(
                    || "-".to_owned(),
                    |delta| match total.rho {
                        NanoRho::ZERO => "0".to_owned(),
                        rho => {
                            epsilon(rho, delta).map_or_else(|_| "-".to_owned(), |value| format!("{value:.3}"))
                        }
                    },
                ),
                delta.map_or_else(|| "-".to_owned(), |delta| delta.to_string()),
            ]);
        }
    }
    output.table(&rows)?;
    let header = ["log", "task", "epoch", "began as", "attested by", "carried rho"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (name, log) in logs {
        rows.extend(log.begun.iter().map(|((task, epoch), begun)| {
            let (basis, carried) = (begun.basis_in_words(), begun.carried.to_string());
            vec![name.clone(), task.clone(), epoch.to_string(), basis, begun.attested_by.clone(), carried]
        }));
    }
    if rows.len() > 1 {
        output.table(&rows)?;
    }
    let told = differences(logs);
    if told.is_empty() {
        return output.line(format_args!("OK: {} logs hold and agree", logs.len()));
    }
    for difference in &told {
        output.line(format_args!("DIFFERENT: {difference}"))?;
    }
    Err(Failure::message(
        FailureClass::Refused,
        format!(
            "the logs differ in {} ways; find out which server is faulty or was restored from an old copy, and \
             trust none of the budgets until then",
            told.len()
        ),
    ))
}

#[cfg(test)]
mod tests;
