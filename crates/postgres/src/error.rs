//! What can go wrong with a database that holds a ledger.

use std::{io, path::PathBuf};

use rustls::CertificateError;
use thiserror::Error;

/// Why a database cannot hold the ledger, or could not be asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// The URL is none of a database. It is not repeated, because it may hold a password.
    #[error("the URL is not of the form postgres://user@host:5432/database: {0}")]
    Url(String),
    /// A password stands in the URL, where it is shown and logged.
    #[error("the URL holds a password; take it out and name a file that holds it")]
    PasswordInUrl,
    /// A database on another host without TLS.
    #[error("{host} is another host, and a connection to it needs TLS: name the file of its authority")]
    NoAuthority {
        /// The database's host.
        host: String,
    },
    /// The file of the authority cannot be used.
    #[error("`{path}` holds no readable certificate of an authority: {reason}")]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The database's settings would lose charges.
    #[error("the database has {setting} = {value}, with which a crash loses charges; set it to {needed}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        needed: &'static str,
    },
    /// The database logs values, and some of them are secret.
    #[error(
        "the database has log_statement = {value} and logs values with it, shares of results among them; \
         set log_statement to none or ddl, or log_parameter_max_length to 0"
    )]
    Logging {
        /// Value of `log_statement`.
        value: String,
    },
    /// A standby, which takes no writes.
    #[error("the database is a standby; connect to the primary")]
    Standby,
    /// The tables are of another version of this program.
    #[error("its tables are of layout {found}, and this program uses layout {supported}")]
    Layout {
        /// The database's.
        found: i32,
        /// This program's.
        supported: i32,
    },
    /// The database's certificate is signed by somebody else.
    #[error(
        "the database's certificate was not signed by an authority of `ledger.ca`; name the file of the authority \
         that signed it, or ask who answers at that address"
    )]
    OtherAuthority,
    /// The database's certificate is for another host.
    #[error(
        "the database's certificate does not hold the host's name ({0}); use a name in the URL that it holds, or \
         give the database a certificate for this one"
    )]
    OtherName(String),
    /// The database offers no TLS, and the server does not go on without.
    #[error(
        "the database has no TLS, and nothing is sent to it without: turn `ssl` on there, or connect through its \
         Unix socket"
    )]
    NoTls,
    /// The connection failed, or the database refused a statement.
    #[error("{}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
    /// The thread that talks to the database cannot be started.
    #[error("cannot start the thread of the database connection: {0}")]
    Thread(#[from] io::Error),
    /// The database did not answer in time.
    #[error("no answer within {0} s")]
    TimedOut(u64),
}

impl PostgresError {
    /// What kept a TLS connection from being made.
    pub(crate) fn of_handshake(error: tokio_postgres::Error) -> Self {
        let causes = || {
            std::iter::successors(std::error::Error::source(&error), |cause| {
                // An input or output error shows what is in it only when asked.
                match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                    Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
                    None => cause.source(),
                }
            })
        };
        match causes().find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(
                // What an unknown authority's signature looks like if its name is that of a known one.
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => Self::OtherAuthority,
            Some(rustls::Error::InvalidCertificate(
                name @ (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
            )) => Self::OtherName(name.to_string()),
            _ if causes().any(|cause| cause.to_string() == "server does not support TLS") => Self::NoTls,
            _ => Self::Database(error),
        }
    }
}

/// A database error with the database's own words. Detail and hint are left out: they may hold values.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(told) => format!("{} ({})", told.message(), told.code().code()),
        None => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text
        }
    }
}
