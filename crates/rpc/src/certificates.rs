//! A small certificate authority, so that a trial or a small deployment needs no other tool.
//!
//! One authority signs a certificate for each server, owner, client and operator. A server's
//! certificate also holds the DNS name `server-<index>.concilium`, which only this authority can
//! issue: whoever connects verifies that name, and thereby that it reached the server it meant, under
//! whatever address.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    identity::{Identity, IdentityError, Role},
    tls::TlsFiles,
};

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

/// How far back a certificate is valid, so that a machine with a slow clock accepts it.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

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
        set_validity(&mut parameters, AUTHORITY_DAYS);
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
        if !(1..=MAX_DAYS).contains(&days) {
            return Err(AuthorityError::Days { days });
        }
        let signing = |source| AuthorityError::Signing { subject: identity.to_string(), source };
        let mut parameters = CertificateParams::default();
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
        set_validity(&mut parameters, days);
        let key = KeyPair::generate().map_err(signing)?;
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(signing)?;
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
        write_file(&files.key, self.key_pem.as_bytes(), true)?;
        write_file(&files.certificate, self.certificate_pem.as_bytes(), false)?;
        write_file(&files.ca, self.authority_pem.as_bytes(), false)?;
        Ok(files)
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

fn set_validity(parameters: &mut CertificateParams, days: u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    parameters.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    parameters.not_after = epoch + now + Duration::from_secs(u64::from(days) * 86_400);
}

fn create_folder(folder: &Path) -> Result<(), AuthorityError> {
    fs::create_dir_all(folder).map_err(|source| AuthorityError::File {
        action: "create",
        path: folder.to_owned(),
        source,
    })
}

/// Replaces `path` in one step, so that no reader sees half a file and a private key is never, not
/// even for a moment, readable by others.
fn write_file(path: &Path, content: &[u8], private: bool) -> Result<(), AuthorityError> {
    let failed = |source| AuthorityError::File { action: "write", path: path.to_owned(), source };
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    if let Err(error) = fs::remove_file(&partial)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(if private { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = private;
    let mut file = options.open(&partial).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&partial, path).map_err(failed)
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
