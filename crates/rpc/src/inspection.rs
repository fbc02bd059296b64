//! What a certificate says, for people who have to tell certificates apart.

use std::fmt;

use sha2::{Digest as _, Sha256};
use x509_parser::{
    prelude::{ASN1Time, FromDer as _, GeneralName, ParsedExtension, X509Certificate},
    x509::X509Name,
};

use crate::identity::{Identity, IdentityError};

/// Days before the end of a certificate from which everything points at it.
pub const EXPIRY_WARNING_DAYS: i64 = 30;

/// Seconds of a day.
const DAY_SECONDS: i64 = 86_400;

/// Bytes of a key's digest that name it.
const KEY_ID_BYTES: usize = 20;

/// The content of one certificate, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whom it names; an authority names nobody.
    pub identity: Result<Identity, IdentityError>,
    /// Name of the holder.
    pub subject: String,
    /// Name of the authority that signed it.
    pub issuer: String,
    /// Serial number in hexadecimal; no two certificates of one authority have the same.
    pub serial: String,
    /// Begin of the SHA-256 digest of the public key in hexadecimal: certificates of the same key have
    /// the same.
    pub key_id: String,
    /// The key id of the authority's key, if the certificate tells it.
    pub authority_key_id: Option<String>,
    /// Begin of the validity, in seconds since 1970-01-01 UTC.
    pub not_before: i64,
    /// End of the validity, in seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// DNS names and IP addresses.
    pub hosts: Vec<String>,
    /// Whether it may sign other certificates.
    pub is_authority: bool,
}

impl CertificateInfo {
    /// Reads a certificate in DER. Verifies nothing.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] if it is not X.509. A certificate that names nobody is no error;
    /// see [`CertificateInfo::identity`].
    pub fn read(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate)?;
        if !rest.is_empty() {
            return Err(IdentityError::Certificate);
        }
        let digest = Sha256::digest(certificate.public_key().raw);
        let authority_key_id =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| hex(id.0)),
                _ => None,
            });
        Ok(Self {
            identity: Identity::of(&certificate),
            subject: common_name(certificate.subject()),
            issuer: common_name(certificate.issuer()),
            serial: hex(certificate.raw_serial()),
            key_id: hex(&digest[..KEY_ID_BYTES]),
            authority_key_id,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            hosts: hosts(&certificate),
            is_authority: certificate.is_ca(),
        })
    }

    /// How the validity stands at a time given in seconds since 1970-01-01 UTC.
    pub fn validity_at(&self, now: i64) -> Validity {
        if now < self.not_before {
            Validity::NotYet
        } else if now > self.not_after {
            Validity::Expired
        } else {
            let days = (self.not_after - now) / DAY_SECONDS;
            if days < EXPIRY_WARNING_DAYS { Validity::Ending { days } } else { Validity::Good { days } }
        }
    }
}

/// How the validity of a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// The validity has not begun.
    NotYet,
    /// Valid for [`EXPIRY_WARNING_DAYS`] or longer.
    Good {
        /// Whole days left.
        days: i64,
    },
    /// Valid, but for less than [`EXPIRY_WARNING_DAYS`].
    Ending {
        /// Whole days left.
        days: i64,
    },
    /// The validity has ended.
    Expired,
}

impl fmt::Display for Validity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotYet => formatter.write_str("NOT VALID YET"),
            Self::Good { days } => write!(formatter, "valid for {days} days"),
            Self::Ending { days } => write!(formatter, "EXPIRES IN {days} DAYS"),
            Self::Expired => formatter.write_str("HAS EXPIRED"),
        }
    }
}

/// A time given in seconds since 1970-01-01 UTC, to the minute, as `2026-01-31 23:59 UTC`.
pub fn utc(unix_seconds: i64) -> String {
    match ASN1Time::from_timestamp(unix_seconds) {
        Ok(time) => {
            let time = time.to_datetime();
            format!(
                "{:04}-{:02}-{:02} {:02}:{:02} UTC",
                time.year(),
                u8::from(time.month()),
                time.day(),
                time.hour(),
                time.minute()
            )
        }
        // Beyond the years that a certificate can name.
        Err(_) => format!("{unix_seconds} s since 1970"),
    }
}

/// The common name if there is one, and else the whole name.
fn common_name(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|entry| entry.as_str().ok());
    common.map_or_else(|| name.to_string(), str::to_owned)
}

fn hosts(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
            },
            _ => None,
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::Authority;

    #[test]
    fn a_certificate_tells_holder_authority_and_hosts() {
        let authority = Authority::create().unwrap();
        let server = Identity::server(1).unwrap();
        let hosts = ["host.example".to_owned(), "10.0.0.1".to_owned(), "::1".to_owned()];
        let issued = authority.issue(&server, &hosts, 40).unwrap();
        let info = CertificateInfo::read(&issued.certificate_der()).unwrap();
        assert_eq!(info.identity, Ok(server));
        assert_eq!(info.subject, "server-1");
        assert_eq!(info.hosts, ["server-1.concilium", "host.example", "10.0.0.1", "::1"]);
        assert!(!info.is_authority);
        let again = CertificateInfo::read(
            &authority.issue(&Identity::server(1).unwrap(), &[], 1).unwrap().certificate_der(),
        );
        let again = again.unwrap();
        assert_ne!((&info.serial, &info.key_id), (&again.serial, &again.key_id));

        let ca = CertificateInfo::read(&authority.certificate_der()).unwrap();
        assert!(ca.is_authority && ca.identity.is_err());
        assert_eq!(ca.subject, info.issuer);
        assert_eq!(Some(ca.key_id), info.authority_key_id);
        assert!(CertificateInfo::read(b"no certificate").is_err());
    }

    #[test]
    fn validity_is_judged_at_a_time() {
        let authority = Authority::create().unwrap();
        let issued =
            authority.issue_between(&Identity::server(1).unwrap(), &[], 1_000_000, 10_000_000).unwrap();
        let info = CertificateInfo::read(&issued.certificate_der()).unwrap();
        assert_eq!((info.not_before, info.not_after), (1_000_000, 10_000_000));
        assert_eq!(info.validity_at(999_999), Validity::NotYet);
        assert_eq!(info.validity_at(10_000_000 - 30 * DAY_SECONDS), Validity::Good { days: 30 });
        assert_eq!(info.validity_at(10_000_001 - 30 * DAY_SECONDS), Validity::Ending { days: 29 });
        assert_eq!(info.validity_at(10_000_001), Validity::Expired);
        assert_eq!(utc(1_000_000), "1970-01-12 13:46 UTC");
        assert_eq!(utc(1_800_000_059), "2027-01-15 08:00 UTC");
    }
}
