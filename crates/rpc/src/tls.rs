//! TLS settings from three files: the authority's certificate, the own certificate, the own key.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TlsIdentity, ServerTlsConfig};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::{
    certificates::server_dns_name,
    identity::{Identity, IdentityError, SERVERS},
};

/// Largest file that is read, in bytes; a chain of certificates is far smaller.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the TLS files cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason that the system gives.
        source: io::Error,
    },
    /// A file is too large to be a certificate or key.
    #[error("`{path}` is larger than {MAX_FILE_BYTES} bytes; it should be a PEM file")]
    LargeFile {
        /// The file.
        path: PathBuf,
    },
    /// A file holds no certificate.
    #[error("`{path}` holds no readable certificate; it should be a PEM file with `BEGIN CERTIFICATE`")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file holds no private key.
    #[error("`{path}` holds no readable private key; it should be a PEM file with `BEGIN PRIVATE KEY`")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together.
    #[error("the key `{key}` does not belong to the certificate `{certificate}`; use the pair of one issue")]
    KeyMismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// The certificate is of another authority.
    #[error("`{certificate}` was issued by `{issuer}`, which is not among the authorities in `{ca}`")]
    WrongAuthority {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the authorities.
        ca: PathBuf,
        /// Name of the issuer.
        issuer: String,
    },
    /// The certificate names no identity.
    #[error("`{path}`: {source}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
    /// The certificate is not valid any more or not yet.
    #[error(
        "the certificate `{path}` of {identity} is valid from {from} to {until}; issue a new one or set the clock"
    )]
    NotValidNow {
        /// The file.
        path: PathBuf,
        /// Whose certificate it is.
        identity: Identity,
        /// Begin of the validity.
        from: String,
        /// End of the validity.
        until: String,
    },
    /// A server was asked to serve with another party's certificate.
    #[error(
        "`{path}` is the certificate of {identity}, but a server needs its own; issue one for role server"
    )]
    NotAServer {
        /// The file.
        path: PathBuf,
        /// Whose certificate it is.
        identity: Identity,
    },
    /// There is no server of this index.
    #[error("there is no server {server}: the servers are 0, 1 and 2")]
    NoSuchServer {
        /// The index.
        server: u8,
    },
}

/// Where one party's TLS files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM file of the authorities whose certificates are accepted.
    pub ca: PathBuf,
    /// PEM file of the own certificate, followed by intermediate ones if there are any.
    pub certificate: PathBuf,
    /// PEM file of the own private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`TlsError`] names the file, the holder and the remedy.
    pub fn load(&self) -> Result<TlsMaterial, TlsError> {
        let ca_pem = read(&self.ca)?;
        let certificate_pem = read(&self.certificate)?;
        let key_pem = read(&self.key)?;
        let authorities = certificates(&self.ca, &ca_pem)?;
        let chain = certificates(&self.certificate, &certificate_pem)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|_| TlsError::NoKey { path: self.key.clone() })?;
        let (leaf, last) = match chain.as_slice() {
            [] => return Err(TlsError::NoCertificate { path: self.certificate.clone() }),
            [leaf] => (leaf, leaf),
            [leaf, .., last] => (leaf, last),
        };
        let identity = Identity::from_certificate(leaf)
            .map_err(|source| TlsError::Identity { path: self.certificate.clone(), source })?;
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|_| TlsError::NoCertificate { path: self.certificate.clone() })?;
        let validity = parsed.validity();
        if !validity.is_valid() {
            return Err(TlsError::NotValidNow {
                path: self.certificate.clone(),
                identity,
                from: validity.not_before.to_string(),
                until: validity.not_after.to_string(),
            });
        }
        let expires_unix_seconds = validity.not_after.timestamp();
        self.check_authority(&authorities, last)?;
        let signing_key = aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|_| TlsError::NoKey { path: self.key.clone() })?;
        if CertifiedKey::new(chain, signing_key).keys_match().is_err() {
            return Err(TlsError::KeyMismatch {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
            });
        }
        Ok(TlsMaterial {
            files: self.clone(),
            identity,
            expires_unix_seconds,
            ca_pem: ca_pem.to_vec(),
            certificate_pem: certificate_pem.to_vec(),
            key_pem: Arc::new(key_pem),
        })
    }

    /// Compares names only; the signature is verified by whoever we connect to. It finds mixed-up
    /// files before a handshake fails with less to say.
    fn check_authority(
        &self,
        authorities: &[CertificateDer<'_>],
        last: &CertificateDer<'_>,
    ) -> Result<(), TlsError> {
        let unreadable = |path: &Path| TlsError::NoCertificate { path: path.to_owned() };
        let (_, last) = X509Certificate::from_der(last).map_err(|_| unreadable(&self.certificate))?;
        for authority in authorities {
            let (_, authority) = X509Certificate::from_der(authority).map_err(|_| unreadable(&self.ca))?;
            if authority.subject() == last.issuer() {
                return Ok(());
            }
        }
        Err(TlsError::WrongAuthority {
            certificate: self.certificate.clone(),
            ca: self.ca.clone(),
            issuer: last.issuer().to_string(),
        })
    }
}

/// One party's checked certificate and key. Has no `Debug`, because of the key.
#[derive(Clone)]
pub struct TlsMaterial {
    files: TlsFiles,
    identity: Identity,
    expires_unix_seconds: i64,
    ca_pem: Vec<u8>,
    certificate_pem: Vec<u8>,
    key_pem: Arc<Zeroizing<Vec<u8>>>,
}

impl TlsMaterial {
    /// Whose certificate it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it was read from.
    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// End of the certificate's validity; the Unix epoch if it lies before that.
    pub fn expires(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(self.expires_unix_seconds).unwrap_or(0))
    }

    /// Settings for accepting connections: only from holders of a certificate of the authority.
    ///
    /// # Errors
    /// [`TlsError::NotAServer`].
    pub fn server_tls(&self) -> Result<ServerTlsConfig, TlsError> {
        install_crypto_provider();
        if self.identity.server_index().is_none() {
            return Err(TlsError::NotAServer {
                path: self.files.certificate.clone(),
                identity: self.identity.clone(),
            });
        }
        Ok(ServerTlsConfig::new()
            .identity(TlsIdentity::from_pem(&self.certificate_pem, self.key_pem.as_slice()))
            .client_ca_root(Certificate::from_pem(&self.ca_pem))
            .timeout(HANDSHAKE_TIMEOUT))
    }

    /// Settings for connecting to the server of this index: whatever address is dialled, the other
    /// side must hold that server's certificate.
    ///
    /// # Errors
    /// [`TlsError::NoSuchServer`].
    pub fn client_tls(&self, server: u8) -> Result<ClientTlsConfig, TlsError> {
        install_crypto_provider();
        if usize::from(server) >= SERVERS {
            return Err(TlsError::NoSuchServer { server });
        }
        Ok(ClientTlsConfig::new()
            .identity(TlsIdentity::from_pem(&self.certificate_pem, self.key_pem.as_slice()))
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .domain_name(server_dns_name(server))
            .timeout(HANDSHAKE_TIMEOUT))
    }
}

/// Makes aws-lc the process's TLS implementation, unless the process has chosen one. Every function
/// here that needs it calls it; a program may call it first thing in `main`.
pub fn install_crypto_provider() {
    // An error says that a provider is installed already, which is as good.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// The file's content, wiped when it is dropped because it may be a key.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(failed)?;
    // Allocated once at full size: growth would leave copies of a key in freed memory.
    let length = file.metadata().map_err(failed)?.len();
    if length > MAX_FILE_BYTES {
        return Err(TlsError::LargeFile { path: path.to_owned() });
    }
    let mut content = Zeroizing::new(Vec::with_capacity(length as usize + 1));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(TlsError::LargeFile { path: path.to_owned() });
    }
    Ok(content)
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = || TlsError::NoCertificate { path: path.to_owned() };
    let certificates =
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|_| unreadable())?;
    if certificates.is_empty() { Err(unreadable()) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{certificates::Authority, identity::Role};

    #[test]
    fn each_mixed_up_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let issue = |role, name| {
            let identity = Identity::new(role, name).unwrap();
            authority.issue(&identity, &[], 1).unwrap().save(folder.path()).unwrap()
        };
        let server = issue(Role::Server, "server-0");
        let client = issue(Role::Client, "alice");
        let material = server.load().unwrap();
        assert!(material.server_tls().is_ok());
        assert!(material.client_tls(2).is_ok());
        assert!(matches!(material.client_tls(3), Err(TlsError::NoSuchServer { server: 3 })));
        assert!(material.expires() > SystemTime::now());
        let material = client.load().unwrap();
        assert!(matches!(material.server_tls(), Err(TlsError::NotAServer { .. })));

        let mixed = TlsFiles { key: client.key.clone(), ..server.clone() };
        let error = mixed.load().err().unwrap();
        assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error}");
        assert!(error.to_string().contains("client-alice.key"), "{error}");

        let swapped = TlsFiles { key: server.certificate.clone(), ..server.clone() };
        assert!(matches!(swapped.load(), Err(TlsError::NoKey { .. })));
        let swapped = TlsFiles { certificate: server.key.clone(), ..server.clone() };
        assert!(matches!(swapped.load(), Err(TlsError::NoCertificate { .. })));
        let missing = TlsFiles { ca: folder.path().join("missing.pem"), ..server.clone() };
        assert!(missing.load().err().unwrap().to_string().contains("missing.pem"));
        let own = TlsFiles { certificate: server.ca.clone(), ..server.clone() };
        assert!(matches!(own.load(), Err(TlsError::Identity { .. })));

        let elsewhere = tempfile::tempdir().unwrap();
        Authority::create().unwrap().save(elsewhere.path()).unwrap();
        let other = TlsFiles { ca: elsewhere.path().join("ca.pem"), ..server };
        let error = other.load().err().unwrap();
        assert!(matches!(error, TlsError::WrongAuthority { .. }), "{error}");
    }
}
