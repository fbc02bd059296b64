//! TLS settings from three files: the authority's certificate, the own certificate, the own key.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError, RootCertStore, ServerConfig,
    client::ResolvesClientCert,
    crypto::aws_lc_rs,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TlsIdentity};
use zeroize::Zeroizing;

use crate::{
    certificates::server_dns_name,
    identity::{Identity, IdentityError, SERVERS},
    inspection::{CertificateInfo, Validity, utc},
};

/// Largest file that is read, in bytes; a chain of certificates is far smaller.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How long a TLS handshake may take.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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
        "the certificate `{path}` of {identity} is valid from {from} to {until}; renew it or set the clock"
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
    /// The certificate is not one that others accept.
    #[error("`{path}` is not a usable certificate: {reason}; issue a new one")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the TLS library says.
        reason: String,
    },
    /// The files changed to another party's certificate.
    #[error(
        "`{path}` is now the certificate of {found}, but this is {expected}; put back that of {expected}"
    )]
    OtherIdentity {
        /// The file.
        path: PathBuf,
        /// Whose certificate is in use.
        expected: Identity,
        /// Whose certificate it is now.
        found: Identity,
    },
    /// The file of the authorities changed to other authorities altogether.
    #[error(
        "`{ca}` now holds none of the authorities that are in use ({trusted}); to change the authority, \
         first put the old and the new one into the file, or restart with the new one"
    )]
    OtherAuthority {
        /// The file of the authorities.
        ca: PathBuf,
        /// Names of the authorities in use.
        trusted: String,
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
        install_crypto_provider();
        self.check(self.read()?)
    }

    /// Reads the files.
    pub(crate) fn read(&self) -> Result<Contents, TlsError> {
        Ok(Contents {
            ca: read(&self.ca)?,
            certificate: read(&self.certificate)?,
            key: Arc::new(read(&self.key)?),
        })
    }

    /// Checks what was read.
    pub(crate) fn check(&self, contents: Contents) -> Result<TlsMaterial, TlsError> {
        let authorities = certificates(&self.ca, &contents.ca)?;
        let chain = certificates(&self.certificate, &contents.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|_| TlsError::NoKey { path: self.key.clone() })?;
        let unreadable = |path: &Path| TlsError::NoCertificate { path: path.to_owned() };
        let inspect =
            |path: &Path, der: &CertificateDer<'_>| CertificateInfo::read(der).map_err(|_| unreadable(path));
        let leaf = chain.first().ok_or_else(|| unreadable(&self.certificate))?;
        let info = inspect(&self.certificate, leaf)?;
        let identity = info
            .identity
            .clone()
            .map_err(|source| TlsError::Identity { path: self.certificate.clone(), source })?;
        let now = UnixTime::now();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if matches!(info.validity_at(seconds), Validity::NotYet | Validity::Expired) {
            return Err(TlsError::NotValidNow {
                path: self.certificate.clone(),
                identity,
                from: utc(info.not_before),
                until: utc(info.not_after),
            });
        }
        let authority_infos =
            authorities.iter().map(|der| inspect(&self.ca, der)).collect::<Result<Vec<_>, _>>()?;
        let last = inspect(&self.certificate, chain.last().unwrap_or(leaf))?;
        let verifier = self.verifier(&authorities)?;
        let intermediates = chain.get(1..).unwrap_or_default();
        // What every other party does with our certificate, if its file of authorities is like ours.
        verifier.verify_client_cert(leaf, intermediates, now).map_err(|error| match error {
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => TlsError::WrongAuthority {
                certificate: self.certificate.clone(),
                ca: self.ca.clone(),
                issuer: last.issuer.clone(),
            },
            error => TlsError::Unusable { path: self.certificate.clone(), reason: error.to_string() },
        })?;
        let signing_key = aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|_| TlsError::NoKey { path: self.key.clone() })?;
        let certified = CertifiedKey::new(chain.clone(), signing_key);
        if certified.keys_match().is_err() {
            return Err(TlsError::KeyMismatch {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
            });
        }
        let authority = authority_infos.iter().position(|authority| authority.subject == last.issuer);
        Ok(TlsMaterial {
            files: self.clone(),
            identity,
            info,
            authority: authority.unwrap_or_default(),
            authority_infos,
            authorities,
            verifier,
            certified: Arc::new(certified),
            contents,
        })
    }

    fn verifier(
        &self,
        authorities: &[CertificateDer<'static>],
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let unusable = |reason: String| TlsError::Unusable { path: self.ca.clone(), reason };
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.clone()).map_err(|error| unusable(error.to_string()))?;
        }
        WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|error| unusable(error.to_string()))
    }
}

/// The bytes of the three files.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    ca: Zeroizing<Vec<u8>>,
    certificate: Zeroizing<Vec<u8>>,
    key: Arc<Zeroizing<Vec<u8>>>,
}

/// One party's checked certificate and key. Has no `Debug`, because of the key.
#[derive(Clone)]
pub struct TlsMaterial {
    files: TlsFiles,
    identity: Identity,
    info: CertificateInfo,
    /// Place in `authority_infos` of the one that signed the own certificate.
    authority: usize,
    authority_infos: Vec<CertificateInfo>,
    authorities: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
    certified: Arc<CertifiedKey>,
    contents: Contents,
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

    /// What the certificate says.
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// The authority that signed the certificate.
    pub fn authority(&self) -> &CertificateInfo {
        &self.authority_infos[self.authority]
    }

    /// All authorities whose certificates are accepted.
    pub fn authorities(&self) -> &[CertificateInfo] {
        &self.authority_infos
    }

    /// End of the certificate's validity; the Unix epoch if it lies before that.
    pub fn expires(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(self.info.not_after).unwrap_or(0))
    }

    /// Whether it was made of these bytes.
    pub(crate) fn is_made_of(&self, contents: &Contents) -> bool {
        self.contents == *contents
    }

    /// Whether it accepts an authority that `other` accepts as well.
    pub(crate) fn shares_authority(&self, other: &TlsMaterial) -> bool {
        self.authorities.iter().any(|authority| other.authorities.contains(authority))
    }

    /// Settings for accepting connections that speak one of `protocols` (ALPN): only from holders of a
    /// certificate of an authority in the file. Each call makes settings without remembered sessions.
    ///
    /// # Errors
    /// [`TlsError::NotAServer`].
    pub fn server_config(&self, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        if self.identity.server_index().is_none() {
            return Err(TlsError::NotAServer {
                path: self.files.certificate.clone(),
                identity: self.identity.clone(),
            });
        }
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(Arc::clone(&self.verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified))));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// The own certificate and key, for connecting without gRPC.
    pub fn client_certificate(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified)))
    }

    /// The accepted authorities' certificates.
    pub fn authority_certificates(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// The own certificate and key, for signing.
    pub(crate) fn certified(&self) -> &CertifiedKey {
        &self.certified
    }

    /// Settings for connecting to the server of this index: whatever address is dialled, the other
    /// side must hold that server's certificate.
    ///
    /// # Errors
    /// [`TlsError::NoSuchServer`].
    pub fn client_tls(&self, server: u8) -> Result<ClientTlsConfig, TlsError> {
        if usize::from(server) >= SERVERS {
            return Err(TlsError::NoSuchServer { server });
        }
        let Contents { ca, certificate, key } = &self.contents;
        Ok(ClientTlsConfig::new()
            .identity(TlsIdentity::from_pem(certificate.as_slice(), key.as_slice()))
            .ca_certificate(Certificate::from_pem(ca.as_slice()))
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
        assert!(material.server_config(&[b"h2"]).is_ok());
        assert!(material.client_tls(2).is_ok());
        assert!(matches!(material.client_tls(3), Err(TlsError::NoSuchServer { server: 3 })));
        assert!(material.expires() > SystemTime::now());
        let material = client.load().unwrap();
        assert!(matches!(material.server_config(&[]), Err(TlsError::NotAServer { .. })));

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
