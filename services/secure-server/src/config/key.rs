//! The description of one key, and the check of one value by itself.

use std::net::SocketAddr;

use concilium_postgres::check_url;
use concilium_privacy::{Delta, NanoRho, NoiseScale};
use concilium_rpc::identity::{ANY_NAME, check_name};
use toml::Value;

use crate::log::LogFilter;

/// One key of a configuration file. Reading, checking, `config schema` and the documentation all go
/// by this.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The name with its section, as `limits.batch_rows`.
    pub name: &'static str,
    /// Type, unit and limits.
    pub kind: Kind,
    /// Whether it must be given.
    pub given: Given,
    /// What it means.
    pub meaning: &'static str,
}

/// Whether a key must be given. Values are TOML text.
#[derive(Clone, Copy, Debug)]
pub enum Given {
    /// It must; this is an example.
    Required(&'static str),
    /// It has this default.
    Default(&'static str),
    /// It may be left out.
    Optional {
        /// An example.
        example: &'static str,
        /// What holds without it.
        absent: &'static str,
    },
}

/// Type, unit and limits of a value.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// IP address and port to listen on.
    Address,
    /// `host:port` of servers 0, 1 and 2.
    Peers,
    /// The URL of a PostgreSQL database, without a password.
    Database,
    /// A file or folder; relative ones start at the configuration file's folder.
    Path,
    /// true or false.
    Boolean,
    /// A whole number.
    Integer {
        /// The unit, or empty for a plain count.
        unit: &'static str,
        /// Least allowed.
        low: i64,
        /// Most allowed.
        high: i64,
    },
    /// One of these whole numbers.
    Numbers {
        /// The unit.
        unit: &'static str,
        /// What is allowed.
        numbers: &'static [i64],
    },
    /// A width of noise, in votes, exact.
    Noise,
    /// A privacy loss, exact.
    Rho,
    /// A delta, exact.
    Delta,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Names from certificates.
    Names {
        /// Whether `"*"` may stand for all.
        wildcard: bool,
    },
    /// A line of text.
    Text {
        /// Most bytes.
        most: usize,
    },
    /// A list of texts.
    Texts,
    /// Sizes of the axes of an input.
    Shape,
    /// One number for all features or a list with one for each.
    Bound,
    /// Directives for the log.
    LogFilter,
    /// `http://host:port`, or empty.
    Endpoint,
}

/// What is wrong with a value, and what to do.
pub(crate) type Complaint = (String, String);

impl Key {
    /// The default or an example: a value that is good by itself.
    pub(crate) fn sample(&self) -> Value {
        let (Given::Required(text) | Given::Default(text) | Given::Optional { example: text, .. }) =
            self.given;
        // A test reads the samples of all keys.
        toml::from_str::<toml::Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or(Value::Boolean(false))
    }

    /// The variable that overrides the key.
    pub fn variable(&self) -> String {
        format!("{}{}", super::VARIABLE_PREFIX, self.name.replace('.', super::SEPARATOR).to_uppercase())
    }
}

impl Kind {
    /// Type, unit and limits in words.
    pub fn describe(&self) -> String {
        match self {
            Kind::Address => "IP address and port".to_owned(),
            Kind::Peers => "list of three host:port".to_owned(),
            Kind::Path => "path".to_owned(),
            Kind::Boolean => "true or false".to_owned(),
            Kind::Integer { unit: "", low, high } => format!("whole number, {low} to {high}"),
            Kind::Integer { unit, low, high: i64::MAX } => format!("whole number, {unit}, at least {low}"),
            Kind::Integer { unit, low, high } => format!("whole number, {unit}, {low} to {high}"),
            Kind::Numbers { unit, numbers } => format!("whole number, {unit}, {}", alternatives(numbers)),
            Kind::Noise => "decimal number, votes, at least 2".to_owned(),
            Kind::Rho => "decimal number, rho, at least the price of one row".to_owned(),
            Kind::Delta => "decimal number, above 0 and below 1".to_owned(),
            Kind::Choice(words) => words.join(" or "),
            Kind::Names { wildcard: true } => "list of names, or [\"*\"]".to_owned(),
            Kind::Names { wildcard: false } => "list of names".to_owned(),
            Kind::Text { most } => format!("text in one line, at most {most} bytes"),
            Kind::Texts => "list of texts".to_owned(),
            Kind::Shape => "list of whole numbers".to_owned(),
            Kind::Bound => "number, or list with one for each feature".to_owned(),
            Kind::LogFilter => "log directives".to_owned(),
            Kind::Endpoint => "http://host:port or empty".to_owned(),
            Kind::Database => "postgres://user@host:port/database".to_owned(),
        }
    }

    /// The value that the text of a variable stands for. A text that can't be one stays a text, of which
    /// [`Self::check`] then complains.
    pub(crate) fn parse(&self, text: &str) -> Value {
        let trimmed = text.trim();
        let as_text = || Value::String(text.to_owned());
        match self {
            Kind::Boolean => trimmed.parse().map_or_else(|_| as_text(), Value::Boolean),
            Kind::Integer { .. } | Kind::Numbers { .. } => {
                trimmed.parse().map_or_else(|_| as_text(), Value::Integer)
            }
            Kind::Peers | Kind::Names { .. } | Kind::Texts => {
                let parts = trimmed.split(',').map(str::trim).filter(|part| !part.is_empty());
                Value::Array(parts.map(|part| Value::String(part.to_owned())).collect())
            }
            _ => as_text(),
        }
    }

    /// Complains about a value that can't be one of this kind, whatever the other keys say.
    pub(crate) fn check(&self, value: &Value) -> Result<(), Complaint> {
        let wrong_type = || {
            let found = match value {
                Value::String(_) => "a text",
                Value::Integer(_) => "a whole number",
                Value::Float(_) => "a fraction",
                Value::Boolean(_) => "true or false",
                Value::Datetime(_) => "a date",
                Value::Array(_) => "a list",
                Value::Table(_) => "a section",
            };
            Err((format!("is {found}"), format!("give {}", self.describe())))
        };
        let complain = |problem: String, remedy: &str| Err((problem, remedy.to_owned()));
        match (self, value) {
            (Kind::Address, Value::String(text)) => match text.parse::<SocketAddr>() {
                Ok(address) if address.port() == 0 => {
                    complain("has port 0".into(), "name a port from 1 to 65535")
                }
                Ok(_) => Ok(()),
                Err(_) => complain(
                    "is no IP address with a port".into(),
                    "write for example 127.0.0.1:7400, or 0.0.0.0:7400 for all of this host's addresses; \
                     host names are not taken here",
                ),
            },
            (Kind::Peers, Value::Array(items)) => check_peers(items).or_else(|(problem, remedy)| {
                if problem.is_empty() { wrong_type() } else { Err((problem, remedy)) }
            }),
            (Kind::Path, Value::String(text)) if text.is_empty() => {
                complain("is empty".into(), "name a file or folder")
            }
            (Kind::Path, Value::String(_)) | (Kind::Boolean, Value::Boolean(_)) => Ok(()),
            (Kind::Integer { low, high, .. }, Value::Integer(number)) => {
                if (*low..=*high).contains(number) {
                    return Ok(());
                }
                complain("is out of range".into(), &range(*low, *high))
            }
            (Kind::Numbers { numbers, .. }, Value::Integer(number)) => {
                if numbers.contains(number) {
                    return Ok(());
                }
                complain("is not supported".into(), &format!("use {}", alternatives(numbers)))
            }
            (Kind::Noise, _) => exact::<NoiseScale>(value).unwrap_or_else(wrong_type),
            (Kind::Rho, _) => exact::<NanoRho>(value).unwrap_or_else(wrong_type),
            (Kind::Delta, _) => exact::<Delta>(value).unwrap_or_else(wrong_type),
            (Kind::Choice(words), Value::String(text)) => {
                if words.contains(&text.as_str()) {
                    return Ok(());
                }
                complain("is not one of the choices".into(), &format!("use {}", words.join(" or ")))
            }
            (Kind::Names { wildcard }, Value::Array(items)) => match texts(items) {
                Some(names) => check_names(&names, *wildcard),
                None => wrong_type(),
            },
            (Kind::Text { most }, Value::String(text)) => {
                if text.trim().is_empty() {
                    complain("is empty".into(), "say who it is")
                } else if text.len() > *most || text.chars().any(char::is_control) {
                    complain("is no line of text".into(), &format!("use at most {most} bytes in one line"))
                } else {
                    Ok(())
                }
            }
            (Kind::Texts, Value::Array(items)) if texts(items).is_some() => Ok(()),
            (Kind::Shape, Value::Array(items)) => {
                let size = |item: &Value| item.as_integer().is_some_and(|size| size >= 1);
                if !items.is_empty() && items.iter().all(size) {
                    return Ok(());
                }
                complain("is no shape".into(), "list one size of at least 1 for each axis, as in [64]")
            }
            (Kind::Bound, Value::Integer(_)) => Ok(()),
            (Kind::Bound, Value::Float(number)) if number.is_finite() => Ok(()),
            (Kind::Bound, Value::Array(items)) => {
                let finite = |item: &Value| item.is_integer() || item.as_float().is_some_and(f64::is_finite);
                if !items.is_empty() && items.iter().all(finite) { Ok(()) } else { wrong_type() }
            }
            (Kind::LogFilter, Value::String(text)) => match text.parse::<LogFilter>() {
                Ok(_) => Ok(()),
                Err(error) => {
                    let text = error.to_string();
                    let remedy = "write a level, or directives such as info,concilium_server=debug";
                    let (problem, remedy) = text.split_once("; ").unwrap_or((&text, remedy));
                    complain(problem.to_owned(), remedy)
                }
            },
            (Kind::Endpoint, Value::String(text)) => check_endpoint(text),
            // Whether the host needs an authority is seen with the other keys.
            (Kind::Database, Value::String(text)) => match check_url(text) {
                Ok(()) => Ok(()),
                Err(error) => complain(
                    format!("is no database: {error}"),
                    "write postgres://user@host:port/database, and the password into a file",
                ),
            },
            _ => wrong_type(),
        }
    }
}

/// Complains about a number that can't be held exactly; `None` for what is no number.
fn exact<T>(value: &Value) -> Option<Result<(), Complaint>>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        _ => return None,
    };
    Some(match text.parse::<T>() {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            let (problem, remedy) = text.split_once("; ").unwrap_or((&text, "correct the number"));
            Err((format!("can't be used: {problem}"), remedy.to_owned()))
        }
    })
}

fn alternatives(numbers: &[i64]) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(" or ")
}

fn range(low: i64, high: i64) -> String {
    if high == i64::MAX { format!("use {low} or more") } else { format!("use {low} to {high}") }
}

fn texts(items: &[Value]) -> Option<Vec<&str>> {
    items.iter().map(Value::as_str).collect()
}

/// An empty problem stands for a wrong type.
fn check_peers(items: &[Value]) -> Result<(), Complaint> {
    let Some(addresses) = texts(items) else {
        return Err((String::new(), String::new()));
    };
    let complain = |problem: String, remedy: &str| Err((problem, remedy.to_owned()));
    if addresses.len() != 3 {
        let problem = format!("lists {} addresses", addresses.len());
        return complain(problem, "list the peer ports of servers 0, 1 and 2, this server's own included");
    }
    for address in &addresses {
        let sound = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(['/', '@', '?', '#', ' '])
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !sound {
            return complain(
                format!("holds `{address}`, which is not host:port"),
                "write for example s1.example.org:7410",
            );
        }
    }
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            return complain(format!("names {address} twice"), "each server has a peer port of its own");
        }
    }
    Ok(())
}

fn check_names(names: &[&str], wildcard: bool) -> Result<(), Complaint> {
    for name in names {
        if *name == ANY_NAME {
            if !wildcard {
                return Err(("holds `*`".to_owned(), "list the names of this role one by one".to_owned()));
            }
        } else if check_name(name).is_err() {
            let shown: String = name.chars().take(64).collect();
            return Err((
                format!("holds `{shown}`, which is no name"),
                "names have 1 to 64 of the characters a-z, 0-9 and -, as in the certificate".to_owned(),
            ));
        }
    }
    Ok(())
}

fn check_endpoint(text: &str) -> Result<(), Complaint> {
    let rest = text.strip_prefix("http://");
    let sound = rest.is_some_and(|rest| {
        let authority = rest.trim_end_matches('/');
        authority.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']) && port.parse::<u16>().is_ok()
        })
    });
    if text.is_empty() || sound {
        return Ok(());
    }
    Err((
        "is no address of a collector".to_owned(),
        "write http://host:port, or \"\" for no export; a collector on this host can send them on by TLS"
            .to_owned(),
    ))
}
