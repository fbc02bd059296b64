//! Who is calling: identities from certificates, and which of them a server serves.
//!
//! A certificate names its holder by one URI among its subject alternative names,
//! `concilium://<role>/<name>`. The TLS layer has verified the certificate against the authority before
//! anything here reads it; what is decided here is which role and name may make which call.

use std::{collections::BTreeSet, fmt, str::FromStr};

use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tonic::Request;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{inspection::utc, status::RpcError};

/// Number of servers; fixed by the sharing.
pub const SERVERS: usize = 3;

/// Longest name of an identity, task or model, in characters.
pub const MAX_NAME_LENGTH: usize = 64;

/// The entry of a list of identities that stands for every name of the role.
pub const ANY_NAME: &str = "*";

/// What the holder of a certificate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// One of the three secure servers, named `server-0`, `server-1` and `server-2`.
    Server,
    /// Owner of models.
    Owner,
    /// Asks for predictions.
    Client,
    /// Runs one server.
    Operator,
}

impl Role {
    /// The key of a server's configuration that lists the names of this role.
    pub const fn configuration_key(self) -> &'static str {
        match self {
            Role::Server => "peers",
            Role::Owner => "identities.owners",
            Role::Client => "identities.clients",
            Role::Operator => "identities.operators",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Role::Server => "server",
            Role::Owner => "owner",
            Role::Client => "client",
            Role::Operator => "operator",
        })
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "server" => Role::Server,
            "owner" => Role::Owner,
            "client" => Role::Client,
            "operator" => Role::Operator,
            _ => return Err(IdentityError::Role { role: text.chars().take(MAX_NAME_LENGTH).collect() }),
        })
    }
}

/// Why a text or certificate is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The name has a character or length that is not allowed.
    #[error("the name `{name}` is not allowed: use 1 to {MAX_NAME_LENGTH} of the characters a-z, 0-9 and -")]
    Name {
        /// The beginning of the name.
        name: String,
    },
    /// The role is unknown.
    #[error("the role `{role}` is unknown: use server, owner, client or operator")]
    Role {
        /// The beginning of the role.
        role: String,
    },
    /// A server's name is not one of the three.
    #[error("a server cannot be named `{name}`: use server-0, server-1 or server-2")]
    ServerName {
        /// The name.
        name: String,
    },
    /// The certificate cannot be read.
    #[error("the certificate cannot be read as X.509; issue a new one")]
    Certificate,
    /// The certificate names no identity, or more than one.
    #[error("the certificate names {count} concilium://<role>/<name> identities, not one; issue a new one")]
    Count {
        /// How many URIs of the scheme it has.
        count: usize,
    },
    /// The URI of the certificate is not an identity.
    #[error("the certificate names `{uri}`, which is not of the form concilium://<role>/<name>")]
    Uri {
        /// The beginning of the URI.
        uri: String,
    },
    /// A list of names may not hold the wildcard.
    #[error("`{key}` holds `*`: list the names of this role one by one")]
    Wildcard {
        /// The configuration key.
        key: &'static str,
    },
}

/// Checks the name of an identity, task or model: 1 to [`MAX_NAME_LENGTH`] characters a-z, 0-9 and -.
///
/// # Errors
/// [`IdentityError::Name`].
pub fn check_name(name: &str) -> Result<(), IdentityError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=MAX_NAME_LENGTH).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(IdentityError::Name { name: name.chars().take(MAX_NAME_LENGTH).collect() })
    }
}

/// The holder of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    role: Role,
    name: String,
}

impl Identity {
    /// The identity of this role and name.
    ///
    /// # Errors
    /// [`IdentityError::Name`] and, for servers, [`IdentityError::ServerName`].
    pub fn new(role: Role, name: &str) -> Result<Self, IdentityError> {
        check_name(name)?;
        let identity = Self { role, name: name.to_owned() };
        if role == Role::Server && identity.server_index().is_none() {
            return Err(IdentityError::ServerName { name: name.to_owned() });
        }
        Ok(identity)
    }

    /// The identity of the server with this index.
    ///
    /// # Errors
    /// [`IdentityError::ServerName`] unless the index is 0, 1 or 2.
    pub fn server(index: u8) -> Result<Self, IdentityError> {
        Self::new(Role::Server, &format!("server-{index}"))
    }

    /// Reads the identity of a certificate, given in DER. Does not verify any signature.
    ///
    /// # Errors
    /// [`IdentityError`] if the certificate cannot be read or does not name exactly one identity.
    pub fn from_certificate(certificate: &[u8]) -> Result<Self, IdentityError> {
        Self::of(&parse(certificate)?)
    }

    /// The identity that a certificate names.
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Result<Self, IdentityError> {
        let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Certificate)?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) if uri.starts_with("concilium:") => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris.as_slice() else {
            return Err(IdentityError::Count { count: uris.len() });
        };
        uri.parse()
    }

    /// The role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The name: 1 to [`MAX_NAME_LENGTH`] characters a-z, 0-9 and -.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The index of a server, 0 to 2; `None` for other roles.
    pub fn server_index(&self) -> Option<u8> {
        match (self.role, self.name.as_str()) {
            (Role::Server, "server-0") => Some(0),
            (Role::Server, "server-1") => Some(1),
            (Role::Server, "server-2") => Some(2),
            _ => None,
        }
    }

    /// The URI that a certificate of this identity holds.
    pub fn uri(&self) -> String {
        format!("concilium://{}/{}", self.role, self.name)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} `{}`", self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    /// Reads `concilium://<role>/<name>`.
    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let (role, name) = uri
            .strip_prefix("concilium://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(|| IdentityError::Uri { uri: uri.chars().take(2 * MAX_NAME_LENGTH).collect() })?;
        Self::new(role.parse()?, name)
    }
}

/// Reads a certificate in DER, without anything after it.
fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(IdentityError::Certificate),
    }
}

/// The names of one role that a server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    Any,
    Listed(BTreeSet<String>),
}

impl Names {
    fn new(role: Role, names: &[String], wildcard: bool) -> Result<Self, IdentityError> {
        if names.iter().any(|name| name == ANY_NAME) {
            if wildcard {
                return Ok(Names::Any);
            }
            return Err(IdentityError::Wildcard { key: role.configuration_key() });
        }
        names.iter().try_for_each(|name| check_name(name))?;
        Ok(Names::Listed(names.iter().cloned().collect()))
    }

    fn contain(&self, name: &str) -> bool {
        match self {
            Names::Any => true,
            Names::Listed(names) => names.contains(name),
        }
    }
}

/// The identities that one server serves. The three servers themselves are always known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedIdentities {
    owners: Names,
    clients: Names,
    operators: Names,
}

impl AllowedIdentities {
    /// The names of each role. [`ANY_NAME`] among owners or clients admits every certificate of the
    /// role that the authority issued; operators are listed one by one.
    ///
    /// # Errors
    /// [`IdentityError::Name`] or [`IdentityError::Wildcard`].
    pub fn new(owners: &[String], clients: &[String], operators: &[String]) -> Result<Self, IdentityError> {
        Ok(Self {
            owners: Names::new(Role::Owner, owners, true)?,
            clients: Names::new(Role::Client, clients, true)?,
            operators: Names::new(Role::Operator, operators, false)?,
        })
    }

    /// No identity but the servers: for the port on which the servers talk to each other.
    pub fn servers_only() -> Self {
        let none = || Names::Listed(BTreeSet::new());
        Self { owners: none(), clients: none(), operators: none() }
    }

    /// The caller of a request, if it has one of the roles and is served here.
    ///
    /// # Errors
    /// [`RpcError::Unauthenticated`], [`RpcError::RoleNotAllowed`] or [`RpcError::UnknownIdentity`].
    pub fn authorise<T>(&self, request: &Request<T>, roles: &[Role]) -> Result<Identity, RpcError> {
        let certificates = request.peer_certs();
        self.authorise_certificates(certificates.as_deref().map_or(&[], Vec::as_slice), roles)
    }

    /// [`AllowedIdentities::authorise`] for a chain of certificates, the caller's own first.
    ///
    /// # Errors
    /// As [`AllowedIdentities::authorise`].
    pub fn authorise_certificates(
        &self,
        chain: &[CertificateDer<'_>],
        roles: &[Role],
    ) -> Result<Identity, RpcError> {
        let certificate = chain.first().ok_or_else(|| RpcError::Unauthenticated {
            problem: "the connection has no client certificate".to_owned(),
        })?;
        let unreadable = |error: IdentityError| RpcError::Unauthenticated { problem: error.to_string() };
        let certificate = parse(certificate).map_err(unreadable)?;
        let identity = Identity::of(&certificate).map_err(unreadable)?;
        // The server's span of the call, which was opened before the certificate was read.
        tracing::Span::current().record("caller", tracing::field::display(&identity));
        // The handshake has checked this, too, but a connection may outlive the certificate.
        if !certificate.validity().is_valid() {
            let until = utc(certificate.validity().not_after.timestamp());
            return Err(RpcError::Unauthenticated {
                problem: format!("the certificate of {identity} was valid until {until}; renew it"),
            });
        }
        if !roles.contains(&identity.role) {
            let needed: Vec<_> = roles.iter().map(Role::to_string).collect();
            return Err(RpcError::RoleNotAllowed {
                identity: identity.to_string(),
                needed: needed.join(" or "),
            });
        }
        let known = match identity.role {
            Role::Server => true,
            Role::Owner => self.owners.contain(&identity.name),
            Role::Client => self.clients.contain(&identity.name),
            Role::Operator => self.operators.contain(&identity.name),
        };
        if !known {
            return Err(RpcError::UnknownIdentity {
                identity: identity.to_string(),
                configuration_key: identity.role.configuration_key().to_owned(),
            });
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::Authority;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn certificate(authority: &Authority, role: Role, name: &str) -> Vec<CertificateDer<'static>> {
        let identity = Identity::new(role, name).unwrap();
        vec![authority.issue(&identity, &[], 1).unwrap().certificate_der()]
    }

    #[test]
    fn names_are_checked() {
        for name in ["a", "server-0", "0", &"x".repeat(64)] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", "A", "a_b", "a b", "ä", "a/b", "*", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(Identity::new(Role::Server, "server-3").is_err());
        assert!(Identity::server(3).is_err());
    }

    #[test]
    fn uris_are_read_back_and_others_are_refused() {
        for (role, name) in
            [(Role::Server, "server-2"), (Role::Owner, "ward-7"), (Role::Client, "a"), (Role::Operator, "o")]
        {
            let identity = Identity::new(role, name).unwrap();
            assert_eq!(identity.uri().parse(), Ok(identity));
        }
        for uri in [
            "",
            "concilium:",
            "concilium://",
            "concilium://client",
            "concilium://client/",
            "concilium://client/a/b",
            "concilium://guest/a",
            "https://client/a",
            "concilium://server/a",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }

    #[test]
    fn roles_and_names_decide_who_may_call() {
        let authority = Authority::create().unwrap();
        let allowed = AllowedIdentities::new(&names(&["*"]), &names(&["alice"]), &names(&["root"])).unwrap();
        let roles = [Role::Client, Role::Owner];

        let alice = certificate(&authority, Role::Client, "alice");
        assert_eq!(allowed.authorise_certificates(&alice, &roles).unwrap().name(), "alice");
        let owner = certificate(&authority, Role::Owner, "anyone");
        assert_eq!(allowed.authorise_certificates(&owner, &roles).unwrap().role(), Role::Owner);

        let eve = certificate(&authority, Role::Client, "eve");
        let error = allowed.authorise_certificates(&eve, &roles).unwrap_err();
        assert_eq!(error.reason(), "UNKNOWN_IDENTITY");
        assert!(error.to_string().contains("eve") && error.to_string().contains("identities.clients"));

        let operator = certificate(&authority, Role::Operator, "root");
        let error = allowed.authorise_certificates(&operator, &roles).unwrap_err();
        assert_eq!(error.reason(), "ROLE_NOT_ALLOWED");
        assert!(error.to_string().contains("operator `root`"), "{error}");
        assert!(error.to_string().contains("client or owner"), "{error}");

        let error = allowed.authorise_certificates(&[], &roles).unwrap_err();
        assert_eq!(error.reason(), "UNAUTHENTICATED");
        let garbage = [CertificateDer::from(vec![0x30; 100])];
        let error = allowed.authorise_certificates(&garbage, &roles).unwrap_err();
        assert_eq!(error.reason(), "UNAUTHENTICATED");

        // A connection that was opened in time does not extend the certificate.
        let identity = Identity::new(Role::Client, "alice").unwrap();
        let ended = authority.issue_between(&identity, &[], 1_000_000, 2_000_000).unwrap().certificate_der();
        let error = allowed.authorise_certificates(&[ended], &roles).unwrap_err();
        assert_eq!(error.reason(), "UNAUTHENTICATED");
        assert!(error.to_string().contains("client `alice` was valid until 1970-01-24"), "{error}");

        assert!(AllowedIdentities::new(&[], &[], &names(&["*"])).is_err());
        assert!(AllowedIdentities::new(&names(&["No"]), &[], &[]).is_err());
    }
}
