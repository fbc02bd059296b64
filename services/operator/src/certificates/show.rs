//! Telling certificates apart: whose they are, who signed them, how long they last.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use concilium_client_library::terminal::{Failure, FailureClass, Output};
use concilium_rpc::{
    certificates::AUTHORITY_CERTIFICATE_FILE,
    inspection::{CertificateInfo, Validity, utc},
    tls::{TlsError, TlsFiles},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::Serialize;

/// Largest file that is read, in bytes; a bundle of certificates is far smaller.
const MAXIMUM_FILE_BYTES: u64 = 1 << 20;

/// One certificate, and what is known about the files around it.
#[derive(Debug, Serialize)]
struct Shown {
    file: PathBuf,
    /// `null` for an authority.
    identity: Option<String>,
    subject: String,
    serial: String,
    key_id: String,
    authority: String,
    is_authority: bool,
    not_before_unix_s: i64,
    not_after_unix_s: i64,
    valid_from: String,
    valid_until: String,
    days_left: i64,
    hosts: Vec<String>,
    /// The private key beside the certificate, if there is one.
    key_file: Option<PathBuf>,
    /// What should be done soon.
    warnings: Vec<String>,
    /// Why the certificate cannot be used.
    faults: Vec<String>,
}

/// Prints the certificates of files, and of the `.pem` files of folders.
///
/// # Errors
/// [`Failure`] if a path cannot be read, or if a certificate cannot be used; all are printed first.
pub fn show(paths: &[PathBuf], json: bool, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let mut shown = Vec::new();
    for path in paths {
        for file in files_of(path)? {
            shown.extend(
                inspect(&file, now).map_err(|problem| Failure::message(FailureClass::Input, problem))?,
            );
        }
    }
    if json {
        let text = serde_json::to_string_pretty(&shown)
            .map_err(|error| Failure::new(FailureClass::Local, &error))?;
        output.line(text)?;
    } else {
        shown.iter().try_for_each(|certificate| print(certificate, output))?;
    }
    let faults = shown.iter().filter(|certificate| !certificate.faults.is_empty()).count();
    match faults {
        0 => Ok(()),
        1 => Err(Failure::message(FailureClass::Input, "a certificate cannot be used, see FAULT above")),
        _ => Err(Failure::message(
            FailureClass::Input,
            format!("{faults} certificates cannot be used, see FAULT above"),
        )),
    }
}

/// The file itself, or the `.pem` files of a folder in order.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::message(FailureClass::Input, format!("cannot read `{}`: {error}", path.display()))
    };
    if !fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries =
        fs::read_dir(path).map_err(unreadable)?.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "pem"));
    if files.is_empty() {
        let problem = format!("`{}` holds no .pem file", path.display());
        return Err(Failure::message(FailureClass::Input, problem));
    }
    files.sort();
    Ok(files)
}

/// The certificates of a PEM file, at least one; or what is wrong with it.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateInfo>, String> {
    let name = path.display();
    let length = fs::metadata(path).map_err(|error| format!("cannot read `{name}`: {error}"))?.len();
    if length > MAXIMUM_FILE_BYTES {
        return Err(format!("`{name}` is larger than {MAXIMUM_FILE_BYTES} bytes; it should be a PEM file"));
    }
    let pem = fs::read(path).map_err(|error| format!("cannot read `{name}`: {error}"))?;
    let unreadable = || {
        format!("`{name}` holds no readable certificate; it should be a PEM file with `BEGIN CERTIFICATE`")
    };
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .map(|der| CertificateInfo::read(&der.map_err(|_| unreadable())?).map_err(|_| unreadable()))
        .collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() { Err(unreadable()) } else { Ok(certificates) }
}

fn inspect(path: &Path, now: i64) -> Result<Vec<Shown>, String> {
    let certificates = read_certificates(path)?;
    let key = path.with_extension("key");
    let ca = path.with_file_name(AUTHORITY_CERTIFICATE_FILE);
    let shown = certificates.into_iter().enumerate().map(|(position, info)| {
        let (mut warnings, mut faults) = (Vec::new(), Vec::new());
        let end = utc(info.not_after);
        match info.validity_at(now) {
            Validity::Good { .. } => {}
            Validity::Ending { days } => warnings.push(format!("expires in {days} days; renew it")),
            Validity::Expired => faults.push(format!("expired at {end}; renew it")),
            Validity::NotYet => faults.push(format!(
                "is valid from {} only; set this machine's clock, or wait",
                utc(info.not_before)
            )),
        }
        if !info.is_authority
            && let Err(error) = &info.identity
        {
            faults.push(error.to_string());
        }
        // Only the first certificate of a file is its holder's; others are of authorities.
        let key_file = (position == 0 && key.exists()).then(|| key.clone());
        if position == 0 && !info.is_authority {
            match &key_file {
                Some(key) => check_set(path, key, &ca, &mut warnings, &mut faults),
                None => warnings.push(format!("there is no key `{}` beside it", key.display())),
            }
        }
        Shown {
            file: path.to_owned(),
            identity: info.identity.as_ref().ok().map(ToString::to_string),
            subject: info.subject,
            serial: info.serial,
            key_id: info.key_id,
            authority: info.issuer,
            is_authority: info.is_authority,
            not_before_unix_s: info.not_before,
            not_after_unix_s: info.not_after,
            valid_from: utc(info.not_before),
            valid_until: end,
            days_left: (info.not_after - now).div_euclid(86_400),
            hosts: info.hosts,
            key_file,
            warnings,
            faults,
        }
    });
    Ok(shown.collect())
}

/// What a program would say that loads the certificate with the key and the authority beside it.
fn check_set(path: &Path, key: &Path, ca: &Path, warnings: &mut Vec<String>, faults: &mut Vec<String>) {
    let files = TlsFiles { ca: ca.to_owned(), certificate: path.to_owned(), key: key.to_owned() };
    match files.load() {
        // The validity is told already, and somebody else's key need not be readable.
        Ok(_) | Err(TlsError::NotValidNow { .. }) => {}
        Err(error @ TlsError::Read { .. }) => warnings.push(format!("cannot be checked: {error}")),
        Err(error) => faults.push(error.to_string()),
    }
}

fn print(shown: &Shown, output: &mut Output<impl Write>) -> Result<(), Failure> {
    output.line(shown.file.display())?;
    let holder = shown.identity.clone().unwrap_or_else(|| shown.subject.clone());
    output.line(format_args!("  holder     {holder}"))?;
    output.line(format_args!("  serial     {}", shown.serial))?;
    let key = shown.key_file.as_ref().map(|key| format!(", private key in {}", key.display()));
    output.line(format_args!("  key id     {}{}", shown.key_id, key.unwrap_or_default()))?;
    output.line(format_args!("  authority  {}", shown.authority))?;
    output.line(format_args!(
        "  valid      {} to {}, {} days left",
        shown.valid_from, shown.valid_until, shown.days_left
    ))?;
    if !shown.hosts.is_empty() {
        output.line(format_args!("  hosts      {}", shown.hosts.join(" ")))?;
    }
    for warning in &shown.warnings {
        output.line(format_args!("  WARNING    {warning}"))?;
    }
    for fault in &shown.faults {
        output.line(format_args!("  FAULT      {fault}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use concilium_rpc::{
        certificates::Authority,
        identity::{Identity, Role},
    };

    use super::*;

    fn shown(paths: &[PathBuf], json: bool) -> (String, Result<(), Failure>) {
        let mut bytes = Vec::new();
        let result = show(paths, json, &mut Output::new(&mut bytes));
        (String::from_utf8(bytes).unwrap(), result)
    }

    #[test]
    fn a_folder_shows_every_certificate_with_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let issue = |role, name: &str, days| {
            let identity = Identity::new(role, name).unwrap();
            authority.issue(&identity, &[], days).unwrap().save(folder.path()).unwrap()
        };
        let server = issue(Role::Server, "server-0", 100);
        let alice = issue(Role::Client, "alice", 10);
        let paths = [folder.path().to_owned()];
        let (text, result) = shown(&paths, false);
        assert!(result.is_ok(), "{text}");
        for needle in [
            "holder     server `server-0`",
            "hosts      server-0.concilium",
            "holder     client `alice`",
            "WARNING    expires in ",
            "holder     Concilium authority",
        ] {
            assert!(text.contains(needle), "{needle}: {text}");
        }
        let (text, _) = shown(&paths, true);
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        let list = parsed.as_array().unwrap();
        assert_eq!(list.len(), 3, "ca.pem, client-alice.pem and server-0.pem: {text}");
        assert_eq!(list[2]["serial"], server.load().unwrap().info().serial.as_str());
        assert_eq!(list[1]["warnings"].as_array().unwrap().len(), 1);

        fs::copy(&alice.key, &server.key).unwrap();
        let (text, result) = shown(std::slice::from_ref(&server.certificate), false);
        assert_eq!(result.unwrap_err().class(), FailureClass::Input);
        assert!(text.contains("FAULT") && text.contains("does not belong"), "{text}");

        let ended =
            authority.issue_between(&Identity::server(2).unwrap(), &[], 1_000_000, 2_000_000).unwrap();
        let ended = ended.save(folder.path()).unwrap();
        let (text, result) = shown(&[ended.certificate], false);
        assert!(result.is_err() && text.contains("FAULT      expired at 1970-01-24"), "{text}");
    }

    #[test]
    fn paths_that_are_no_certificates_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (_, result) = shown(&[folder.path().to_owned()], false);
        assert!(result.unwrap_err().to_string().contains("no .pem file"));
        let file = folder.path().join("x.pem");
        fs::write(&file, "hello").unwrap();
        let (_, result) = shown(std::slice::from_ref(&file), false);
        assert!(result.unwrap_err().to_string().contains("x.pem` holds no readable certificate"));
        let (_, result) = shown(&[folder.path().join("none.pem")], false);
        assert!(result.unwrap_err().to_string().contains("none.pem"));
    }
}
