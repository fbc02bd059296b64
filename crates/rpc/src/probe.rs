//! One TLS handshake with a server, to find out what is wrong with it.
//!
//! An ordinary connection fails with whatever the TLS library says. A probe keeps the certificate that
//! the server presented, also one that is refused, and waits for the server's judgement of ours.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsFailure,
    RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    accept::GRPC_PROTOCOLS,
    certificates::server_dns_name,
    inspection::CertificateInfo,
    tls::{HANDSHAKE_TIMEOUT, TlsMaterial},
};

/// What every HTTP/2 client sends first: the preface, and settings without any entry.
const HTTP2_BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How long the server may take to answer after the handshake.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a probe found.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The certificate that the server presented, if it got so far.
    pub presented: Option<CertificateInfo>,
    /// Why the handshake failed.
    pub fault: Option<TlsFault>,
}

/// Why a handshake fails, and on which side.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsFault {
    /// What answers does not speak TLS.
    NotTls(String),
    /// The server's certificate is of an authority that is not in our file.
    TheirAuthority,
    /// The server's certificate has expired by our clock.
    TheirExpiry,
    /// The server's certificate is not valid yet by our clock.
    TheirBegin,
    /// The certificate is of another server, or of no server.
    OtherServer,
    /// The server's certificate is refused for another reason.
    Theirs(String),
    /// The server does not trust the authority of our certificate.
    OurAuthority,
    /// Our certificate has expired, or is not valid yet, by the server's clock.
    OurValidity,
    /// The server refuses our certificate for another reason.
    Ours(String),
    /// The server hung up without a reason.
    HungUp(String),
}

/// Tries a handshake with the server of this index over an open connection.
///
/// # Panics
/// If `server` is above 2.
pub async fn probe(server: u8, stream: TcpStream, tls: &TlsMaterial) -> Probe {
    let recorder = match Recorder::new(tls) {
        Ok(recorder) => Arc::new(recorder),
        Err(reason) => return Probe { presented: None, fault: Some(TlsFault::Ours(reason)) },
    };
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&recorder) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(tls.client_certificate());
    config.alpn_protocols = GRPC_PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(server_dns_name(server)).expect("the name of a server is a DNS name");
    let fault = handshake(TlsConnector::from(Arc::new(config)), name, stream).await.err();
    let presented = recorder.presented.lock().unwrap_or_else(PoisonError::into_inner).take();
    let presented = presented.and_then(|der| CertificateInfo::read(&der).ok());
    let fault = fault.map(|error| judge(&error, presented.is_some()));
    Probe { presented, fault }
}

async fn handshake(connector: TlsConnector, name: ServerName<'static>, stream: TcpStream) -> io::Result<()> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time");
    let mut stream =
        timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await.map_err(|_| late())??;
    // In TLS 1.3 the server looks at our certificate only now.
    stream.write_all(HTTP2_BEGIN).await?;
    stream.flush().await?;
    let mut first = [0];
    match timeout(ANSWER_TIMEOUT, stream.read(&mut first)).await.map_err(|_| late())?? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
        _ => Ok(()),
    }
}

fn judge(error: &io::Error, presented: bool) -> TlsFault {
    let Some(failure) = error.get_ref().and_then(|source| source.downcast_ref::<TlsFailure>()) else {
        return match presented {
            true => TlsFault::HungUp(error.to_string()),
            false => TlsFault::NotTls(error.to_string()),
        };
    };
    match failure {
        TlsFailure::InvalidCertificate(problem) => match problem {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsFault::TheirAuthority,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsFault::TheirExpiry,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsFault::TheirBegin
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsFault::OtherServer
            }
            problem => TlsFault::Theirs(problem.to_string()),
        },
        TlsFailure::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA | AlertDescription::DecryptError => TlsFault::OurAuthority,
            AlertDescription::CertificateExpired => TlsFault::OurValidity,
            // Another server of this kind agrees on HTTP/2; what does not is no server of ours.
            AlertDescription::NoApplicationProtocol => TlsFault::NotTls(failure.to_string()),
            _ if presented => TlsFault::Ours(failure.to_string()),
            _ => TlsFault::NotTls(failure.to_string()),
        },
        failure if presented => TlsFault::HungUp(failure.to_string()),
        failure => TlsFault::NotTls(failure.to_string()),
    }
}

/// Verifies as an ordinary connection does, and keeps what it was shown.
#[derive(Debug)]
struct Recorder {
    verifier: Arc<WebPkiServerVerifier>,
    presented: Mutex<Option<CertificateDer<'static>>>,
}

impl Recorder {
    fn new(tls: &TlsMaterial) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for authority in tls.authority_certificates() {
            roots.add(authority.clone()).map_err(|error| error.to_string())?;
        }
        let verifier =
            WebPkiServerVerifier::builder(Arc::new(roots)).build().map_err(|error| error.to_string())?;
        Ok(Self { verifier, presented: Mutex::default() })
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsFailure> {
        *self.presented.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(end_entity.clone().into_owned());
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
