//! A small certificate authority, so that a trial or a small deployment needs no other tool.
//!
//! One authority signs a certificate for each server, owner, client and operator. A server's
//! certificate also holds the DNS name `server-<index>.concilium`, which only this authority can
//! issue: whoever connects verifies that name, and thereby that it reached the server it meant, under
//! whatever address.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    identity::{Identity, IdentityError, Role},
    inspection::CertificateInfo,
    tls::TlsFiles,
};

mod files;

use files::{create_folder, replace_pair, write_file};

/// File of the authority's certificate.
pub const AUTHORITY_CERTIFICATE_FILE: &str = "ca.pem";

/// File of the authority's private key.
pub const AUTHORITY_KEY_FILE: &str = "ca.key";

/// Domain of the names that stand for the servers whatever their address.
const SERVER_DOMAIN: &str = ".concilium";

/// Validity of the authority's own certificate, in days.
const AUTHORITY_DAYS: u32 = 3650;

/// Longest validity of an issued certificate, in days.
const MAX_DAYS: u32 = AUTHORITY_DAYS;

/// How far back a certificate is valid, in seconds, so that a machine with a slow clock accepts it.
const CLOCK_SKEW_SECONDS: i64 = 3600;

/// Seconds of a day.
const DAY_SECONDS: i64 = 86_400;

/// End of the year 9999, the latest that a certificate can name, in seconds since 1970-01-01 UTC.
const LATEST_SECONDS: i64 = 253_402_300_799;

/// Why a certificate was not issued or a file not written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("cannot {action} `{path}`: {source}")]
    File {
        /// `read`, `write` or `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason that the system gives.
        source: io::Error,
    },
    /// The folder holds an authority already.
    #[error("`{path}` exists: load that authority, or choose another folder for a new one")]
    Exists {
        /// The existing file.
        path: PathBuf,
    },
    /// The authority's files are not a certificate and its key.
    #[error("`{path}` is not a PEM file of an authority: {source}")]
    Load {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: rcgen::Error,
    },
    /// A host name cannot stand in the certificate.
    #[error("the host name `{host}` cannot stand in the certificate of {identity}: {problem}")]
    Host {
        /// The host name.
        host: String,
        /// Whose certificate it is.
        identity: Identity,
        /// The rule that it breaks.
        problem: &'static str,
    },
    /// The validity is out of range.
    #[error("a certificate can be valid for 1 to {MAX_DAYS} days, not {days}")]
    Days {
        /// The validity asked for.
        days: u32,
    },
    /// The validity is empty or outside the years that a certificate can name.
    #[error("a certificate cannot be valid from {not_before} to {not_after} (seconds since 1970)")]
    Validity {
        /// Begin, in seconds since 1970-01-01 UTC.
        not_before: i64,
        /// End, in seconds since 1970-01-01 UTC.
        not_after: i64,
    },
    /// The identity is not allowed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Key generation or signing failed.
    #[error("cannot make the certificate of {subject}: {source}")]
    Signing {
        /// Whose certificate it is.
        subject: String,
        /// What the library says.
        source: rcgen::Error,
    },
}

/// The DNS name that only the certificate of this server holds.
pub fn server_dns_name(server: u8) -> String {
    format!("server-{server}{SERVER_DOMAIN}")
}

/// Signs the certificates of one deployment. Holds the authority's private key.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority with a fresh ECDSA P-256 key, valid for ten years.
    ///
    /// # Errors
    /// [`AuthorityError::Signing`] if the system gives no randomness.
    pub fn create() -> Result<Self, AuthorityError> {
        let signing = |source| AuthorityError::Signing { subject: "the authority".to_owned(), source };
        let key = KeyPair::generate().map_err(signing)?;
        let mut parameters = CertificateParams::default();
        // The name ends in a part of the key's digest: certificates of two authorities can then be
        // told apart by their issuer, and the error about a mixed-up file can say so.
        let identifier: String =
            parameters.key_identifier(&key).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        parameters.distinguished_name.push(DnType::CommonName, format!("Concilium authority {identifier}"));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let (not_before, not_after) = validity_from_now(AUTHORITY_DAYS)?;
        set_validity(&mut parameters, not_before, not_after)?;
        let certificate = parameters.self_signed(&key).map_err(signing)?;
        Ok(Self { certificate_pem: certificate.pem(), issuer: Issuer::new(parameters, key) })
    }

    /// The authority whose files [`Authority::save`] wrote to `folder`.
    ///
    /// # Errors
    /// [`AuthorityError::File`] and [`AuthorityError::Load`] name the file.
    pub fn load(folder: &Path) -> Result<Self, AuthorityError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| AuthorityError::File {
                action: "read",
                path: path.to_owned(),
                source,
            })
        };
        let certificate_path = folder.join(AUTHORITY_CERTIFICATE_FILE);
        let key_path = folder.join(AUTHORITY_KEY_FILE);
        let certificate_pem = read(&certificate_path)?;
        let key_pem = Zeroizing::new(read(&key_path)?);
        let key =
            KeyPair::from_pem(&key_pem).map_err(|source| AuthorityError::Load { path: key_path, source })?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .map_err(|source| AuthorityError::Load { path: certificate_path, source })?;
        Ok(Self { certificate_pem, issuer })
    }

    /// Writes the authority to `folder`, which is made if need be: [`AUTHORITY_CERTIFICATE_FILE`], and
    /// [`AUTHORITY_KEY_FILE`] readable by the user alone.
    ///
    /// # Errors
    /// [`AuthorityError::Exists`] rather than overwrite an authority, [`AuthorityError::File`].
    pub fn save(&self, folder: &Path) -> Result<(), AuthorityError> {
        create_folder(folder)?;
        for file in [AUTHORITY_CERTIFICATE_FILE, AUTHORITY_KEY_FILE] {
            let path = folder.join(file);
            if path.exists() {
                return Err(AuthorityError::Exists { path });
            }
        }
        let key_pem = Zeroizing::new(self.issuer.key().serialize_pem());
        write_file(&folder.join(AUTHORITY_KEY_FILE), key_pem.as_bytes(), true)?;
        write_file(&folder.join(AUTHORITY_CERTIFICATE_FILE), self.certificate_pem.as_bytes(), false)
    }

    /// The authority's certificate in PEM: what every party needs to verify the others.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's certificate in DER.
    ///
    /// # Panics
    /// Never: the certificate was made or read by this type.
    pub fn certificate_der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).expect("it is a certificate")
    }

    /// A certificate with a fresh ECDSA P-256 key for `identity`, valid for `days` from now.
    ///
    /// `hosts` are further DNS names and IP addresses of a server; they help other tools, while
    /// Concilium's own programs verify the name of [`server_dns_name`]. Only servers have hosts, and
    /// only a server's certificate is good for accepting connections.
    ///
    /// # Errors
    /// [`AuthorityError::Host`], [`AuthorityError::Days`] or [`AuthorityError::Signing`].
    pub fn issue(
        &self,
        identity: &Identity,
        hosts: &[String],
        days: u32,
    ) -> Result<CertifiedKeyPem, AuthorityError> {
        let (not_before, not_after) = validity_from_now(days)?;
        self.issue_between(identity, hosts, not_before, not_after)
    }

    /// As [`Authority::issue`], valid between two times in seconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// [`AuthorityError::Host`], [`AuthorityError::Validity`] or [`AuthorityError::Signing`].
    pub fn issue_between(
        &self,
        identity: &Identity,
        hosts: &[String],
        not_before: i64,
        not_after: i64,
    ) -> Result<CertifiedKeyPem, AuthorityError> {
        let signing = |source| AuthorityError::Signing { subject: identity.to_string(), source };
        let key = KeyPair::generate().map_err(signing)?;
        self.certify(&key, identity, hosts, not_before, not_after)
    }

    /// A certificate for the holder and hosts of an old one, valid for `days` from now: for a fresh key,
    /// or for `key_pem`, which the holder keeps.
    ///
    /// # Errors
    /// [`AuthorityError::Identity`] if the old certificate names nobody, [`AuthorityError::Days`],
    /// [`AuthorityError::Signing`], also for a key that cannot be read.
    pub fn renew(
        &self,
        old: &CertificateInfo,
        days: u32,
        key_pem: Option<&str>,
    ) -> Result<CertifiedKeyPem, AuthorityError> {
        let (not_before, not_after) = validity_from_now(days)?;
        let identity = old.identity.clone()?;
        let signing = |source| AuthorityError::Signing { subject: identity.to_string(), source };
        let key = match key_pem {
            Some(pem) => KeyPair::from_pem(pem),
            None => KeyPair::generate(),
        }
        .map_err(signing)?;
        // The server's own name is added by itself.
        let own = identity.server_index().map(server_dns_name);
        let hosts: Vec<_> = old.hosts.iter().filter(|host| Some(*host) != own.as_ref()).cloned().collect();
        self.certify(&key, &identity, &hosts, not_before, not_after)
    }

    fn certify(
        &self,
        key: &KeyPair,
        identity: &Identity,
        hosts: &[String],
        not_before: i64,
        not_after: i64,
    ) -> Result<CertifiedKeyPem, AuthorityError> {
        let signing = |source| AuthorityError::Signing { subject: identity.to_string(), source };
        let mut parameters = CertificateParams::default();
        parameters.serial_number = Some(serial_number(identity)?);
        parameters.distinguished_name.push(DnType::CommonName, identity.name());
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = identity.uri().try_into().map_err(signing)?;
        parameters.subject_alt_names = vec![SanType::URI(uri)];
        if let Some(server) = identity.server_index() {
            parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            let name = server_dns_name(server).try_into().map_err(signing)?;
            parameters.subject_alt_names.push(SanType::DnsName(name));
        }
        for host in hosts {
            parameters.subject_alt_names.push(host_name(host, identity)?);
        }
        set_validity(&mut parameters, not_before, not_after)?;
        let certificate = parameters.signed_by(key, &self.issuer).map_err(signing)?;
        Ok(CertifiedKeyPem {
            identity: identity.clone(),
            authority_pem: self.certificate_pem.clone(),
            certificate_pem: certificate.pem(),
            certificate_der: certificate.der().clone(),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }
}

/// An issued certificate with its private key. Has no `Debug`, because of the key.
pub struct CertifiedKeyPem {
    identity: Identity,
    authority_pem: String,
    certificate_pem: String,
    certificate_der: CertificateDer<'static>,
    key_pem: Zeroizing<String>,
}

impl CertifiedKeyPem {
    /// The certificate in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The certificate in DER.
    pub fn certificate_der(&self) -> CertificateDer<'static> {
        self.certificate_der.clone()
    }

    /// The private key in PEM (PKCS 8). SECRET.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Writes the authority's certificate, the certificate and the key to `folder`, which is made if
    /// need be, and returns where they are: `ca.pem`, and `<name>.pem` and `<name>.key` for a server
    /// or `<role>-<name>.pem` and `<role>-<name>.key` for the others. Earlier files of these names are
    /// replaced; the key is readable by the user alone.
    ///
    /// # Errors
    /// [`AuthorityError::File`].
    pub fn save(&self, folder: &Path) -> Result<TlsFiles, AuthorityError> {
        create_folder(folder)?;
        let stem = match self.identity.role() {
            Role::Server => self.identity.name().to_owned(),
            role => format!("{role}-{}", self.identity.name()),
        };
        let files = TlsFiles {
            ca: folder.join(AUTHORITY_CERTIFICATE_FILE),
            certificate: folder.join(format!("{stem}.pem")),
            key: folder.join(format!("{stem}.key")),
        };
        self.replace(&files)?;
        write_file(&files.ca, self.authority_pem.as_bytes(), false)?;
        Ok(files)
    }

    /// Replaces the certificate and the key of `files`, and leaves its authorities as they are.
    ///
    /// # Errors
    /// [`AuthorityError::File`].
    pub fn replace(&self, files: &TlsFiles) -> Result<(), AuthorityError> {
        let key = (files.key.as_path(), self.key_pem.as_bytes());
        replace_pair(key, (files.certificate.as_path(), self.certificate_pem.as_bytes()))
    }
}

/// The entry of `host` in the certificate of `identity`.
fn host_name(host: &str, identity: &Identity) -> Result<SanType, AuthorityError> {
    let refuse =
        |problem| AuthorityError::Host { host: host.to_owned(), identity: identity.clone(), problem };
    if identity.role() != Role::Server {
        return Err(refuse("only servers have host names"));
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    if host.to_ascii_lowercase().trim_end_matches('.').ends_with(SERVER_DOMAIN) {
        return Err(refuse("names of the domain `concilium` stand for the servers"));
    }
    if rustls_pki_types::DnsName::try_from(host).is_err() {
        return Err(refuse("it is neither a DNS name nor an IP address"));
    }
    Ok(SanType::DnsName(host.to_owned().try_into().map_err(|_| refuse("it is not plain ASCII"))?))
}

/// A fresh serial number. The library would derive it from the key, and a renewed certificate that keeps
/// its key could then not be told from the old one.
fn serial_number(identity: &Identity) -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| AuthorityError::Signing {
        subject: identity.to_string(),
        source: rcgen::Error::RingUnspecified,
    })?;
    // Positive, and of the same length whatever was drawn.
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Ok(SerialNumber::from(bytes.to_vec()))
}

/// Seconds since 1970-01-01 UTC.
fn now_seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Begin and end of a validity of `days`, in seconds since 1970-01-01 UTC.
fn validity_from_now(days: u32) -> Result<(i64, i64), AuthorityError> {
    if !(1..=MAX_DAYS).contains(&days) {
        return Err(AuthorityError::Days { days });
    }
    let now = now_seconds();
    Ok((now - CLOCK_SKEW_SECONDS, now + i64::from(days) * DAY_SECONDS))
}

fn set_validity(
    parameters: &mut CertificateParams,
    not_before: i64,
    not_after: i64,
) -> Result<(), AuthorityError> {
    if !(0..not_after).contains(&not_before) || not_after > LATEST_SECONDS {
        return Err(AuthorityError::Validity { not_before, not_after });
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    parameters.not_before = epoch + Duration::from_secs(not_before.unsigned_abs());
    parameters.not_after = epoch + Duration::from_secs(not_after.unsigned_abs());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_authority_issues_the_same_chain() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        authority.save(folder.path()).unwrap();
        assert!(matches!(authority.save(folder.path()), Err(AuthorityError::Exists { .. })));
        let loaded = Authority::load(folder.path()).unwrap();
        let identity = Identity::server(1).unwrap();
        let issued = loaded.issue(&identity, &["host.example".into(), "10.0.0.1".into()], 30).unwrap();
        let files = issued.save(folder.path()).unwrap();
        assert_eq!(files.load().unwrap().identity(), &identity);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            for key in [files.key, folder.path().join(AUTHORITY_KEY_FILE)] {
                assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
            }
        }
    }

    #[test]
    fn hosts_and_days_are_checked() {
        let authority = Authority::create().unwrap();
        let server = Identity::server(0).unwrap();
        let client = Identity::new(Role::Client, "alice").unwrap();
        for host in ["server-1.concilium", "SERVER-1.Concilium.", "", "a b", "ä.example"] {
            let refused = authority.issue(&server, &[host.to_owned()], 1).err().unwrap();
            assert!(matches!(refused, AuthorityError::Host { .. }), "{host}: {refused}");
        }
        assert!(authority.issue(&client, &["localhost".to_owned()], 1).is_err());
        assert!(authority.issue(&server, &["localhost".to_owned(), "::1".to_owned()], 1).is_ok());
        assert!(authority.issue(&client, &[], 0).is_err());
        assert!(authority.issue(&client, &[], MAX_DAYS + 1).is_err());
    }

    #[test]
    fn a_missing_authority_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Authority::load(folder.path()).err().unwrap().to_string();
        assert!(error.contains(AUTHORITY_CERTIFICATE_FILE), "{error}");
        fs::write(folder.path().join(AUTHORITY_CERTIFICATE_FILE), "garbage").unwrap();
        fs::write(folder.path().join(AUTHORITY_KEY_FILE), "garbage").unwrap();
        let error = Authority::load(folder.path()).err().unwrap().to_string();
        assert!(error.contains(AUTHORITY_KEY_FILE), "{error}");
    }
}
