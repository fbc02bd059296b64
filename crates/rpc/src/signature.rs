//! Signatures of servers, made with the key of the TLS certificate, for those who check later what a
//! server has said. How the signed bytes are made stands in `proto/concilium/v1/signature.proto`.
//!
//! The key is the certificate's because everybody knows already whose that is: the consortium's authority
//! says so, and a new certificate brings its key along. A signature stays good after its certificate has
//! ended; the chain is checked as it stood at the time of signing, which is signed as well. The time is
//! the signer's word: whoever steals the key of an ended certificate can sign for the time before.

use std::{fs, io, path::Path};

use rustls::{SignatureScheme, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject as _};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::{
    identity::{Identity, IdentityError},
    inspection::utc,
    tls::TlsMaterial,
    v1::ServerSignature,
};

/// Stands before the purpose, so that no handshake of TLS 1.2 or 1.3 signs the same bytes.
const PADDING: [u8; 64] = [0x20; 64];

/// Schemes that are used for signing, best first. Each key fits one of them.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// Most certificates of one signature.
const MAX_CERTIFICATES: usize = 8;

/// Largest file of authorities, in bytes.
const MAX_AUTHORITY_BYTES: u64 = 1 << 20;

/// What is signed; a signature of one purpose is none of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// An encoded [`crate::v1::Receipt`].
    Receipt,
    /// The statement that ends an export of the ledger.
    LedgerExport,
}

impl Purpose {
    fn context(self) -> &'static [u8] {
        match self {
            Self::Receipt => b"concilium v1 receipt",
            Self::LedgerExport => b"concilium v1 ledger export",
        }
    }

    fn signed_bytes(self, signed_unix_ms: i64, content: &[u8]) -> Vec<u8> {
        let time = signed_unix_ms.to_le_bytes();
        [&PADDING[..], self.context(), &[0], &time, content].concat()
    }
}

/// The own key did not sign.
#[derive(Clone, Debug, Error)]
#[error("the key `{key}` of the certificate does not sign: {reason}")]
pub struct SigningError {
    key: String,
    reason: String,
}

/// Why a signature proves nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SignatureError {
    /// There is no certificate, or too many.
    #[error("it comes with {count} certificates; 1 to {MAX_CERTIFICATES} are allowed")]
    Certificates {
        /// How many.
        count: usize,
    },
    /// The certificate names no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Somebody else than a server signed.
    #[error("it is the signature of {identity}, not of a server")]
    NotAServer {
        /// Who signed.
        identity: Identity,
    },
    /// The chain does not lead to a trusted authority, or was not valid then.
    #[error("the certificate of {identity} does not hold for {time}: {reason}")]
    Chain {
        /// Who signed.
        identity: Identity,
        /// When it was signed.
        time: String,
        /// What is wrong.
        reason: String,
    },
    /// The algorithm is unknown.
    #[error("the signature scheme {scheme:#06x} is not supported")]
    Scheme {
        /// TLS number of the scheme.
        scheme: u32,
    },
    /// The signature is not one of these bytes.
    #[error("it is not a signature of {identity} under these bytes; they were changed")]
    Bytes {
        /// Who is said to have signed.
        identity: Identity,
    },
}

/// Why authorities cannot be read from a file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuthorityFileError {
    /// The file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: String,
        /// The reason that the system gives.
        source: io::Error,
    },
    /// The file holds no authority.
    #[error("`{path}` holds no readable authority; it should be a PEM file with `BEGIN CERTIFICATE`")]
    NoAuthority {
        /// The file.
        path: String,
    },
}

/// A signature that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Index of the server that signed.
    pub server: u8,
    /// When it says that it did, in milliseconds since 1970-01-01 UTC.
    pub signed_unix_ms: i64,
}

impl TlsMaterial {
    /// Signs `content` for `purpose` with the certificate's key.
    ///
    /// # Errors
    /// [`SigningError`] if the key cannot, which no key that serves TLS does.
    pub fn sign(
        &self,
        purpose: Purpose,
        content: &[u8],
        now_unix_ms: i64,
    ) -> Result<ServerSignature, SigningError> {
        let failed = |reason: String| SigningError { key: self.files().key.display().to_string(), reason };
        let certified = self.certified();
        let signer = certified
            .key
            .choose_scheme(&SCHEMES)
            .ok_or_else(|| failed("it is of a kind that is not supported".to_owned()))?;
        let signature = signer
            .sign(&purpose.signed_bytes(now_unix_ms, content))
            .map_err(|error| failed(error.to_string()))?;
        Ok(ServerSignature {
            scheme: u16::from(signer.scheme()).into(),
            signature: signature.into(),
            certificates: certified.cert.iter().map(|der| der.to_vec().into()).collect(),
            signed_unix_ms: now_unix_ms,
        })
    }
}

/// The authorities whose certificates make a signature hold.
#[derive(Clone)]
pub struct Authorities(Vec<CertificateDer<'static>>);

impl Authorities {
    /// Those that a party accepts on its connections.
    pub fn of(tls: &TlsMaterial) -> Self {
        Self(tls.authority_certificates().to_vec())
    }

    /// Those of a PEM file such as `ca.pem`.
    ///
    /// # Errors
    /// [`AuthorityFileError`] names the file.
    pub fn load(path: &Path) -> Result<Self, AuthorityFileError> {
        let path_text = || path.display().to_string();
        let failed = |source| AuthorityFileError::Read { path: path_text(), source };
        let missing = || AuthorityFileError::NoAuthority { path: path_text() };
        if fs::metadata(path).map_err(failed)?.len() > MAX_AUTHORITY_BYTES {
            return Err(missing());
        }
        let pem = fs::read(path).map_err(failed)?;
        let authorities =
            CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|_| missing())?;
        if authorities.is_empty() || authorities.iter().any(|der| anchor_from_trusted_cert(der).is_err()) {
            return Err(missing());
        }
        Ok(Self(authorities))
    }

    /// Checks that a server signed `content` for `purpose`.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(
        &self,
        signature: &ServerSignature,
        purpose: Purpose,
        content: &[u8],
    ) -> Result<Signed, SignatureError> {
        let count = signature.certificates.len();
        if !(1..=MAX_CERTIFICATES).contains(&count) {
            return Err(SignatureError::Certificates { count });
        }
        let chain: Vec<_> = signature.certificates.iter().map(|der| CertificateDer::from(&der[..])).collect();
        let identity = Identity::from_certificate(&chain[0])?;
        let Some(server) = identity.server_index() else {
            return Err(SignatureError::NotAServer { identity });
        };
        let anchors: Vec<TrustAnchor<'_>> =
            self.0.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
        let seconds = u64::try_from(signature.signed_unix_ms / 1000).unwrap_or_default();
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        let broken = |reason: String| SignatureError::Chain {
            identity: identity.clone(),
            time: utc(i64::try_from(seconds).unwrap_or(i64::MAX)),
            reason,
        };
        let certificate = EndEntityCert::try_from(&chain[0]).map_err(|error| broken(error.to_string()))?;
        certificate
            .verify_for_usage(
                algorithms.all,
                &anchors,
                &chain[1..],
                UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)),
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|error| broken(error.to_string()))?;
        let scheme = u16::try_from(signature.scheme).map(SignatureScheme::from);
        let candidates = scheme
            .ok()
            .filter(|scheme| SCHEMES.contains(scheme))
            .and_then(|scheme| algorithms.mapping.iter().find(|(known, _)| *known == scheme))
            .ok_or(SignatureError::Scheme { scheme: signature.scheme })?
            .1;
        let bytes = purpose.signed_bytes(signature.signed_unix_ms, content);
        let holds = candidates
            .iter()
            .any(|&algorithm| certificate.verify_signature(algorithm, &bytes, &signature.signature).is_ok());
        if !holds {
            return Err(SignatureError::Bytes { identity });
        }
        Ok(Signed { server, signed_unix_ms: signature.signed_unix_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{certificates::Authority, identity::Role, tls::TlsFiles};

    const NOW_MS: i64 = 1_800_000_000_000;

    fn files(authority: &Authority, role: Role, name: &str, folder: &Path) -> TlsFiles {
        let identity = Identity::new(role, name).unwrap();
        // Valid now, for the TLS files to be accepted, and at the time of the test's signatures.
        authority.issue_between(&identity, &[], 1_000_000, 2_000_000_000).unwrap().save(folder).unwrap()
    }

    fn authorities(folder: &Path) -> Authorities {
        Authorities::load(&folder.join("ca.pem")).unwrap()
    }

    #[test]
    fn a_signature_holds_for_its_bytes_purpose_time_and_authority_only() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let tls = files(&authority, Role::Server, "server-1", folder.path()).load().unwrap();
        let trusted = authorities(folder.path());
        let signature = tls.sign(Purpose::Receipt, b"content", NOW_MS).unwrap();
        let signed = Signed { server: 1, signed_unix_ms: NOW_MS };
        assert_eq!(trusted.verify(&signature, Purpose::Receipt, b"content"), Ok(signed));
        assert_eq!(Authorities::of(&tls).verify(&signature, Purpose::Receipt, b"content"), Ok(signed));

        let changed = |change: &dyn Fn(&mut ServerSignature)| {
            let mut copy = signature.clone();
            change(&mut copy);
            trusted.verify(&copy, Purpose::Receipt, b"content").unwrap_err()
        };
        let bytes = |error| matches!(error, SignatureError::Bytes { .. });
        assert!(bytes(trusted.verify(&signature, Purpose::Receipt, b"other").unwrap_err()));
        assert!(bytes(trusted.verify(&signature, Purpose::LedgerExport, b"content").unwrap_err()));
        assert!(bytes(changed(&|copy| copy.signed_unix_ms += 1)));
        assert!(bytes(changed(&|copy| {
            let mut bytes = copy.signature.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            copy.signature = bytes.into();
        })));
        assert!(matches!(changed(&|copy| copy.scheme = 1), SignatureError::Scheme { scheme: 1 }));
        assert!(matches!(changed(&|copy| copy.scheme = 0x1_0403), SignatureError::Scheme { .. }));
        assert!(matches!(
            changed(&|copy| copy.certificates.clear()),
            SignatureError::Certificates { count: 0 }
        ));
        // Before and after the certificate's time.
        for time in [0, 2_000_000_001_000, i64::MIN, i64::MAX] {
            let error = changed(&|copy| copy.signed_unix_ms = time);
            assert!(matches!(error, SignatureError::Chain { .. }), "{error}");
        }

        // Another authority, and one of our authority who is no server.
        let elsewhere = tempfile::tempdir().unwrap();
        let foreign = Authority::create().unwrap();
        let forged = files(&foreign, Role::Server, "server-1", elsewhere.path()).load().unwrap();
        let forged = forged.sign(Purpose::Receipt, b"content", NOW_MS).unwrap();
        let error = trusted.verify(&forged, Purpose::Receipt, b"content").unwrap_err();
        assert!(matches!(error, SignatureError::Chain { .. }), "{error}");
        let mut swapped = forged;
        swapped.certificates = signature.certificates.clone();
        assert!(bytes(trusted.verify(&swapped, Purpose::Receipt, b"content").unwrap_err()));
        let client = files(&authority, Role::Client, "alice", folder.path()).load().unwrap();
        let client = client.sign(Purpose::Receipt, b"content", NOW_MS).unwrap();
        let error = trusted.verify(&client, Purpose::Receipt, b"content").unwrap_err();
        assert!(matches!(error, SignatureError::NotAServer { .. }), "{error}");
    }

    #[test]
    fn what_was_signed_before_a_renewal_holds_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let old = files(&authority, Role::Server, "server-2", folder.path()).load().unwrap();
        let before = old.sign(Purpose::LedgerExport, b"content", NOW_MS).unwrap();
        let new = files(&authority, Role::Server, "server-2", folder.path()).load().unwrap();
        let after = new.sign(Purpose::LedgerExport, b"content", NOW_MS).unwrap();
        assert_ne!(before.certificates, after.certificates);
        for signature in [before, after] {
            let signed = authorities(folder.path()).verify(&signature, Purpose::LedgerExport, b"content");
            assert_eq!(signed.unwrap().server, 2);
        }
    }

    #[test]
    fn files_without_an_authority_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(Authorities::load(&path).err().unwrap().to_string().contains("ca.pem"));
        fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(matches!(Authorities::load(&path), Err(AuthorityFileError::NoAuthority { .. })));
    }
}
